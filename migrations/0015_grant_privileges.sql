-- Least privilege (SPEC O9): nothing for PUBLIC; row-level security on every table; policies by role.
--
-- Lock and duration: ACCESS EXCLUSIVE on each table for an instant, no scan.

do $$
declare
  v_table text;
  v_function regprocedure;
  v_other regrole;
  v_mine constant oid := (select oid from pg_namespace where nspname = current_schema());
  v_tables constant text[] := array['queues', 'queue_wakeups', 'message_queue', 'message_archive', 'dead_letters',
    'operator_actions', 'workers', 'message_types', 'message_dedup', 'processed_messages', 'conversation_locks',
    'message_results', 'rate_limiters'];
  v_functions constant text[] := array['declare_queue', 'require_queue', 'set_queue', 'pause_queue', 'resume_queue', 'wake_queue',
    'announce_sleep', 'attend_queues', 'keep_attending', 'hand_over_queues',
    'refuse_argument', 'refuse_delay', 'check_lease', 'check_age', 'check_batch', 'check_enqueue_arguments', 'enqueue_message',
    'enqueue_messages', 'enqueue_payloads', 'conversation_holders', 'block_waiting_messages', 'waiting_behind',
    'waiting_in_front', 'queue_allowance', 'rate_tokens_at', 'next_start_at', 'pick_due_messages', 'pick_promoted_messages', 'next_of_conversations',
    'promote_conversations', 'ensure_message_archive_partitions', 'archive_messages', 'settle_done', 'complete_messages',
    'claim_one_by_one', 'complete_and_claim_messages', 'claim_messages', 'bounded_delay', 'message_backoff', 'bounded_text', 'append_history', 'history_tail', 'json_milliseconds', 'failure_policy', 'schedule_message_retry',
    'error_fingerprint', 'move_to_dead_letters', 'bury_message', 'fail_message', 'snooze_message', 'return_uncommitted_message', 'release_messages', 'release_unknown_messages',
    'release_message', 'extend_message_lease', 'archive_cancelled', 'finish_cancelled', 'cancel_message', 'expire_messages', 'bounded_problems', 'worker_problems', 'register_worker',
    'beat_worker', 'deregister_worker', 'withdraw_crashes', 'send_exhausted', 'fail_overdue_message', 'return_lost_message', 'return_lost_messages', 'rescue_expired_messages', 'recover_worker',
    'mark_completion_refused', 'complete_refused_messages', 'promote_after_delete',
    'bury_unknown_types', 'promote_stranded_conversations', 'forget_dead_workers', 'cleanup_stale_message_locks', 'redrive_dead_letters', 'edit_dead_letter',
    'purge_dead_letters', 'get_next_queue_message', 'acquire_message_lock', 'release_message_lock', 'acquire_conversation_lock',
    'release_conversation_lock', 'cleanup_stuck_webhook_conversations', 'is_new_message', 'mark_message_processed',
    'cleanup_expired_windows', 'cleanup_old_messages', 'drop_expired_archive_partitions', 'partition_covers', 'create_partition_table', 'finish_partition', 'explain_message', 'store_message_result', 'get_message_result',
    'add_rate_limiter', 'change_rate_limiter', 'get_rate_limiter'];
  v_producer_functions constant text[] := array['require_queue', 'wake_queue', 'refuse_argument', 'refuse_delay', 'check_lease', 'check_enqueue_arguments',
    'enqueue_message', 'enqueue_messages', 'enqueue_payloads', 'is_new_message', 'mark_message_processed', 'acquire_conversation_lock',
    'release_conversation_lock', 'get_message_result'];
begin
  foreach v_table in array v_tables loop
    execute format('revoke all on %I from public', v_table);
    execute format('alter table %I enable row level security', v_table);
    execute format('create policy %I on %I to packhorse_worker using (true) with check (true)', v_table || '_worker', v_table);
    execute format('create policy %I on %I for select to packhorse_reader using (true)', v_table || '_reader', v_table);
    execute format('grant select, insert, update, delete on %I to packhorse_worker', v_table);
    execute format('grant select on %I to packhorse_reader', v_table);
  end loop;
  -- the audit trail can be written and read, not rewritten
  revoke update, delete on operator_actions from packhorse_worker;
  -- a producer puts messages in and reads nothing back but its dedup windows and webhook ids. Neither id nor
  -- created_at is its to choose: the id of a dead letter would make its own burial fail, 0 is nobody's
  create policy message_queue_producer on message_queue for insert to packhorse_producer
    with check (state = 'pending' and attempt = 0 and crashes = 0 and isfinite(run_at));
  create policy queues_producer on queues for select to packhorse_producer using (true);
  create policy queue_wakeups_producer on queue_wakeups for select to packhorse_producer using (true);
  create policy message_dedup_producer on message_dedup to packhorse_producer using (true) with check (true);
  create policy processed_messages_producer on processed_messages to packhorse_producer using (true) with check (true);
  create policy conversation_locks_producer on conversation_locks to packhorse_producer using (true) with check (true);
  create policy message_results_producer on message_results for select to packhorse_producer using (true);
  grant insert (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key, dedup_key,
    correlation_id, trace_context, expires_at, concurrency_key) on message_queue to packhorse_producer;
  grant select (name) on queues to packhorse_producer;
  grant select on queue_wakeups, message_results to packhorse_producer;
  grant select, insert, update on message_dedup, processed_messages to packhorse_producer;
  grant select, insert, update, delete on conversation_locks to packhorse_producer;
  grant usage on sequence message_queue_id_seq to packhorse_worker, packhorse_producer;
  grant usage on sequence message_lease_token_seq to packhorse_worker;
  execute format('grant usage on schema %I to packhorse_worker, packhorse_producer, packhorse_reader', current_schema());
  grant select on all_messages, blocked_conversations, message_queue_health, dead_letter_groups to packhorse_worker, packhorse_reader;
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions) loop
    execute format('revoke execute on function %s from public', v_function);
    execute format('grant execute on function %s to packhorse_worker', v_function);
  end loop;
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_producer_functions) loop
    execute format('grant execute on function %s to packhorse_producer', v_function);
  end loop;
  -- what runs with the owner's rights must not find objects in the caller's temporary schema first. And default privileges
  -- may have given it to others, as those of Supabase do to the roles of its API
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions) and p.prosecdef loop
    execute format('alter function %s set search_path = %I, pg_temp', v_function, current_schema());
    for v_other in select distinct a.grantee from pg_proc p cross join aclexplode(p.proacl) a
      where p.oid = v_function and a.grantee not in (p.proowner, 'packhorse_worker'::regrole) loop
      execute format('revoke execute on function %s from %s', v_function, v_other);
    end loop;
  end loop;
  for v_function in select p.oid::regprocedure from pg_proc p
    where p.pronamespace = v_mine and p.proname in ('explain_message', 'conversation_holders', 'rate_tokens_at', 'worker_problems') loop
    execute format('grant execute on function %s to packhorse_reader', v_function);
  end loop;
end
$$;

select ensure_message_archive_partitions();
select declare_queue('default');

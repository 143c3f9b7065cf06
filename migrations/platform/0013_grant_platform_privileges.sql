-- Least privilege (SPEC O9): nothing for PUBLIC; row-level security on every table; policies by role.
--
-- The worker works on everything; a producer reports what happened (events, webhooks, audit) and reads nothing
-- back; a reader sees everything but secrets. Audit records and referral credits are out of the worker's reach:
-- FOR UPDATE and DELETE do not see them, so that a bulk delete passes by.
-- Lock and duration: ACCESS EXCLUSIVE on each table for an instant, no scan.

do $$
declare
  v_name text;
  v_function regprocedure;
  v_other regrole;
  v_mine constant oid := (select oid from pg_namespace where nspname = current_schema());
  v_tables constant text[] := array['companies', 'clients', 'services', 'staff', 'staff_schedules', 'sync_status', 'appointments_cache',
    'guest_sessions', 'bookings', 'agent_chat_sessions', 'ai_conversation_memory', 'workflow_states', 'conversations',
    'amara_conversations', 'amara_messages', 'webhook_events', 'messages', 'reminders', 'dialog_contexts', 'whatsapp_auth', 'whatsapp_keys'];
  v_guarded constant text[] := array['platform_events', 'audit_events'];
  v_secret constant text[] := array['whatsapp_auth', 'whatsapp_keys'];
  v_told constant text[] := array['platform_events', 'webhook_events', 'audit_events'];
  v_functions constant text[] := array['touch_updated_at', 'check_text', 'check_object', 'check_span', 'check_limit', 'check_role',
    'append_entry', 'cleanup_expired_appointments_cache', 'cleanup_expired_guest_sessions', 'convert_guest_to_user',
    'get_or_create_agent_session', 'refuse_agent_session', 'add_agent_message', 'get_agent_conversation', 'set_agent_session_status',
    'expire_agent_chat_sessions', 'get_or_create_ai_memory', 'add_ai_memory_message', 'merge_ai_memory_context',
    'cleanup_inactive_ai_memory', 'start_workflow', 'refuse_workflow', 'advance_workflow', 'finish_workflow', 'mark_timed_out_workflows',
    'get_or_create_conversation', 'lock_conversation', 'unlock_conversation', 'release_stuck_conversations', 'touch_amara_conversations', 'protect_audit_events',
    'check_period', 'get_event_counts_by_type', 'get_conversion_funnel', 'get_user_referral_credits', 'cleanup_old_platform_events',
    'cleanup_old_webhook_events', 'cleanup_old_audit_events', 'create_messages_partition', 'maintain_messages_partitions',
    'get_messages_stats', 'get_recent_messages', 'enqueue_due_reminders', 'cleanup_expired_dialog_contexts',
    'cleanup_expired_whatsapp_keys', 'get_whatsapp_auth_stats', 'get_database_stats'];
  v_reader_functions constant text[] := array['refuse_argument', 'check_text', 'check_span', 'check_period', 'refuse_agent_session',
    'get_agent_conversation', 'get_event_counts_by_type', 'get_conversion_funnel', 'get_user_referral_credits', 'get_messages_stats',
    'get_recent_messages', 'get_database_stats'];
begin
  foreach v_name in array v_tables || v_guarded loop
    execute format('revoke all on %I from public', v_name);
    execute format('alter table %I enable row level security', v_name);
    if v_name <> all (v_secret) then
      execute format('create policy %I on %I for select to packhorse_reader using (true)', v_name || '_reader', v_name);
      execute format('grant select on %I to packhorse_reader', v_name);
    end if;
  end loop;
  foreach v_name in array v_tables loop
    execute format('create policy %I on %I to packhorse_worker using (true) with check (true)', v_name || '_worker', v_name);
    execute format('grant select, insert, update, delete on %I to packhorse_worker', v_name);
  end loop;
  foreach v_name in array v_guarded loop
    execute format('create policy %I on %I for select to packhorse_worker using (true)', v_name || '_worker_select', v_name);
    execute format('create policy %I on %I for insert to packhorse_worker with check (true)', v_name || '_worker_insert', v_name);
    -- FOR UPDATE SKIP LOCKED needs the right to update some column; no new row passes the policy
    execute format('grant select, insert, delete, update (id) on %I to packhorse_worker', v_name);
  end loop;
  create policy platform_events_worker_lock on platform_events for update to packhorse_worker
    using (event_type not in ('referral_credit_earned', 'referral_credit_spent')) with check (false);
  create policy platform_events_worker_delete on platform_events for delete to packhorse_worker
    using (event_type not in ('referral_credit_earned', 'referral_credit_spent'));
  create policy audit_events_worker_lock on audit_events for update to packhorse_worker using (category <> 'security') with check (false);
  create policy audit_events_worker_delete on audit_events for delete to packhorse_worker using (category <> 'security');
  foreach v_name in array v_told loop
    execute format('create policy %I on %I for insert to packhorse_producer with check (true)', v_name || '_producer', v_name);
    execute format('grant insert on %I to packhorse_producer', v_name);
  end loop;
  grant usage on sequence messages_id_seq to packhorse_worker;
  grant select on workflow_health, ai_agent_usage to packhorse_worker, packhorse_reader;
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions) loop
    execute format('revoke execute on function %s from public', v_function);
    execute format('grant execute on function %s to packhorse_worker', v_function);
  end loop;
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_reader_functions) loop
    execute format('grant execute on function %s to packhorse_reader', v_function);
  end loop;
  -- what runs with the owner's rights: as in 0015 of the queue
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions) and p.prosecdef loop
    execute format('alter function %s set search_path = %I, pg_temp', v_function, current_schema());
    for v_other in select distinct a.grantee from pg_proc p cross join aclexplode(p.proacl) a
      where p.oid = v_function and a.grantee not in (p.proowner, 'packhorse_worker'::regrole) loop
      execute format('revoke execute on function %s from %s', v_function, v_other);
    end loop;
  end loop;
end
$$;

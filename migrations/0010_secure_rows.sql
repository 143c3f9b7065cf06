-- Row-level security on every table of the queue, with policies by role (SPEC O9). Who may do what is said in
-- functions/rights.sql.
--
-- Lock and duration: ACCESS EXCLUSIVE on each table for an instant, no scan.

do $$
declare
  v_table text;
begin
  foreach v_table in array array['queues', 'queue_wakeups', 'message_queue', 'message_archive',
    'dead_letters', 'operator_actions', 'workers', 'daemon_requests', 'message_types', 'message_dedup',
    'processed_messages', 'conversation_locks', 'message_results', 'rate_limiters',
    'schedules', 'schedule_runs', 'maintenance_runs', 'maintenance_tasks', 'detached_partitions',
    'fleet_statistics', 'scopes', 'claim_marks', 'service_endpoints', 'installation',
    'queue_turns', 'key_rates']
  loop
    execute format('alter table packhorse.%I enable row level security', v_table);
    execute format('create policy %I on packhorse.%I to packhorse_worker using (true) with check (true)',
      v_table || '_worker', v_table);
    execute format('create policy %I on packhorse.%I for select to packhorse_reader using (true)',
      v_table || '_reader', v_table);
  end loop;
end
$$;

-- the reader sees no row of it: whoever looks at the queue need not know who else may
alter table packhorse.access_tokens enable row level security;
create policy access_tokens_worker on packhorse.access_tokens to packhorse_worker using (true) with
  check (true);

-- Row-level security on every table of the platform, with the policies of our own roles (SPEC O9). Who may do
-- what is said in functions/rights.sql; refresh_platform_access() adds the policies of the host's roles.
--
-- An adopted table loses the policies that it had: one without TO, or one that shows all rows, would be open
-- beside ours. Audit records of security are out of the worker's reach: FOR UPDATE and DELETE do not see
-- them, so that a bulk delete passes by.
-- Lock and duration: ACCESS EXCLUSIVE on each table for an instant, no scan.
do $$
declare
  v_name text;
  v_policy name;
  v_tables constant text[] := array['whatsapp_users', 'agent_chat_sessions', 'ai_conversation_memory',
    'workflow_states', 'conversations', 'webhook_events', 'platform_events', 'amara_conversations',
    'amara_messages', 'guest_sessions', 'referrals', 'companies', 'clients', 'services', 'staff',
    'staff_schedules', 'appointments_cache', 'dialog_contexts', 'sync_status',
    'whatsapp_auth', 'whatsapp_keys', 'bookings', 'reminders', 'messages', 'platform_backfill_rows'];
  v_read constant text[] := array['platform_adopted_tables'];
  v_secret constant text[] := array['whatsapp_auth', 'whatsapp_keys', 'platform_backfill_rows'];
  v_told constant text[] := array['webhook_events', 'platform_events'];
  v_alone constant text[] := array(select a.name from platform.platform_adopted_tables a
    where a.is_left_alone);
begin
  foreach v_name in array v_tables || v_read || array['audit_events'] loop
    continue when v_name = any (v_alone);
    for v_policy in select p.policyname from pg_policies p
    where p.schemaname = (parse_ident('platform.x'))[1] and p.tablename = v_name loop
      raise notice 'policy % of the adopted table % is dropped', v_policy, v_name;
      execute format('drop policy %I on platform.%I', v_policy, v_name);
    end loop;
    execute format('alter table platform.%I enable row level security', v_name);
    if v_name <> all (v_secret) then
      execute format('create policy %I on platform.%I for select to packhorse_reader using (true)',
        v_name || '_reader', v_name);
    end if;
    if v_name = any (v_tables) then
      execute format('create policy %I on platform.%I to packhorse_worker using (true) with check (true)',
        v_name || '_worker', v_name);
    end if;
    if v_name = any (v_told) then
      execute format('create policy %I on platform.%I for insert to packhorse_producer with check (true)',
        v_name || '_producer', v_name);
    end if;
  end loop;
  create policy platform_adopted_tables_worker on platform.platform_adopted_tables for
    select to packhorse_worker using (true);
  create policy audit_events_worker_select on platform.audit_events for select to packhorse_worker
    using (true);
  create policy audit_events_worker_insert on platform.audit_events for insert to packhorse_worker with
    check (true);
  create policy audit_events_worker_lock on platform.audit_events
  for update to packhorse_worker using (event_category <> 'security') with check (false);
  create policy audit_events_worker_delete on platform.audit_events for delete to packhorse_worker
    using (event_category <> 'security');
  create policy audit_events_producer on platform.audit_events for insert to packhorse_producer with
    check (event_category <> 'security');
end
$$;

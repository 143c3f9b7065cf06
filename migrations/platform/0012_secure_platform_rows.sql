-- Row-level security on every table of the platform, with policies by role (SPEC O9). Who may do what is said in functions/rights.sql.
--
-- Audit records and referral credits are out of the worker's reach: FOR UPDATE and DELETE do not see them, so that a bulk delete passes by.
-- Lock and duration: ACCESS EXCLUSIVE on each table for an instant, no scan.

do $$
declare
  v_name text;
  v_tables constant text[] := array['companies', 'clients', 'services', 'staff', 'staff_schedules', 'sync_status', 'appointments_cache',
    'guest_sessions', 'bookings', 'agent_chat_sessions', 'ai_conversation_memory', 'workflow_states', 'conversations',
    'amara_conversations', 'amara_messages', 'webhook_events', 'messages', 'reminders', 'dialog_contexts', 'whatsapp_auth', 'whatsapp_keys'];
  v_guarded constant text[] := array['platform_events', 'audit_events'];
  v_secret constant text[] := array['whatsapp_auth', 'whatsapp_keys'];
  v_told constant text[] := array['platform_events', 'webhook_events', 'audit_events'];
begin
  foreach v_name in array v_tables || v_guarded loop
    execute format('alter table platform.%I enable row level security', v_name);
    if v_name <> all (v_secret) then
      execute format('create policy %I on platform.%I for select to packhorse_reader using (true)', v_name || '_reader', v_name);
    end if;
  end loop;
  foreach v_name in array v_tables loop
    execute format('create policy %I on platform.%I to packhorse_worker using (true) with check (true)', v_name || '_worker', v_name);
  end loop;
  foreach v_name in array v_guarded loop
    execute format('create policy %I on platform.%I for select to packhorse_worker using (true)', v_name || '_worker_select', v_name);
    execute format('create policy %I on platform.%I for insert to packhorse_worker with check (true)', v_name || '_worker_insert', v_name);
  end loop;
  create policy platform_events_worker_lock on platform.platform_events for update to packhorse_worker
    using (event_type not in ('referral_credit_earned', 'referral_credit_spent')) with check (false);
  create policy platform_events_worker_delete on platform.platform_events for delete to packhorse_worker
    using (event_type not in ('referral_credit_earned', 'referral_credit_spent'));
  create policy audit_events_worker_lock on platform.audit_events for update to packhorse_worker using (category <> 'security') with check (false);
  create policy audit_events_worker_delete on platform.audit_events for delete to packhorse_worker using (category <> 'security');
  foreach v_name in array v_told loop
    execute format('create policy %I on platform.%I for insert to packhorse_producer with check (true)', v_name || '_producer', v_name);
  end loop;
end
$$;

-- Way back of platform/0013_grant_platform_privileges. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

-- Functions keep working for the owner.
do $$
declare
  v_row record;
  v_tables constant text[] := array['companies', 'clients', 'services', 'staff', 'staff_schedules', 'sync_status', 'appointments_cache',
    'guest_sessions', 'bookings', 'agent_chat_sessions', 'ai_conversation_memory', 'workflow_states', 'conversations',
    'amara_conversations', 'amara_messages', 'platform_events', 'webhook_events', 'audit_events', 'messages', 'reminders',
    'dialog_contexts', 'whatsapp_auth', 'whatsapp_keys', 'workflow_health', 'ai_agent_usage'];
  v_table text;
begin
  for v_row in select policyname, tablename from pg_policies where schemaname = current_schema() and tablename = any (v_tables) loop
    execute format('drop policy %I on %I', v_row.policyname, v_row.tablename);
  end loop;
  foreach v_table in array v_tables loop
    execute format('revoke all on %I from packhorse_worker, packhorse_producer, packhorse_reader', v_table);
  end loop;
  revoke all on sequence messages_id_seq from packhorse_worker;
  revoke execute on function refuse_argument(text, text, text) from packhorse_reader;
end
$$;

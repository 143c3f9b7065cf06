-- What the tables of the conversation platform share (SPEC C6): a domain.
--
-- Lock and duration: new objects only, milliseconds.

-- A table or function of yours that bears one of our names would stop a later migration, and half a platform
-- fits nobody: found here, before anything of it is recorded.
do $$
declare
  v_name text;
  v_mine constant oid := (select n.oid from pg_namespace n where n.nspname = (parse_ident('platform.x'))[1]);
  v_relations constant text[] := array[
    'phone_number', 'companies', 'clients', 'services', 'staff', 'staff_schedules', 'sync_status',
    'appointments_cache', 'guest_sessions', 'bookings', 'agent_chat_sessions', 'ai_conversation_memory',
    'workflow_states', 'conversations', 'amara_conversations', 'amara_messages', 'platform_events', 'webhook_events',
    'audit_events', 'messages_id_seq', 'messages', 'reminders', 'dialog_contexts', 'whatsapp_auth', 'whatsapp_keys',
    'workflow_health', 'ai_agent_usage'];
  v_functions constant text[] := array[
    'touch_updated_at', 'check_text', 'check_object', 'check_span', 'check_limit', 'check_role', 'append_entry',
    'cleanup_expired_appointments_cache', 'cleanup_expired_guest_sessions', 'convert_guest_to_user',
    'get_or_create_agent_session', 'refuse_agent_session', 'add_agent_message', 'get_agent_conversation',
    'set_agent_session_status', 'expire_agent_chat_sessions', 'get_or_create_ai_memory', 'add_ai_memory_message',
    'merge_ai_memory_context', 'cleanup_inactive_ai_memory', 'start_workflow', 'refuse_workflow', 'advance_workflow',
    'finish_workflow', 'mark_timed_out_workflows', 'touch_amara_conversations', 'get_or_create_conversation',
    'lock_conversation', 'unlock_conversation', 'release_stuck_conversations', 'protect_audit_events', 'check_period',
    'get_event_counts_by_type', 'get_conversion_funnel', 'get_user_referral_credits', 'cleanup_old_platform_events',
    'cleanup_old_webhook_events', 'cleanup_old_audit_events', 'create_messages_partition',
    'maintain_messages_partitions', 'get_messages_stats', 'get_recent_messages', 'enqueue_due_reminders',
    'cleanup_expired_dialog_contexts', 'cleanup_expired_whatsapp_keys', 'get_whatsapp_auth_stats',
    'get_database_stats', 'platform_rights'];
begin
  select found.name into v_name from (
    select c.relname::text as name from pg_class c where c.relnamespace = v_mine and c.relname = any (v_relations)
    union all
    select t.typname::text from pg_type t where t.typnamespace = v_mine and t.typname = any (v_relations)
    union all
    select p.proname::text from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions)) found
  order by found.name limit 1;
  if found then
    raise exception using errcode = 'duplicate_object',
      message = format('%I exists already in the schema %I, and the platform has something of that name; nothing was changed', v_name, v_mine::regnamespace),
      hint = 'Rename it, or give the platform a schema of its own: the setting platform_schema.';
  end if;
end
$$;

create domain platform.phone_number as text constraint phone_number_length check (length(value) between 1 and 100);
comment on domain platform.phone_number is 'A phone number or another address of a person in a channel: 1 to 100 characters.';

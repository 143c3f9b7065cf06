-- What the tables of the conversation platform share (SPEC C6): a domain, the updated_at trigger, checks
-- of arguments. They refuse with PH001 and the argument's name, like the queue's functions.
--
-- Lock and duration: new objects only, milliseconds.

-- A table or function of yours that bears one of our names would stop a later migration, and half a platform
-- fits nobody: found here, before anything of it is recorded.
do $$
declare
  v_name text;
  v_mine constant oid := (select oid from pg_namespace where nspname = current_schema());
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
    'get_database_stats'];
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
      message = format('%I exists already in the schema %I, and the platform has something of that name; nothing was changed', v_name, current_schema()),
      hint = 'Rename it, or give queue and platform a schema of their own: the setting db_schema.';
  end if;
end
$$;

create domain phone_number as text constraint phone_number_length check (length(value) between 1 and 100);
comment on domain phone_number is 'A phone number or another address of a person in a channel: 1 to 100 characters.';

create function touch_updated_at() returns trigger
language plpgsql set search_path from current as $$
-- Before update: the row says when it changed, on the database's clock.
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
comment on function touch_updated_at() is 'Trigger: updated_at is the time of the last change.';

create function check_text(p_name text, p_value text, p_length integer) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless a text has 1 to p_length characters.
begin
  if p_value is null or length(p_value) not between 1 and p_length then
    perform refuse_argument(p_name, format('must have 1 to %s characters', p_length));
  end if;
end
$$;
comment on function check_text(text, text, integer) is 'Raise PH001 unless a text argument has 1 to so many characters.';

create function check_object(p_name text, p_value jsonb) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless the value is a JSON object of at most 1 MiB.
begin
  if p_value is null or jsonb_typeof(p_value) <> 'object' or pg_column_size(p_value) > 1048576 then
    perform refuse_argument(p_name, 'must be a JSON object of at most 1 MiB');
  end if;
end
$$;
comment on function check_object(text, jsonb) is 'Raise PH001 unless an argument is a JSON object.';

create function check_span(p_name text, p_value interval, p_least interval, p_most interval) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless an interval lies between two others.
begin
  if p_value is null or p_value not between p_least and p_most then
    perform refuse_argument(p_name, format('must be between %s and %s', p_least, p_most));
  end if;
end
$$;
comment on function check_span(text, interval, interval, interval) is 'Raise PH001 unless an interval argument is in range.';

create function check_limit(p_limit integer) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless a batch has 1 to 100000 rows: no statement of the upkeep is unbounded.
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    perform refuse_argument('limit', 'must be between 1 and 100000');
  end if;
end
$$;
comment on function check_limit(integer) is 'Raise PH001 unless a limit is in range.';

create function check_role(p_role text) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless it is a role that speaks in a conversation.
begin
  if p_role is null or p_role not in ('user', 'assistant', 'system', 'tool') then
    perform refuse_argument('role', format('%L is not a role', left(p_role, 60)), 'user, assistant, system or tool.');
  end if;
end
$$;
comment on function check_role(text) is 'Raise PH001 unless a role is one that speaks in a conversation.';

create function append_entry(p_entries jsonb, p_entry jsonb, p_keep integer) returns jsonb
language sql immutable set search_path from current as $$
-- A JSON array with one more element at its end; the oldest one goes when it had p_keep.
  select case when jsonb_array_length(p_entries) >= p_keep then p_entries - 0 else p_entries end || jsonb_build_array(p_entry);
$$;
comment on function append_entry(jsonb, jsonb, integer) is 'Append to a bounded JSON array.';

-- The names of the public API must be free: `create or replace` would take a function of yours.
--
-- Lock and duration: none.

do $$
declare
  v_name text;
begin
  select p.oid::regprocedure::text into v_name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = (parse_ident('platform.x'))[1] and p.proname::text = any (array[
    'enqueue_message', 'enqueue_messages', 'enqueue_payloads', 'cancel_own_message', 'is_new_message',
    'mark_message_processed', 'acquire_conversation_lock', 'release_conversation_lock', 'get_message_result',
    'get_next_queue_message', 'acquire_message_lock', 'release_message_lock', 'complete_messages',
    'fail_message', 'schedule_message_retry', 'extend_message_lease', 'cleanup_old_messages',
    'cleanup_stale_message_locks', 'cleanup_stuck_webhook_conversations', 'message_uuid', 'message_id_of',
    'public_api_rights'])
  order by 1 limit 1;
  if found then
    raise exception using errcode = 'duplicate_function',
      message = format(
        'function %s exists already, and the public API has one of that name; nothing was changed', v_name),
      hint = 'Rename it (`alter function ... rename to ...`), or give the API a schema of its own: the setting platform_schema.';
  end if;
end
$$;

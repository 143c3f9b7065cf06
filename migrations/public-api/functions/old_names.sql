-- The forms that old clients know (migrations/platform/functions/old_names.sql), where PostgREST and old code
-- find them: in a database that has the platform, too. The migrator applies this file again when the platform
-- is added.

do $$
begin
  if to_regprocedure('packhorse.get_next_queue_message(uuid, text)') is null then
    return;
  end if;

create or replace function platform.message_uuid(p_id bigint) returns uuid
language sql immutable strict parallel safe
return packhorse.message_uuid(p_id => p_id);
comment on function platform.message_uuid(bigint) is
  'packhorse.message_uuid, for callers that look in this schema.';

create or replace function platform.message_id_of(p_uuid uuid) returns bigint
language sql immutable strict parallel safe
return packhorse.message_id_of(p_uuid => p_uuid);
comment on function platform.message_id_of(uuid) is
  'packhorse.message_id_of, for callers that look in this schema.';

create or replace function platform.get_next_queue_message(p_lock_id uuid, p_queue text default 'default')
returns table (
  message_id uuid, message_external_id text, user_phone text, message_type text, payload jsonb,
  retry_count integer, correlation_id uuid
)
language sql volatile
  as 'select * from packhorse.get_next_queue_message(p_lock_id => p_lock_id, p_queue => p_queue)';
comment on function platform.get_next_queue_message(uuid, text) is
  'packhorse.get_next_queue_message, for callers that look in this schema.';

create or replace function platform.acquire_message_lock(p_message_id uuid, p_lock_id uuid,
  p_lock_duration_seconds integer default 60) returns boolean
language sql volatile
  as 'select packhorse.acquire_message_lock(p_message_id => p_message_id, p_lock_id => p_lock_id,
    p_lock_duration_seconds => p_lock_duration_seconds)';
comment on function platform.acquire_message_lock(uuid, uuid, integer) is
  'packhorse.acquire_message_lock, for callers that look in this schema.';

create or replace function platform.release_message_lock(p_message_id uuid, p_lock_id uuid,
  p_status text default 'completed') returns boolean
language sql volatile
  as 'select packhorse.release_message_lock(p_message_id => p_message_id, p_lock_id => p_lock_id, p_status => p_status)';
comment on function platform.release_message_lock(uuid, uuid, text) is
  'packhorse.release_message_lock, for callers that look in this schema.';

create or replace function platform.schedule_message_retry(p_message_id uuid,
  p_error_details jsonb default null) returns boolean
language sql volatile
  as 'select packhorse.schedule_message_retry(p_message_id => p_message_id, p_error_details => p_error_details)';
comment on function platform.schedule_message_retry(uuid, jsonb) is
  'packhorse.schedule_message_retry, for callers that look in this schema.';

create or replace function platform.acquire_conversation_lock(p_conversation_id uuid, p_lock_id uuid)
returns boolean
language sql volatile
  as 'select packhorse.acquire_conversation_lock(p_conversation_id => p_conversation_id, p_lock_id => p_lock_id)';
comment on function platform.acquire_conversation_lock(uuid, uuid) is
  'packhorse.acquire_conversation_lock, for callers that look in this schema.';

create or replace function platform.release_conversation_lock(p_conversation_id uuid, p_lock_id uuid)
returns boolean
language sql volatile
  as 'select packhorse.release_conversation_lock(p_conversation_id => p_conversation_id, p_lock_id => p_lock_id)';
comment on function platform.release_conversation_lock(uuid, uuid) is
  'packhorse.release_conversation_lock, for callers that look in this schema.';
end
$$;

-- The queue's functions as the old clients call them: ids are UUIDs (message_uuid), and a lock id stands for
-- the lease. They stand beside the queue's own forms, under the same names, in its schema; old_names.down.sql
-- takes them away.
--
-- A lock id is the lease holder. Each call looks up the lease token that goes with it and names that token to
-- the queue's own verb: a lock that was lost meanwhile changes nothing.

create or replace function packhorse.lock_token(p_message_id uuid, p_lock_id uuid) returns bigint
language sql stable as $$
-- The lease token of a running message that this lock id holds; null when it does not.
  select m.lease_token from packhorse.message_queue m
  where m.id = packhorse.message_id_of(p_message_id) and m.lease_holder = p_lock_id and m.state = 'running';
$$;
comment on function packhorse.lock_token(uuid, uuid) is
  'The lease token of a message that this lock id holds.';

create or replace function packhorse.get_next_queue_message(p_lock_id uuid, p_queue text default 'default')
returns table (
  message_id uuid, message_external_id text, user_phone text, message_type text, payload jsonb,
  retry_count integer, correlation_id uuid
)
language plpgsql as $$
-- The next due message of a queue, claimed for p_lock_id for five minutes; no row when there is none. By
-- priority (1 first), then age. correlation_id is null when it is no UUID. Raises PH001.
declare
  v_claimed packhorse.claimed_message;
  v_dedup_key text;
begin
  for v_claimed in select c.*
  from packhorse.claim_messages(p_lock_id, array[p_queue], 1, interval '5 minutes') c loop
    -- a statement of its own: the claim may have taken what was committed after ours began
    select m.dedup_key into v_dedup_key from packhorse.message_queue m where m.id = v_claimed.id;
    message_id := packhorse.message_uuid(v_claimed.id);
    message_external_id := coalesce(v_dedup_key, v_claimed.payload ->> 'message_id');
    user_phone := platform.normalize_phone(coalesce(v_claimed.payload ->> 'user_phone',
      v_claimed.payload ->> 'phone', v_claimed.payload ->> 'from'));
    message_type := v_claimed.message_type;
    payload := v_claimed.payload;
    retry_count := v_claimed.attempt - 1;
    correlation_id := case
      when lower(v_claimed.correlation_id) ~ '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$'
        then v_claimed.correlation_id::uuid end;
    return next;
  end loop;
end
$$;
comment on function packhorse.get_next_queue_message(uuid, text) is
  'For old clients: the next due message of a queue, claimed for five minutes.';

create or replace function packhorse.acquire_message_lock(p_message_id uuid, p_lock_id uuid,
  p_lock_duration_seconds integer default 60) returns boolean
language plpgsql as $$
-- True when the message is due and ours now, or is ours already (its lease then goes on for
-- p_lock_duration_seconds, 1..86400). False otherwise, also for an id that no message has. Locks the message.
-- Raises PH001.
declare
  v_id constant bigint := packhorse.message_id_of(p_message_id);
  v_lease interval;
  v_token bigint;
begin
  if p_lock_id is null then
    perform packhorse.refuse_argument('lock_id', 'must not be null',
      'A uuid that is fresh for every process start.');
  elsif p_lock_duration_seconds is null or p_lock_duration_seconds not between 1 and 86400 then
    perform packhorse.refuse_argument('lock_duration_seconds', 'must be between 1 and 86400');
  end if;
  v_lease := make_interval(secs => p_lock_duration_seconds);
  v_token := packhorse.lock_token(p_message_id, p_lock_id);
  if v_token is not null then
    return packhorse.extend_message_lease(v_id, v_token, v_lease) is not null;
  end if;
  return packhorse.acquire_message_lock(v_id, p_lock_id, v_lease) is not null;
end
$$;
comment on function packhorse.acquire_message_lock(uuid, uuid, integer) is
  'For old clients: claim one given message, or renew its lock; false when it is not to be had.';

create or replace function packhorse.release_message_lock(p_message_id uuid, p_lock_id uuid,
  p_status text default 'completed') returns boolean
language plpgsql as $$
-- End a message that this lock holds: `completed` is done, `failed` a dead letter; `pending` and `retry` hand
-- it back, due at once, without an attempt spent. False when the lock is not ours (any more): nothing
-- changes. Locks the message. Raises PH001.
declare
  v_id constant bigint := packhorse.message_id_of(p_message_id);
  v_token constant bigint := packhorse.lock_token(p_message_id, p_lock_id);
begin
  if p_status is null or p_status not in ('completed', 'failed', 'pending', 'retry') then
    perform packhorse.refuse_argument('status', format('%L is no status', left(p_status, 60)),
      'completed, failed, pending or retry.');
  elsif v_token is null then
    return false;
  elsif p_status = 'completed' then
    return cardinality(packhorse.complete_messages(array[v_id], array[v_token])) = 1;
  elsif p_status = 'failed' then
    return packhorse.bury_message(v_id, v_token, 'failed');
  end if;
  return packhorse.release_message(v_id, v_token);
end
$$;
comment on function packhorse.release_message_lock(uuid, uuid, text) is
  'For old clients: end or hand back a message that this lock holds.';

create or replace function packhorse.schedule_message_retry(p_message_id uuid,
  p_error_details jsonb default null) returns boolean
language plpgsql as $$
-- An attempt of a running message failed, whoever holds it. True: it runs again after the backoff of its
-- queue. False: no attempts are left and it is a dead letter; it was cancelled meanwhile; or no such message
-- runs. p_error_details: `errorName` and `error` (else the whole) say what happened. Locks the message.
declare
  v_id constant bigint := packhorse.message_id_of(p_message_id);
  v_token bigint;
begin
  select m.lease_token into v_token from packhorse.message_queue m where m.id = v_id and m.state = 'running';
  if not found then
    return false;
  end if;
  return packhorse.fail_message(v_id, v_token, p_error_details ->> 'errorName',
    left(coalesce(p_error_details ->> 'error', p_error_details::text), 2000))
    in ('retry', 'parked', 'snooze');
end
$$;
comment on function packhorse.schedule_message_retry(uuid, jsonb) is
  'For old clients: an attempt failed; false when no other one is left.';

create or replace function packhorse.acquire_conversation_lock(p_conversation_id uuid, p_lock_id uuid)
returns boolean
language sql volatile as $$
-- Lock a conversation for five minutes; false when another holds it. Raises PH001.
  select packhorse.acquire_conversation_lock(p_conversation_id::text, p_lock_id::text, interval '5 minutes');
$$;
comment on function packhorse.acquire_conversation_lock(uuid, uuid) is
  'For old clients: lock a conversation for five minutes; false when another holds it.';

create or replace function packhorse.release_conversation_lock(p_conversation_id uuid, p_lock_id uuid)
returns boolean
language sql volatile as $$
-- Give the lock of a conversation back; false when it was not ours.
  select packhorse.release_conversation_lock(p_conversation_id::text, p_lock_id::text);
$$;
comment on function packhorse.release_conversation_lock(uuid, uuid) is
  'For old clients: release the lock of a conversation; false when it was not ours.';

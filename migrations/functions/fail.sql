-- Fail: an attempt failed, and what becomes of its message (SPEC Q3, Q4, Q5).

create or replace function packhorse.fail_message(
  p_id bigint, p_token bigint, p_error_class text, p_error_message text, p_traceback text default null,
  p_frame text default null, p_max_attempts integer default null, p_delay interval default null,
  p_backoff_initial interval default null, p_backoff_max interval default null, p_details jsonb default null,
  p_options jsonb default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- An attempt failed: 'retry' when attempts are left, 'dead' when not, 'cancelled' when that was requested in
-- the meantime, 'lost' when the lease is gone; 'parked' or 'snooze' when a failure breaker lets it rest
-- (rest_after_failure). Attempts allowed and backoff: the message's own, else what the caller says of the
-- actor (p_...), else what workers that know the actor have said (failure_policy), else the queue's.
-- p_details: see failure_details; when it says that the error is not retryable, or not recoverable, no
-- attempts are left (SPEC W9). p_options: of the message from now on, if it is retried.
declare
  v_rejected constant boolean := coalesce(p_details @> '{"retryable": false}'::jsonb
    or p_details @> '{"recoverable": false}'::jsonb, false);
  v_last boolean;
  v_cancel boolean;
  v_policy record;
  v_breaker integer;
  v_rests text;
begin
  select p.* into v_policy from packhorse.message_queue m
  cross join lateral packhorse.failure_policy(m.message_type, m.options) p where m.id = p_id;
  select m.attempt >= coalesce(m.max_attempts, p_max_attempts, v_policy.max_attempts, q.max_attempts),
    m.cancel_requested_at is not null, q.failure_breaker
  into v_last, v_cancel, v_breaker
  from packhorse.message_queue m join packhorse.queues q on q.name = m.queue
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  if not found then
    return 'lost';
  elsif v_cancel then
    return case when cardinality(packhorse.finish_cancelled(array[p_id], array[p_token], 'cancel requested'))
      = 1
      then 'cancelled' else 'lost' end;
  elsif coalesce(v_policy.failure_breaker, v_breaker) is not null then
    v_rests := packhorse.rest_after_failure(p_id, p_token, p_error_class, p_error_message, p_frame,
      v_policy.failure_breaker, v_breaker);
    if v_rests is not null then
      return v_rests;
    end if;
  end if;
  if v_last or v_rejected then
    return case when packhorse.bury_message(p_id, p_token,
      case when v_rejected then 'rejected' else 'failed' end, p_error_class,
      p_error_message, p_traceback, p_frame, p_details) then 'dead' else 'lost' end;
  end if;
  return case when packhorse.schedule_message_retry(p_id, p_token, p_delay, p_error_class, p_error_message,
    coalesce(p_backoff_initial, v_policy.backoff_initial), coalesce(p_backoff_max, v_policy.backoff_max),
    p_details => p_details, p_traceback => p_traceback, p_options => p_options) is null then 'lost'
    else 'retry' end;
end
$$;
comment on function packhorse.fail_message(bigint, bigint, text, text, text, text, integer, interval,
  interval, interval, jsonb, jsonb)
  is 'An attempt failed: retry with backoff, dead letter, or a rest; returns what became of the message.';

create or replace function packhorse.reject_message(
  p_id bigint, p_token bigint, p_reason text, p_error_class text, p_error_message text,
  p_traceback text default null, p_frame text default null, p_details jsonb default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- An attempt failed and its code says that no other one can help (reason `rejected`, or `failed`): a dead
-- letter whatever attempts are left, unless a failure breaker lets it rest. p_details: see failure_details.
-- Returns what fail_message returns.
declare
  v_limits record;
  v_rests text;
begin
  select p.failure_breaker as actor, q.failure_breaker as queue into v_limits
  from packhorse.message_queue m join packhorse.queues q on q.name = m.queue
  cross join lateral packhorse.failure_policy(m.message_type, m.options) p
  where m.id = p_id and m.lease_token = p_token and m.state = 'running' and m.cancel_requested_at is null;
  if coalesce(v_limits.actor, v_limits.queue) is not null then
    v_rests := packhorse.rest_after_failure(p_id, p_token, p_error_class, p_error_message, p_frame,
      v_limits.actor, v_limits.queue);
  end if;
  return coalesce(v_rests,
    case when packhorse.bury_message(p_id, p_token, p_reason, p_error_class, p_error_message, p_traceback,
      p_frame, p_details) then 'dead' else 'lost' end);
end
$$;
comment on function packhorse.reject_message(bigint, bigint, text, text, text, text, text, jsonb)
  is 'An attempt failed and no other one can help: dead letter, unless a failure breaker lets it rest.';

create or replace function packhorse.send_exhausted(p_ids bigint[]) returns integer
language plpgsql as $$
-- These dead letters have used up what they had: enqueue a message for the actor that on_retry_exhausted
-- names, with what dramatiq gives it: the message, and its retries. For deaths that no code of the actor sees
-- (a crash, a hard limit). Returns how many were sent; an actor that no worker has registered is left out
-- with a warning.
declare
  v_row record;
  v_queue text;
  v_count integer := 0;
begin
  for v_row in
    select d.*, p.on_exhausted, coalesce(d.max_attempts, p.max_attempts, q.max_attempts) as allowed
    from packhorse.dead_letters d cross join lateral packhorse.failure_policy(d.message_type, d.options) p
    left join packhorse.queues q on q.name = d.queue
    where d.id = any (p_ids) and p.on_exhausted is not null
  loop
    select t.queue into v_queue from packhorse.message_types t where t.name = v_row.on_exhausted;
    if not found then
      raise warning 'on_retry_exhausted of message %: no worker has registered the actor %', v_row.id,
        left(v_row.on_exhausted, 100);
      continue;
    end if;
    perform packhorse.enqueue_message(v_queue, v_row.on_exhausted, '{}',
      jsonb_build_object('args', jsonb_build_array(
        jsonb_build_object('queue_name', v_row.queue, 'actor_name', v_row.message_type,
          'args', coalesce(v_row.options -> 'args', '[]'), 'kwargs', v_row.payload,
          'options', v_row.options - 'args'::text - 'message_id'::text - 'message_timestamp'::text,
          'message_id', coalesce(v_row.options ->> 'message_id', v_row.id::text),
          'message_timestamp', coalesce(v_row.options -> 'message_timestamp',
            to_jsonb(floor(extract(epoch from v_row.created_at) * 1000.0)::bigint))),
        jsonb_build_object('retries', greatest(v_row.attempt - 1, 0),
          'max_retries', coalesce(v_row.allowed, 1) - 1))),
      p_correlation_id => v_row.correlation_id);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function packhorse.send_exhausted(bigint[]) is
  'Tell the actors named by on_retry_exhausted of these dead letters; returns how many.';

create or replace function packhorse.fail_overdue_message(p_id bigint, p_token bigint, p_error_message text)
returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A handler ignored its time limit until its process was ended: the attempt has failed, by the policy that
-- decides about every other failure (failure_policy). Returns what fail_message returns.
declare
  v_answer text;
begin
  if exists (select from packhorse.message_queue m
    where m.id = p_id and m.lease_token = p_token and m.completion_refused_at is not null) then
    return 'lost'; -- it has succeeded after all, and waits for that to be written
  end if;
  v_answer := packhorse.fail_message(p_id, p_token, 'HardTimeLimitExceeded', p_error_message);
  if v_answer = 'dead' then
    perform packhorse.send_exhausted(array[p_id]);
  end if;
  return v_answer;
end
$$;
comment on function packhorse.fail_overdue_message(bigint, bigint, text) is
  'The attempt of a handler that ignored its hard time limit has failed.';

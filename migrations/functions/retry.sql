-- Retry with backoff, and the policy that decides it: message, else actor, else queue (SPEC Q3, Q5).

create or replace function packhorse.bounded_delay(p_delay interval) returns interval
language sql immutable
-- 0 to ten years; null stays null. What a handler did is always stored: its delay is bounded, not refused.
return case when p_delay is not null then least(greatest(p_delay, interval '0'), interval '3660 days') end;
comment on function packhorse.bounded_delay(interval) is 'A delay between 0 and ten years.';

create or replace function packhorse.message_backoff(
  p_attempt integer, p_initial interval, p_multiplier double precision, p_max interval,
  p_jitter double precision default 0
) returns interval
language sql volatile as $$
-- min(max, initial * multiplier^(attempt-1)), then up to p_jitter (0..1) of it taken off at random.
-- The exponent is compared before the power is taken: no attempt number and no setting overflows.
-- A jitter too small to matter is none: its product with random() could underflow, which is an error, too.
  select make_interval(secs =>
    (1::float8 - case when p_jitter > 1e-9::float8 then least(p_jitter, 1) else 0 end * random())
      * least(b.longest, case
    when b.first <= 0::float8 then 0
    when b.exponent * ln(b.factor) >= ln(greatest(b.longest / b.first, 1)) then b.longest
    else b.first * power(b.factor, b.exponent)
  end))
  from (
    select extract(epoch from packhorse.bounded_delay(p_initial))::double precision as first,
      extract(epoch from packhorse.bounded_delay(p_max))::double precision as longest,
      greatest(p_multiplier, 1) as factor, greatest(p_attempt, 1)::double precision - 1::float8 as exponent
  ) b;
$$;
comment on function packhorse.message_backoff(integer, interval, double precision, interval, double precision)
  is 'The delay before the next attempt; between 0 and max for every attempt number.';

create or replace function packhorse.retry_span(
  p_max_attempts integer, p_initial interval, p_multiplier double precision, p_max interval,
  p_jitter double precision default 0
) returns interval
language sql volatile as $$
-- From the first attempt to the last, when each fails at once and jitter takes off all that it may: an outage
-- that lasts longer makes dead letters. The sum of message_backoff over the retries; beyond a thousand of
-- them the delay is taken to stay as it is.
  select make_interval(secs => least(3e11::float8, (1::float8 - least(greatest(p_jitter, 0), 1)) * (
    coalesce(sum(extract(epoch from b.delay)::float8), 0)
    + greatest(p_max_attempts - 1001, 0)::float8 * coalesce(max(extract(epoch from b.delay)::float8), 0))))
  from (
    select packhorse.message_backoff(n, p_initial, p_multiplier, greatest(p_max, p_initial)) as delay
    from generate_series(1, least(p_max_attempts - 1, 1000)) as n) b;
$$;
comment on function packhorse.retry_span(integer, interval, double precision, interval, double precision)
  is 'How long an outage the retries of such a policy outlast, at least.';

create or replace function packhorse.policy_of_type(p_type text) returns jsonb
language plpgsql stable as $$
-- What the code of the actor says that runs the type: one of this name, else the one with the longest
-- pattern. {} without one.
declare
  v_policy jsonb;
begin
  select t.policy into v_policy from packhorse.message_types t where t.name = p_type;
  if not found then
    select t.policy into v_policy from packhorse.message_types t
    where right(t.name, 1) = '*' and packhorse.stands_for(t.name, p_type)
    order by length(t.name) desc limit 1;
  end if;
  return coalesce(v_policy, '{}');
end
$$;
comment on function packhorse.policy_of_type(text) is
  'What the code of the actor of this type says of retries and services.';

create or replace function packhorse.failure_policy(
  p_type text, p_options jsonb,
  out max_attempts integer, out backoff_initial interval, out backoff_max interval, out on_exhausted text,
  out failure_breaker integer
)
language plpgsql stable as $$
-- What the message's options say of retries, else its actor's code (message_types.policy, written by workers
-- when they start); null leaves it to the queue (SPEC Q5). For whoever ends an attempt without the code of
-- its actor: after a hard limit, a crash, or in SQL. The same precedence as
-- worker/attempt/middleware/retries.py. A value of the wrong type, which a producer may have written, counts
-- as not said.
declare
  v_actor jsonb := packhorse.policy_of_type(p_type);
  v_own jsonb := v_actor || p_options; -- the message's options win
begin
  if jsonb_typeof(v_actor -> 'max_attempts') = 'number' then
    max_attempts := least(greatest((v_actor ->> 'max_attempts')::numeric, 1), 1000000)::integer;
  elsif jsonb_typeof(v_own -> 'max_retries') = 'null' then
    max_attempts := 1000000;
  elsif jsonb_typeof(v_own -> 'max_retries') = 'number' then
    max_attempts := least(greatest((v_own ->> 'max_retries')::numeric + 1.0, 1), 1000000)::integer;
  end if;
  backoff_initial := packhorse.json_milliseconds(v_own -> 'min_backoff');
  backoff_max := packhorse.json_milliseconds(v_own -> 'max_backoff');
  if jsonb_typeof(v_actor -> 'failure_breaker') = 'number' then
    failure_breaker := least(greatest((v_actor ->> 'failure_breaker')::numeric, 1), 1000000)::integer;
  end if;
  on_exhausted := v_own ->> 'on_retry_exhausted';
end
$$;
comment on function packhorse.failure_policy(text, jsonb) is
  'What a message or the code of its actor says of retries; null leaves it to the queue.';

create or replace function packhorse.schedule_message_retry(
  p_id bigint, p_token bigint, p_delay interval default null,
  p_error_class text default null, p_error_message text default null,
  p_backoff_initial interval default null, p_backoff_max interval default null,
  p_backoff_multiplier double precision default null, p_details jsonb default null,
  p_traceback text default null, p_options jsonb default null
) returns timestamptz
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- running -> pending at now + delay, one UPDATE of the same row; null when the lease was lost. p_delay null:
-- the queue's backoff (each part can be overridden); the attempt stays counted. A message whose cancellation
-- was requested does not come back: it is cancelled. p_details: see failure_details. p_traceback: kept in the
-- history, bounded. p_options: what the options are from now on; null, or no object, leaves them.
declare
  v_run_at timestamptz;
  v_cancel boolean;
  v_error jsonb := jsonb_build_object('class', packhorse.bounded_text(p_error_class, 200),
    'message', packhorse.bounded_text(p_error_message, 2000), 'at', clock_timestamp());
  v_code text;
  v_details jsonb;
begin
  if p_details is not null then
    select f.error_code, f.error_details into v_code, v_details from packhorse.failure_details(p_details) f;
    v_error := v_error || jsonb_build_object('code', v_code, 'details', v_details);
  end if;
  update packhorse.message_queue m
  set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null,
    completion_refused_at = null,
      run_at = clock_timestamp()
        + coalesce(packhorse.bounded_delay(p_delay), packhorse.message_backoff(m.attempt,
        coalesce(p_backoff_initial, q.backoff_initial), coalesce(p_backoff_multiplier, q.backoff_multiplier),
        coalesce(p_backoff_max, greatest(q.backoff_max, p_backoff_initial)), q.backoff_jitter)),
      error = v_error, options
        = case when jsonb_typeof(p_options) = 'object' then p_options else m.options end,
      history = packhorse.append_history(m.history, m.attempt, 'retry', p_error_class, p_error_message,
        m.lease_holder, v_code, p_traceback)
  from packhorse.queues q
  where m.id = p_id and m.lease_token = p_token and m.state = 'running' and q.name = m.queue
  returning m.run_at, m.cancel_requested_at is not null into v_run_at, v_cancel;
  if v_cancel then
    perform packhorse.finish_cancelled(array[p_id], null, 'cancel requested');
  end if;
  return v_run_at;
end
$$;
comment on function packhorse.schedule_message_retry(bigint, bigint, interval, text, text, interval, interval,
  double precision, jsonb, text, jsonb)
  is 'running -> pending after the backoff; returns the new run_at, null when the lease was lost.';

create or replace function packhorse.retried_options(p_options jsonb, p_history jsonb) returns jsonb
language sql stable as $$
-- Used by the claim for a message that has failed before: its options, with the traceback of its last failure
-- and when that was (ms since 1970), as dramatiq's Retries leaves them in a message.
  select p_options || coalesce((
    select jsonb_strip_nulls(jsonb_build_object('traceback', h.entry -> 'traceback',
      'requeue_timestamp', floor(extract(epoch from (h.entry ->> 'at')::timestamptz) * 1000.0)::bigint))
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history
      else '[]' end) with ordinality as h (entry, place)
    where h.entry ->> 'event' = 'retry' order by h.place desc limit 1), '{}');
$$;
comment on function packhorse.retried_options(jsonb, jsonb) is
  'Options of a message that has failed before, with what its last failure left.';

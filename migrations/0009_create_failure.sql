-- Failure: retry with backoff, dead letter, and the ways back (SPEC Q3, Q4, Q5, P5).
--
-- Lock and duration: new objects only, milliseconds.

create function bounded_delay(p_delay interval) returns interval
language sql immutable
-- 0 to ten years; null stays null. What a handler did is always stored: its delay is bounded, not refused.
return case when p_delay is not null then least(greatest(p_delay, interval '0'), interval '3660 days') end;
comment on function bounded_delay(interval) is 'A delay between 0 and ten years.';

create function message_backoff(
  p_attempt integer, p_initial interval, p_multiplier double precision, p_max interval, p_jitter double precision default 0
) returns interval
language sql volatile set search_path from current as $$
-- min(max, initial * multiplier^(attempt-1)), then up to p_jitter (0..1) of it taken off at random.
-- The exponent is compared before the power is taken: no attempt number and no setting overflows.
-- A jitter too small to matter is none: its product with random() could underflow, which is an error, too.
  select make_interval(secs => (1 - case when p_jitter > 1e-9 then least(p_jitter, 1) else 0 end * random()) * least(b.longest, case
    when b.first <= 0 then 0
    when b.exponent * ln(b.factor) >= ln(greatest(b.longest / b.first, 1)) then b.longest
    else b.first * power(b.factor, b.exponent)
  end))
  from (
    select extract(epoch from bounded_delay(p_initial))::double precision as first,
      extract(epoch from bounded_delay(p_max))::double precision as longest,
      greatest(p_multiplier, 1) as factor, greatest(p_attempt, 1)::double precision - 1 as exponent
  ) b;
$$;
comment on function message_backoff(integer, interval, double precision, interval, double precision)
  is 'The delay before the next attempt; between 0 and max for every attempt number.';

create function bounded_text(p_text text, p_length integer) returns text
language sql immutable as $$
  select left(p_text, p_length);
$$;
comment on function bounded_text(text, integer) is 'A text of at most so many characters: what is stored about a failure is bounded.';

create function append_history(
  p_history jsonb, p_attempt integer, p_event text, p_error_class text, p_error_message text, p_holder uuid
) returns jsonb
language sql volatile set search_path from current as $$
-- The attempt history keeps the last 20 entries (bounded, SPEC Q3). What stands there and is no array (a row made by
-- hand) is left out: no ending of a message may fail for it.
  select coalesce(jsonb_agg(e.entry order by e.place), '[]') from (
    select h.entry, h.place
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history else '[]' end
      || jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
      'attempt', p_attempt, 'event', p_event, 'at', clock_timestamp(), 'error_class', bounded_text(p_error_class, 200),
      'error_message', bounded_text(p_error_message, 500), 'holder', p_holder)))) with ordinality as h (entry, place)
    order by h.place desc limit 20) e;
$$;
comment on function append_history(jsonb, integer, text, text, text, uuid) is 'One more entry in a bounded attempt history.';

create function history_tail(p_history jsonb, p_event text) returns integer
language sql immutable as $$
-- How many of the last entries of an attempt history are of this event, without another one between them.
  select count(*)::integer from (
    select bool_and(h.entry ->> 'event' = p_event) over (order by h.place desc) as alike
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history else '[]' end) with ordinality as h (entry, place)
  ) e where e.alike;
$$;
comment on function history_tail(jsonb, text) is 'How many entries at the end of an attempt history are of this event.';

create function json_milliseconds(p_value jsonb) returns interval
language sql immutable as $$
-- A JSON number of milliseconds as an interval of 0 to ten years; null for anything else.
  select case when jsonb_typeof(p_value) = 'number'
    then make_interval(secs => least(greatest((p_value #>> '{}')::numeric, 0), 316224000000)::double precision / 1000) end;
$$;
comment on function json_milliseconds(jsonb) is 'A JSON number of milliseconds as an interval; null for anything else.';

create function failure_policy(
  p_type text, p_options jsonb,
  out max_attempts integer, out backoff_initial interval, out backoff_max interval, out on_exhausted text
)
language plpgsql stable set search_path from current as $$
-- What the message's options say of retries, else its actor's code (message_types.policy, written by workers when they
-- start); null leaves it to the queue (SPEC Q5). For whoever ends an attempt without the code of its actor: after a hard
-- limit, a crash, or in SQL. The same precedence as worker/attempt/middleware/retries.py. A value of the wrong type, which a
-- producer may have written, counts as not said.
declare
  v_actor jsonb := coalesce((select t.policy from message_types t where t.name = p_type), '{}');
  v_own jsonb := v_actor || p_options; -- the message's options win
begin
  if jsonb_typeof(v_actor -> 'max_attempts') = 'number' then
    max_attempts := least(greatest((v_actor ->> 'max_attempts')::numeric, 1), 1000000)::integer;
  elsif jsonb_typeof(v_own -> 'max_retries') = 'null' then
    max_attempts := 1000000;
  elsif jsonb_typeof(v_own -> 'max_retries') = 'number' then
    max_attempts := least(greatest((v_own ->> 'max_retries')::numeric + 1, 1), 1000000)::integer;
  end if;
  backoff_initial := json_milliseconds(v_own -> 'min_backoff');
  backoff_max := json_milliseconds(v_own -> 'max_backoff');
  on_exhausted := v_own ->> 'on_retry_exhausted';
end
$$;
comment on function failure_policy(text, jsonb) is 'What a message or the code of its actor says of retries; null leaves it to the queue.';

create function schedule_message_retry(
  p_id bigint, p_token bigint, p_delay interval default null,
  p_error_class text default null, p_error_message text default null,
  p_backoff_initial interval default null, p_backoff_max interval default null, p_backoff_multiplier double precision default null
) returns timestamptz
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- running -> pending at now + delay, one UPDATE of the same row; null when the lease was lost.
-- p_delay null: the queue's backoff (each part can be overridden); the attempt stays counted.
-- A message whose cancellation was requested does not come back: it is cancelled.
declare
  v_run_at timestamptz;
  v_cancel boolean;
begin
  update message_queue m
  set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null, completion_refused_at = null,
      run_at = clock_timestamp() + coalesce(bounded_delay(p_delay), message_backoff(m.attempt,
        coalesce(p_backoff_initial, q.backoff_initial), coalesce(p_backoff_multiplier, q.backoff_multiplier),
        greatest(coalesce(p_backoff_max, q.backoff_max), coalesce(p_backoff_initial, interval '0')), q.backoff_jitter)),
      error = jsonb_build_object('class', bounded_text(p_error_class, 200), 'message', bounded_text(p_error_message, 2000), 'at', clock_timestamp()),
      history = append_history(m.history, m.attempt, 'retry', p_error_class, p_error_message, m.lease_holder)
  from queues q
  where m.id = p_id and m.lease_token = p_token and m.state = 'running' and q.name = m.queue
  returning m.run_at, m.cancel_requested_at is not null into v_run_at, v_cancel;
  if v_cancel then
    perform finish_cancelled(array[p_id], null, 'cancel requested');
  end if;
  return v_run_at;
end
$$;
comment on function schedule_message_retry(bigint, bigint, interval, text, text, interval, interval, double precision)
  is 'running -> pending after the backoff; returns the new run_at, null when the lease was lost.';

create function error_fingerprint(p_message_type text, p_error_class text, p_error_message text, p_frame text) returns text
language sql immutable as $$
-- Groups dead letters: type, error class, own top frame, message without numbers, quoted parts and hex.
  select md5(concat_ws('|', p_message_type, p_error_class, p_frame,
    left(regexp_replace(regexp_replace(left(coalesce(p_error_message, ''), 2000), '''[^'']*''|"[^"]*"', '*', 'g'),
      '[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*', '#', 'g'), 200)));
$$;
comment on function error_fingerprint(text, text, text, text) is 'Equal for failures with the same cause.';

create function move_to_dead_letters(
  p_ids bigint[], p_tokens bigint[], p_reason text, p_error_class text, p_error_message text, p_traceback text, p_frame text
) returns bigint[]
language plpgsql set search_path from current as $$
-- The only way into dead_letters, whatever the cause. With tokens: running messages whose lease still
-- holds. Without (null): messages that no process runs. Promotes the conversations unless the queue says
-- on_dead = 'block'. Returns the ids moved.
declare
  v_ids bigint[];
  v_keys text[];
begin
  perform set_config('packhorse.promotes', 'on', true);
  with buried as (
    delete from message_queue m
    where m.id = any (p_ids)
      and (case when p_tokens is null then m.state <> 'running' or m.completion_refused_at is not null
        else m.lease_token = any (p_tokens) and m.state = 'running' end)
    returning m.*
  ), moved as (
    insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message,
      traceback, fingerprint, attempt, max_attempts, crashes, conversation_key, concurrency_key, correlation_id,
      trace_context, history, lease_holder, blocks_conversation, created_at)
    select b.id, b.queue, b.message_type, b.payload, b.options, b.priority, p_reason, bounded_text(p_error_class, 200),
      bounded_text(p_error_message, 10000), bounded_text(p_traceback, 50000),
      error_fingerprint(b.message_type, coalesce(p_error_class, p_reason), p_error_message, p_frame),
      b.attempt, b.max_attempts, b.crashes, b.conversation_key, b.concurrency_key, b.correlation_id, b.trace_context,
      append_history(b.history, b.attempt, p_reason, p_error_class, p_error_message, b.lease_holder),
      b.lease_holder, b.conversation_key is not null and coalesce(q.on_dead = 'block', false), b.created_at
    from buried b left join queues q on q.name = b.queue  -- a row may name a queue that nobody has declared
    returning dead_letters.id, dead_letters.conversation_key, dead_letters.blocks_conversation
  )
  select array_agg(d.id),
    array_agg(distinct d.conversation_key) filter (where d.conversation_key is not null and not d.blocks_conversation)
  into v_ids, v_keys from moved d;
  if v_keys is not null then
    perform promote_conversations(v_keys);
  end if;
  perform set_config('packhorse.promotes', 'off', true);
  return coalesce(v_ids, '{}');
end
$$;
comment on function move_to_dead_letters(bigint[], bigint[], text, text, text, text, text)
  is 'Used by bury, fail, rescue: the one way into dead_letters.';

create function bury_message(
  p_id bigint, p_token bigint default null, p_reason text default 'buried',
  p_error_class text default null, p_error_message text default null, p_traceback text default null, p_frame text default null
) returns boolean
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Give the message up: it becomes a dead letter. With a token: a running message of that lease; without:
-- one that does not run. False when it was not there or the lease was lost. p_reason is one of a closed
-- set (say the rest in p_error_message), else PH001.
begin
  if p_reason is null or p_reason not in ('failed', 'rejected', 'quarantined', 'undecodable', 'unknown_type', 'buried') then
    perform refuse_argument('reason', format('%L is not a reason', left(p_reason, 60)),
      'failed, rejected, quarantined, undecodable, unknown_type or buried; put words of your own into p_error_message.');
  end if;
  return cardinality(move_to_dead_letters(array[p_id], case when p_token is null then null else array[p_token] end,
    p_reason, p_error_class, p_error_message, p_traceback, p_frame)) = 1;
end
$$;
comment on function bury_message(bigint, bigint, text, text, text, text, text) is 'Give a message up; false when the lease was lost.';

create function fail_message(
  p_id bigint, p_token bigint, p_error_class text, p_error_message text, p_traceback text default null,
  p_frame text default null, p_max_attempts integer default null, p_delay interval default null,
  p_backoff_initial interval default null, p_backoff_max interval default null
) returns text
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- An attempt failed: 'retry' when attempts are left, 'dead' when not, 'cancelled' when that was requested
-- in the meantime, 'lost' when the lease is gone.
-- Attempts allowed and backoff: the message's own, else what the caller says of the actor (p_...), else what workers
-- that know the actor have said (failure_policy), else the queue's.
declare
  v_last boolean;
  v_cancel boolean;
  v_policy record;
begin
  select p.* into v_policy from message_queue m cross join lateral failure_policy(m.message_type, m.options) p where m.id = p_id;
  select m.attempt >= coalesce(m.max_attempts, p_max_attempts, v_policy.max_attempts, q.max_attempts), m.cancel_requested_at is not null
  into v_last, v_cancel
  from message_queue m join queues q on q.name = m.queue
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  if not found then
    return 'lost';
  elsif v_cancel then
    return case when cardinality(finish_cancelled(array[p_id], array[p_token], 'cancel requested')) = 1
      then 'cancelled' else 'lost' end;
  elsif v_last then
    return case when bury_message(p_id, p_token, 'failed', p_error_class, p_error_message, p_traceback, p_frame)
      then 'dead' else 'lost' end;
  end if;
  return case when schedule_message_retry(p_id, p_token, p_delay, p_error_class, p_error_message,
    coalesce(p_backoff_initial, v_policy.backoff_initial), coalesce(p_backoff_max, v_policy.backoff_max)) is null then 'lost' else 'retry' end;
end
$$;
comment on function fail_message(bigint, bigint, text, text, text, text, integer, interval, interval, interval)
  is 'An attempt failed: retry with backoff or dead letter; returns retry, dead, cancelled or lost.';

create function snooze_message(
  p_id bigint, p_token bigint, p_delay interval, p_reason text default null, p_event text default 'snooze'
) returns boolean
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Later, and not a failure: running -> pending at now + p_delay, the attempt is given back.
-- Null when the lease was lost. A message whose cancellation was requested is cancelled instead. p_event: its name in the
-- history.
declare
  v_cancel boolean;
begin
  update message_queue m
  set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null, completion_refused_at = null,
      attempt = m.attempt - 1, run_at = clock_timestamp() + coalesce(bounded_delay(p_delay), interval '0'),
      history = append_history(m.history, m.attempt, p_event, null, p_reason, m.lease_holder)
  where m.id = p_id and m.lease_token = p_token and m.state = 'running'
  returning m.cancel_requested_at is not null into v_cancel;
  if v_cancel then
    perform finish_cancelled(array[p_id], null, 'cancel requested');
  end if;
  return case when v_cancel is not null then true end;
end
$$;
comment on function snooze_message(bigint, bigint, interval, text, text) is 'Later, not a failure; the attempt is given back. Null when the lease was lost.';

create function return_uncommitted_message(
  p_id bigint, p_token bigint, p_delay interval, p_reason text, p_limit integer default 5
) returns text
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- The transaction of a handler was not committed, and the handler may not be to blame: a cut connection, a locked row, a
-- completion that was refused. It runs again after p_delay, doubled each time in a row up to 30 s, and the attempt is
-- given back. But what happens to the same message p_limit times in a row (null: never) is a failed attempt: it may be the
-- message that does it. Returns 'snooze', or what fail_message returns.
declare
  v_before integer;
  v_answer text;
begin
  select history_tail(m.history, 'uncommitted') into v_before from message_queue m
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  if not found then
    return 'lost';
  elsif v_before + 1 >= p_limit then
    v_answer := fail_message(p_id, p_token, 'NotCompleted', p_reason);
    if v_answer = 'dead' then
      perform send_exhausted(array[p_id]);
    end if;
    return v_answer;
  end if;
  return case when snooze_message(p_id, p_token, message_backoff(v_before + 1, p_delay, 2, interval '30 seconds'),
    p_reason, 'uncommitted') then 'snooze' else 'lost' end;
end
$$;
comment on function return_uncommitted_message(bigint, bigint, interval, text, integer)
  is 'A handler''s transaction was not committed: run it again; several times in a row are a failed attempt.';

create function release_messages(p_ids bigint[], p_tokens bigint[], p_reason text default null) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Hand messages back: running -> pending, due as before, the attempt is given back. Returns how many.
-- p_reason: why handlers that had started were interrupted; it stands in the history, as every start does. Null: none had.
-- Those whose cancellation was requested are cancelled instead.
declare
  v_count integer;
  v_cancelled bigint[];
  v_queues text[];
begin
  with released as (
    update message_queue m
    set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null, completion_refused_at = null,
        attempt = m.attempt - 1,
        history = case when p_reason is null then m.history
          else append_history(m.history, m.attempt, 'release', null, p_reason, m.lease_holder) end
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning m.id, m.queue::text, m.cancel_requested_at
  )
  select count(*), array_agg(r.id) filter (where r.cancel_requested_at is not null), array_agg(distinct r.queue)
  into v_count, v_cancelled, v_queues from released r;
  if v_cancelled is not null then
    perform finish_cancelled(v_cancelled, null, 'cancel requested');
  end if;
  perform wake_queue(q.name) from unnest(v_queues) as q (name);
  return v_count;
end
$$;
comment on function release_messages(bigint[], bigint[], text) is 'Hand messages back without spending an attempt; returns how many.';

create function release_unknown_messages(p_holder uuid, p_known bigint[]) returns integer
language sql set search_path from current as $$
-- The connection broke after a claim had committed and before its answer came: what is leased to p_holder and is not
-- among p_known never started there. Hand it back; returns how many.
  select coalesce(release_messages(array_agg(m.id), array_agg(m.lease_token)), 0) from message_queue m
  where m.lease_token is not null and m.lease_holder = p_holder and m.id <> all (p_known) and m.completion_refused_at is null
  having count(*) > 0;
$$;
comment on function release_unknown_messages(uuid, bigint[]) is 'Hand back what a claim leased to this holder whose answer was lost; returns how many.';

create function release_message(p_id bigint, p_token bigint) returns boolean
language sql volatile set search_path from current as $$
  select release_messages(array[p_id], array[p_token]) = 1;
$$;
comment on function release_message(bigint, bigint) is 'Hand one unstarted message back; false when the lease was lost.';

create function extend_message_lease(p_id bigint, p_token bigint, p_lease interval default '5 minutes') returns timestamptz
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- The lease goes on until now + p_lease (1 second to 1 day, else PH001); returns its end, null when it was
-- lost. A HOT update.
declare
  v_end timestamptz;
begin
  perform check_lease(p_lease);
  update message_queue m set lease_expires_at = clock_timestamp() + p_lease
  where m.id = p_id and m.lease_token = p_token and m.state = 'running'
  returning m.lease_expires_at into v_end;
  return v_end;
end
$$;
comment on function extend_message_lease(bigint, bigint, interval) is 'The lease of one message goes on; returns its new end, null when it was lost.';

create function archive_cancelled(p_ids bigint[], p_tokens bigint[], p_reason text)
returns table (id bigint, conversation_key text)
language sql volatile set search_path from current as $$
-- Delete messages and archive them as cancelled; the fence is finish_cancelled's.
  with gone as (
    delete from message_queue m
    where m.id = any (p_ids)
      and (case when p_tokens is null then m.state <> 'running' or m.completion_refused_at is not null
        else m.lease_token = any (p_tokens) and m.state = 'running' end)
    returning m.*
  ), kept as (
    insert into message_archive (id, queue, message_type, payload, options, priority, state, reason, attempt, crashes,
      conversation_key, correlation_id, trace_context, error, history, lease_holder, created_at, claimed_at)
    select g.id, g.queue, g.message_type, g.payload, g.options, g.priority, 'cancelled', bounded_text(p_reason, 1000), g.attempt,
      g.crashes, g.conversation_key, g.correlation_id, g.trace_context, g.error, g.history, g.lease_holder, g.created_at,
      g.claimed_at
    from gone g
  )
  select g.id, g.conversation_key::text from gone g;
$$;
comment on function archive_cancelled(bigint[], bigint[], text) is 'Used by finish_cancelled: delete messages and archive them as cancelled.';

create function finish_cancelled(p_ids bigint[], p_tokens bigint[], p_reason text) returns bigint[]
language plpgsql set search_path from current as $$
-- The only way to `cancelled`: with tokens for running messages, without for those that do not run. A
-- missing archive partition is made and the statement repeated. Returns the ids.
declare
  v_ids bigint[];
  v_keys text[];
begin
  perform set_config('packhorse.promotes', 'on', true);
  begin
    select array_agg(a.id), array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into v_ids, v_keys from archive_cancelled(p_ids, p_tokens, p_reason) a;
  exception when check_violation then
    perform ensure_message_archive_partitions();
    select array_agg(a.id), array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into v_ids, v_keys from archive_cancelled(p_ids, p_tokens, p_reason) a;
  end;
  if v_keys is not null then
    perform promote_conversations(v_keys);
  end if;
  perform set_config('packhorse.promotes', 'off', true);
  return coalesce(v_ids, '{}');
end
$$;
comment on function finish_cancelled(bigint[], bigint[], text) is 'Used by cancel and expire: the one way to cancelled.';

create function cancel_message(
  p_id bigint, p_reason text default null, p_operator text default current_user, p_token bigint default null
) returns text
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Stop and do not retry. Returns 'cancelled' (it did not run), 'requested' (it runs: the worker interrupts
-- the handler), 'gone' (nothing alive has this id). With p_token: the holder itself ends its message.
begin
  if p_token is not null then
    return case when cardinality(finish_cancelled(array[p_id], array[p_token], p_reason)) = 1 then 'cancelled' else 'gone' end;
  end if;
  loop
    if cardinality(finish_cancelled(array[p_id], null, p_reason)) = 1 then
      insert into operator_actions (action, operator, reason, message_id) values ('cancel', p_operator, p_reason, p_id);
      return 'cancelled';
    end if;
    update message_queue set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
    where id = p_id and state = 'running';
    if found then
      insert into operator_actions (action, operator, reason, message_id) values ('request_cancel', p_operator, p_reason, p_id);
      return 'requested';
    elsif not exists (select from message_queue where id = p_id) then
      return 'gone';
    end if;
    -- its holder gave it back between the two statements: look again
  end loop;
end
$$;
comment on function cancel_message(bigint, text, text, bigint) is 'Stop a message: cancelled, requested (it runs) or gone.';

create function expire_messages(p_limit integer default 1000) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Messages past expires_at that do not run become cancelled with reason "expired"; at most p_limit. One whose
-- successor in its conversation is locked by somebody waits for that, alone.
declare
  v_ids bigint[];
  v_id bigint;
  v_count integer := 0;
begin
  perform check_batch(p_limit);
  v_ids := array(
    select m.id from message_queue m
    where m.expires_at <= clock_timestamp() and m.state <> 'running'
    order by m.expires_at limit p_limit for update skip locked);
  begin
    return cardinality(finish_cancelled(v_ids, null, 'expired'));
  exception when lock_not_available then
    perform set_config('lock_timeout', '1ms', true); -- waited once for all of them
  end;
  foreach v_id in array v_ids loop
    begin
      v_count := v_count + cardinality(finish_cancelled(array[v_id], null, 'expired'));
    exception when lock_not_available then
      null;
    end;
  end loop;
  return v_count;
end
$$;
comment on function expire_messages(integer) is 'Cancel messages that are not worth doing after expires_at; returns how many.';

-- Enqueue: one row, in the caller's transaction (SPEC Q2, Q5, Q6, Q9).
--
-- A new message is always `pending`; that it has to wait behind an earlier message of its conversation
-- is found out at the claim (conversations.sql). So a producer takes no lock on the conversation, waits for
-- nobody and deadlocks with nobody, however long its transaction lasts.
--
-- These functions run with the rights of their owner: a producer has no right on any table (rights.sql).

create or replace function packhorse.is_readable_json(p_value jsonb) returns boolean
language sql immutable parallel safe as $$
  -- as the domain message_json: so deep needs more than 2000 bytes, and such a number more than 4300 as text
  -- (1e5000 needs few as jsonb)
  select p_value is null or (pg_column_size(p_value) <= 2000 and octet_length(p_value::text) <= 4300)
    or not (pg_catalog.jsonb_path_exists(p_value,
        'strict $.**{500 to last} ? (@.type() == "object" || @.type() == "array")')
      or pg_catalog.jsonb_path_exists(p_value,
        'strict $.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))'))
$$;
comment on function packhorse.is_readable_json(jsonb)
  is 'Is it nested at most 500 levels deep, and are its numbers of at most 4300 digits? Python reads no more.';

create or replace function packhorse.is_enqueueable(
  p_message_type text, p_payload jsonb, p_options jsonb, p_priority integer, p_run_at timestamptz,
  p_max_attempts integer, p_conversation_key text, p_correlation_id text, p_trace_context text,
  p_expires_at timestamptz, p_concurrency_key text, p_fairness_key text
) returns boolean
language sql stable as $$
-- True: nothing is wrong with these arguments of an enqueue. Else check_enqueue_arguments says what, if
-- anything. Small SQL without a SET, so that the planner folds it into enqueue_message: good input pays one
-- expression.
  select p_priority between 1 and 10 and isfinite(p_run_at)
    and p_run_at <= current_timestamp + interval '3660 days'
    and (p_max_attempts is null or p_max_attempts between 1 and 1000000)
    and (p_conversation_key is null or length(p_conversation_key) between 1 and 500)
    and (p_concurrency_key is null or length(p_concurrency_key) between 1 and 500)
    and (p_fairness_key is null or length(p_fairness_key) between 1 and 500)
    and (p_correlation_id is null or length(p_correlation_id) <= 500)
    and (p_trace_context is null or length(p_trace_context) <= 1000)
    and (p_expires_at is null or p_expires_at > p_run_at)
    and jsonb_typeof(p_payload) = 'object' and pg_column_size(p_payload) <= 1048576
    and packhorse.is_readable_json(p_payload)
    and jsonb_typeof(p_options) = 'object' and pg_column_size(p_options) <= 1048576
    and packhorse.is_readable_json(p_options)
    and p_message_type ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$';
$$;
comment on function packhorse.is_enqueueable(text, jsonb, jsonb, integer, timestamptz, integer, text, text,
  text, timestamptz, text, text) is 'Used by enqueue_message: is nothing wrong with its arguments?';

create or replace function packhorse.check_enqueue_json(p_payload jsonb, p_options jsonb) returns void
language plpgsql immutable as $$
-- Raise PH001 for a payload, or options, that no message can have.
declare
  v_deep constant text := 'is nested more than 500 levels deep, or holds a number of more than 4300 digits';
begin
  if p_payload is null or jsonb_typeof(p_payload) <> 'object' then
    perform packhorse.refuse_argument('payload',
      format('must be a JSON object, not %s', coalesce(jsonb_typeof(p_payload), 'null')),
      'The keys of the object are the keyword arguments of the handler.');
  elsif pg_column_size(p_payload) > 1048576 then
    perform packhorse.refuse_argument('payload',
      format('%s bytes, at most 1048576', pg_column_size(p_payload)),
      'Store the large part elsewhere and send its key.');
  elsif not packhorse.is_readable_json(p_payload) then
    perform packhorse.refuse_argument('payload', v_deep,
      'Readers in other languages stop there: send deep data and long numbers as texts.');
  elsif not packhorse.is_readable_json(p_options) then
    perform packhorse.refuse_argument('options', v_deep);
  elsif p_options is null or jsonb_typeof(p_options) <> 'object' or pg_column_size(p_options) > 1048576 then
    perform packhorse.refuse_argument('options', 'must be a JSON object of at most 1 MiB');
  end if;
end
$$;
comment on function packhorse.check_enqueue_json(jsonb, jsonb)
  is 'Used by check_enqueue_arguments: payload and options.';

create or replace function packhorse.check_enqueue_arguments(
  p_message_type text, p_payload jsonb, p_options jsonb, p_priority integer, p_run_at timestamptz,
  p_max_attempts integer, p_conversation_key text, p_dedup_key text, p_dedup_window interval,
  p_concurrency_key text, p_correlation_id text default null, p_trace_context text default null,
  p_expires_at timestamptz default null, p_given_run_at timestamptz default null,
  p_fairness_key text default null
) returns void
language plpgsql stable as $$
-- Explain the first bad argument. Called when an insert was refused, so that good input pays nothing.
-- p_run_at: null when the delay is absurd, or was given beside p_given_run_at.
begin
  if p_run_at is null then
    perform packhorse.refuse_delay(p_given_run_at);
  end if;
  if p_message_type is null or p_message_type !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform packhorse.refuse_argument('message_type',
      format('%L is not a message type', left(p_message_type, 120)),
      'Use the actor''s name: a letter or underscore, then letters, digits, dot, underscore or dash.');
  end if;
  perform packhorse.check_enqueue_json(p_payload, p_options);
  if p_priority is null or p_priority not between 1 and 10 then
    perform packhorse.refuse_argument('priority',
      format('%s is out of range', coalesce(p_priority::text, 'null')), '1 (first) to 10 (last), default 5.');
  elsif not isfinite(p_run_at) or p_run_at > clock_timestamp() + interval '3660 days' then
    perform packhorse.refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  elsif p_max_attempts not between 1 and 1000000 then
    perform packhorse.refuse_argument('max_attempts', format('%s is out of range', p_max_attempts),
      '1 to 1000000.');
  elsif length(p_conversation_key) not between 1 and 500 then
    perform packhorse.refuse_argument('conversation_key', 'must have 1 to 500 characters');
  elsif length(p_concurrency_key) not between 1 and 500 then
    perform packhorse.refuse_argument('concurrency_key', 'must have 1 to 500 characters');
  elsif length(p_fairness_key) not between 1 and 500 then
    perform packhorse.refuse_argument('fairness_key', 'must have 1 to 500 characters');
  elsif length(p_dedup_key) not between 1 and 500 then
    perform packhorse.refuse_argument('dedup_key', 'must have 1 to 500 characters');
  elsif p_dedup_key is null and p_dedup_window <> '5 minutes' then
    perform packhorse.refuse_argument('dedup_window', 'without dedup_key it means nothing',
      'Give the key, too.');
  elsif p_dedup_key is not null and coalesce(p_dedup_window,
    '-1 s') not between interval '0' and '366 days' then
    perform packhorse.refuse_argument('dedup_window', 'must be between 0 and 366 days');
  elsif length(p_correlation_id) > 500 then
    perform packhorse.refuse_argument('correlation_id', 'must have at most 500 characters');
  elsif length(p_trace_context) > 1000 then
    perform packhorse.refuse_argument('trace_context', 'must have at most 1000 characters',
      'traceparent, or traceparent tracestate.');
  -- one that is over already may come: it ends as expired
  elsif p_expires_at <= p_run_at and p_run_at > clock_timestamp() then
    perform packhorse.refuse_argument('expires_at', 'the message could never start',
      'It must be later than run_at, or now and the delay.');
  end if;
end
$$;
comment on function packhorse.check_enqueue_arguments(text, jsonb, jsonb, integer, timestamptz, integer, text,
  text, interval, text, text, text, timestamptz, timestamptz, text)
  is 'Raise PH001 for the first bad argument of an enqueue.';

create or replace function packhorse.open_dedup_window(p_queue text, p_dedup_key text, p_until timestamptz)
returns bigint
language plpgsql as $$
-- Null: the window of this key is the caller's, who stores the id of his message in it (fill_dedup_window).
-- Else the message that the open window belongs to.
begin
  if p_dedup_key is null then
    return null;
  end if;
  insert into packhorse.message_dedup as d (queue, dedup_key, message_id, expires_at)
  values (p_queue, p_dedup_key, 0, p_until) -- nobody sees the row before the caller has stored the id
  on conflict on constraint message_dedup_pkey do update
    set message_id = excluded.message_id, expires_at = excluded.expires_at
    where d.expires_at <= clock_timestamp();
  if found then
    return null;
  end if;
  return (
    select d.message_id from packhorse.message_dedup d where d.queue = p_queue and d.dedup_key = p_dedup_key);
end
$$;
comment on function packhorse.open_dedup_window(text, text, timestamptz)
  is 'Used by enqueue_message: open the dedup window of a key, or say whose it is.';

create or replace function packhorse.fill_dedup_window(p_queue text, p_dedup_key text, p_message_id bigint)
returns void
language sql volatile as $$
  update packhorse.message_dedup d set message_id = p_message_id
  where d.queue = p_queue and d.dedup_key = p_dedup_key;
$$;
comment on function packhorse.fill_dedup_window(text, text, bigint)
  is 'Used by enqueue_message: the message to which the window of a key belongs.';

create or replace function packhorse.start_time(p_run_at timestamptz, p_delay interval, p_now timestamptz)
returns timestamptz
language sql stable as $$
-- Null: there is no such time (refuse_delay says why). The delay is compared before it is added: the sum of
-- now and an absurd one is an error without a name.
  select case when p_delay is null then coalesce(p_run_at, p_now)
    when p_run_at is null and p_delay between interval '-3660 days' and interval '3660 days'
    then p_now + p_delay end;
$$;
comment on function packhorse.start_time(timestamptz, interval, timestamptz)
  is 'Used by enqueue_message: when a message may start; null when delay and run_at do not say it.';

create or replace function packhorse.enqueue_message(
  p_queue text, p_message_type text, p_payload jsonb default '{}', p_options jsonb default '{}',
  p_priority integer default 5, p_delay interval default null, p_run_at timestamptz default null,
  p_max_attempts integer default null, p_conversation_key text default null, p_dedup_key text default null,
  p_dedup_window interval default '5 minutes', p_correlation_id text default null,
  p_trace_context text default null, p_expires_at timestamptz default null,
  p_concurrency_key text default null, p_pending_key text default null, p_when_pending text default null,
  p_debounce interval default null, p_max_wait interval default null, p_fairness_key text default null,
  out message_id bigint, out duplicate boolean, out merged boolean
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Put one message on a queue. p_dedup_key: a second enqueue inside the window returns the first id and
-- inserts nothing. p_pending_key, p_debounce: see pending.sql. duplicate: no row was made; merged: the
-- payload went into an older one. Locks the rows of both keys, so that callers at the same instant agree.
-- Raises PH001 for a bad argument, PH002 for an unknown queue.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at constant timestamptz := packhorse.start_time(p_run_at, p_delay, v_now);
  v_wake boolean;
  v_pending record;
begin
  merged := false;
  select w.wake_until > v_now and (w.attended_until is null or w.attended_until <= v_now) into v_wake
  from packhorse.queue_wakeups w where w.queue = p_queue;
  if not found then
    perform packhorse.require_queue(p_queue);
  end if;
  if p_dedup_key is not null or p_dedup_window <> '5 minutes' or packhorse.is_enqueueable(p_message_type,
      p_payload, p_options, p_priority, v_run_at, p_max_attempts, p_conversation_key, p_correlation_id,
      p_trace_context, p_expires_at, p_concurrency_key, p_fairness_key) is not true then
    perform packhorse.check_enqueue_arguments(p_message_type, p_payload, p_options, p_priority, v_run_at,
      p_max_attempts, p_conversation_key, p_dedup_key, p_dedup_window, p_concurrency_key, p_correlation_id,
      p_trace_context, p_expires_at, p_run_at, p_fairness_key);
    message_id := packhorse.open_dedup_window(p_queue, p_dedup_key, v_now + p_dedup_window);
  end if;
  duplicate := message_id is not null;
  if duplicate then
    return;
  elsif p_pending_key is null and p_when_pending is null and p_debounce is null and p_max_wait is null then
    insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at,
      max_attempts, conversation_key, dedup_key, correlation_id, trace_context, expires_at, concurrency_key,
      fairness_key)
    values (p_queue, p_message_type, p_payload, p_options, p_priority, v_run_at, p_max_attempts,
      p_conversation_key, p_dedup_key, coalesce(p_correlation_id, gen_random_uuid()::text), p_trace_context,
      p_expires_at, p_concurrency_key, p_fairness_key);
    message_id := currval('packhorse.message_queue_id_seq'); -- drawn by the insert; cheaper than to return it
  else
    v_pending := packhorse.enqueue_pending(p_queue, p_message_type, p_payload, p_options, p_priority,
      v_run_at, p_delay is not null or p_run_at is not null, p_max_attempts, p_conversation_key, p_dedup_key,
      p_correlation_id, p_trace_context, p_expires_at, p_concurrency_key, p_pending_key, p_when_pending,
      p_debounce, p_max_wait, p_fairness_key, v_now);
    message_id := v_pending.message_id;
    duplicate := v_pending.duplicate;
    merged := v_pending.merged;
    v_wake := v_wake and v_pending.announce;
  end if;
  if p_dedup_key is not null then
    perform packhorse.fill_dedup_window(p_queue, p_dedup_key, message_id);
  end if;
  if v_wake then -- also for a later one: the sleeper sets its alarm
    perform pg_notify('packhorse_wake', p_queue || '@' || pg_current_xact_id());
  end if;
end
$$;
comment on function packhorse.enqueue_message(text, text, jsonb, jsonb, integer, interval, timestamptz,
  integer, text, text, interval, text, text, timestamptz, text, text, text, interval, interval,
  text) is 'Put one message on a queue, in the caller''s transaction; returns its id and whether it was a duplicate.';

create or replace function packhorse.types_instead(p_id bigint) returns text
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- Null: some worker has registered the type of this message, which was enqueued just now, or no worker lives.
-- Else up to five types that may have been meant, with commas between them: a producer is told these, as
-- require_queue tells it a queue. Volatile: it sees the row.
  select (select coalesce(string_agg(n.name, ','), '') from (
    select t.name::text from packhorse.message_types t
    order by (left(t.name, 3) = left(m.message_type, 3)) desc, abs(length(t.name) - length(m.message_type)),
      t.name
    limit 5) n)
  from packhorse.message_queue m
  where m.id = p_id
    and not exists (select from packhorse.message_types t where packhorse.stands_for(t.name, m.message_type))
    and exists (select from packhorse.workers w where w.last_seen_at > clock_timestamp() - w.lease_duration)
$$;
comment on function packhorse.types_instead(bigint)
  is 'Does no worker know the type of a new message? Then names that are like it.';

-- Enqueue: one row, in the caller's transaction (SPEC Q2, Q5, Q6, Q9).
--
-- A new message is always `pending`; that it has to wait behind an earlier message of its conversation
-- is found out at the claim (see 0007). So a producer takes no lock on the conversation, waits for
-- nobody and deadlocks with nobody, however long its transaction lasts.
-- Lock and duration: new objects only, milliseconds.

create function refuse_argument(p_name text, p_problem text, p_hint text default '') returns void
language plpgsql immutable as $$
-- Raise PH001 for one argument: its name, what is wrong, what to do.
begin
  if p_hint = '' then
    raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem);
  end if;
  raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem), hint = p_hint;
end
$$;
comment on function refuse_argument(text, text, text) is 'Raise PH001 that names the argument.';

create function refuse_delay(p_run_at timestamptz) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 for a delay: beside a run_at, or too long.
begin
  perform refuse_argument('delay', case when p_run_at is null then 'must be at most ten years' else 'give delay or run_at, not both' end);
end
$$;
comment on function refuse_delay(timestamptz) is 'Raise PH001 for a delay beside a run_at, or for one that is too long.';

create function check_lease(p_lease interval) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless a lease is 1 second to 1 day long: an endless one would lose its message for ever.
begin
  if p_lease is null or p_lease not between interval '1 second' and interval '1 day' then
    perform refuse_argument('lease', format('%s is out of range', coalesce(p_lease::text, 'null')), '1 second to 1 day.');
  end if;
end
$$;
comment on function check_lease(interval) is 'Raise PH001 unless the length of a lease is in range.';

create function check_age(p_name text, p_age interval) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless an age is 0 to 1000 years: a negative one would mean the future, none at all everything or nothing.
begin
  if p_age is null or p_age not between interval '0' and interval '1000 years' then
    perform refuse_argument(p_name, format('%s is out of range', coalesce(p_age::text, 'null')), '0 to 1000 years.');
  end if;
end
$$;
comment on function check_age(text, interval) is 'Raise PH001 unless an age is in range.';

create function check_batch(p_limit integer) returns void
language plpgsql immutable set search_path from current as $$
-- Raise PH001 unless a batch has 1 to 100000 rows: no statement of the upkeep is unbounded.
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    perform refuse_argument('limit', format('%s is out of range', coalesce(p_limit::text, 'null')), '1 to 100000.');
  end if;
end
$$;
comment on function check_batch(integer) is 'Raise PH001 unless the size of a batch is in range.';

create function check_enqueue_arguments(
  p_message_type text, p_payload jsonb, p_options jsonb, p_priority integer, p_run_at timestamptz,
  p_max_attempts integer, p_conversation_key text, p_dedup_key text, p_dedup_window interval, p_concurrency_key text,
  p_correlation_id text default null, p_trace_context text default null, p_expires_at timestamptz default null
) returns void
language plpgsql stable set search_path from current as $$
-- Explain the first bad argument. Called when an insert was refused, so that good input pays nothing.
begin
  if p_message_type is null or p_message_type !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform refuse_argument('message_type', format('%L is not a message type', left(p_message_type, 120)),
      'Use the actor''s name: a letter or underscore, then letters, digits, dot, underscore or dash.');
  elsif p_payload is null or jsonb_typeof(p_payload) <> 'object' then
    perform refuse_argument('payload', format('must be a JSON object, not %s', coalesce(jsonb_typeof(p_payload), 'null')),
      'The keys of the object are the keyword arguments of the handler.');
  elsif pg_column_size(p_payload) > 1048576 then
    perform refuse_argument('payload', format('%s bytes, at most 1048576', pg_column_size(p_payload)),
      'Store the large part elsewhere and send its key.');
  elsif p_options is null or jsonb_typeof(p_options) <> 'object' or pg_column_size(p_options) > 1048576 then
    perform refuse_argument('options', 'must be a JSON object of at most 1 MiB');
  elsif p_priority is null or p_priority not between 1 and 10 then
    perform refuse_argument('priority', format('%s is out of range', coalesce(p_priority::text, 'null')), '1 (first) to 10 (last), default 5.');
  elsif not isfinite(p_run_at) or p_run_at > clock_timestamp() + interval '3660 days' then
    perform refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  elsif p_max_attempts not between 1 and 1000000 then
    perform refuse_argument('max_attempts', format('%s is out of range', p_max_attempts), '1 to 1000000.');
  elsif length(p_conversation_key) not between 1 and 500 then
    perform refuse_argument('conversation_key', 'must have 1 to 500 characters');
  elsif length(p_concurrency_key) not between 1 and 500 then
    perform refuse_argument('concurrency_key', 'must have 1 to 500 characters');
  elsif length(p_dedup_key) not between 1 and 500 then
    perform refuse_argument('dedup_key', 'must have 1 to 500 characters');
  elsif p_dedup_window not between interval '0' and interval '366 days' then
    perform refuse_argument('dedup_window', 'must be between 0 and 366 days');
  elsif length(p_correlation_id) > 500 then
    perform refuse_argument('correlation_id', 'must have at most 500 characters');
  elsif length(p_trace_context) > 1000 then
    perform refuse_argument('trace_context', 'must have at most 1000 characters', 'traceparent, or traceparent tracestate.');
  elsif p_expires_at <= p_run_at and p_run_at > clock_timestamp() then -- one that is over already may come: it ends as expired
    perform refuse_argument('expires_at', 'the message could never start', 'It must be later than run_at, or now and the delay.');
  end if;
end
$$;
comment on function check_enqueue_arguments(text, jsonb, jsonb, integer, timestamptz, integer, text, text, interval, text, text, text, timestamptz)
  is 'Raise PH001 for the first bad argument of an enqueue.';

create function enqueue_message(
  p_queue            text,
  p_message_type     text,
  p_payload          jsonb       default '{}',
  p_options          jsonb       default '{}',
  p_priority         integer     default 5,
  p_delay            interval    default null,
  p_run_at           timestamptz default null,
  p_max_attempts     integer     default null,
  p_conversation_key text        default null,
  p_dedup_key        text        default null,
  p_dedup_window     interval    default '5 minutes',
  p_correlation_id   text        default null,
  p_trace_context    text        default null,
  p_expires_at       timestamptz default null,
  p_concurrency_key  text        default null,
  out message_id     bigint,
  out duplicate      boolean
)
language plpgsql set search_path from current as $$
-- Put one message on a queue. p_delay (or p_run_at) says when it may start; p_dedup_key makes a second
-- enqueue inside the window return the first id with duplicate = true and insert nothing.
-- Locks: with a dedup key the row of that key, so that two callers at the same instant agree.
-- Raises PH001 for a bad argument, PH002 for an unknown queue.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at timestamptz;
  v_wake boolean;
begin
  duplicate := false;
  select w.wake_until > v_now and (w.attended_until is null or w.attended_until <= v_now) into v_wake
  from queue_wakeups w where w.queue = p_queue;
  if not found then
    perform require_queue(p_queue);
  end if;
  -- the delay is compared before it is added: the sum of now and an absurd one is an error without a name
  v_run_at := case when p_delay is null then coalesce(p_run_at, v_now)
    when p_run_at is null and p_delay between interval '-3660 days' and interval '3660 days' then v_now + p_delay end;
  if v_run_at is null then
    perform refuse_delay(p_run_at);
  end if;
  -- the checks of the domains say "no" without a name; the explaining function is only called then
  if p_priority between 1 and 10 and isfinite(v_run_at) and v_run_at <= v_now + interval '3660 days'
     and (p_max_attempts is null or p_max_attempts between 1 and 1000000)
     and (p_conversation_key is null or length(p_conversation_key) between 1 and 500)
     and (p_concurrency_key is null or length(p_concurrency_key) between 1 and 500)
     and (p_correlation_id is null or length(p_correlation_id) <= 500)
     and (p_trace_context is null or length(p_trace_context) <= 1000)
     and (p_expires_at is null or p_expires_at > v_run_at)
     and jsonb_typeof(p_payload) = 'object' and pg_column_size(p_payload) <= 1048576
     and jsonb_typeof(p_options) = 'object' and pg_column_size(p_options) <= 1048576
     and p_message_type ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    null;
  else
    perform check_enqueue_arguments(p_message_type, p_payload, p_options, p_priority, v_run_at,
      p_max_attempts, p_conversation_key, p_dedup_key, p_dedup_window, p_concurrency_key, p_correlation_id, p_trace_context, p_expires_at);
  end if;
  if p_dedup_key is not null then
    perform check_enqueue_arguments(p_message_type, p_payload, p_options, p_priority, v_run_at,
      p_max_attempts, p_conversation_key, p_dedup_key, coalesce(p_dedup_window, interval '-1 second'), p_concurrency_key);
    insert into message_dedup as d (queue, dedup_key, message_id, expires_at)
    values (p_queue, p_dedup_key, 0, v_now + p_dedup_window) -- its id follows below: nobody sees the row before
    on conflict on constraint message_dedup_pkey do update
      set message_id = excluded.message_id, expires_at = excluded.expires_at
      where d.expires_at <= clock_timestamp();
    if not found then
      select d.message_id into message_id from message_dedup d where d.queue = p_queue and d.dedup_key = p_dedup_key;
      duplicate := true;
      return;
    end if;
  end if;
  insert into message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, dedup_key, correlation_id, trace_context, expires_at, concurrency_key)
  values (p_queue, p_message_type, p_payload, p_options, p_priority, v_run_at, p_max_attempts,
    p_conversation_key, p_dedup_key, p_correlation_id, p_trace_context, p_expires_at, p_concurrency_key);
  -- the id that the insert has drawn. Not RETURNED: to read back what it inserted, a producer would need the right
  -- to select; not drawn before: it would need the right to choose ids, and could take a dead letter's
  message_id := currval('message_queue_id_seq');
  if p_dedup_key is not null then
    update message_dedup d set message_id = enqueue_message.message_id where d.queue = p_queue and d.dedup_key = p_dedup_key;
  end if;
  if v_wake then -- also for a later one: the sleeper sets its alarm
    perform pg_notify('packhorse_wake', p_queue);
  end if;
end
$$;
comment on function enqueue_message(text, text, jsonb, jsonb, integer, interval, timestamptz, integer, text, text, interval,
  text, text, timestamptz, text) is 'Put one message on a queue, in the caller''s transaction; returns its id and whether it was a duplicate.';

create function enqueue_messages(p_messages jsonb) returns table (message_id bigint, duplicate boolean)
language plpgsql set search_path from current as $$
-- Put many messages on queues: an array of objects whose keys are the arguments of enqueue_message
-- without "p_" (queue and message_type required; delay as an interval text). All or none; ids in order.
-- Raises PH001 (with the position of the bad element), PH002.
declare
  v_item jsonb;
  v_position bigint;
  v_unknown text;
  v_column text;
  v_hint text;
  v_key text;
  v_type text;
  v_text text;
  v_known constant text[] := array['queue', 'message_type', 'payload', 'options', 'priority', 'delay', 'run_at',
    'max_attempts', 'conversation_key', 'dedup_key', 'dedup_window', 'correlation_id', 'trace_context', 'expires_at',
    'concurrency_key'];
begin
  if p_messages is null or jsonb_typeof(p_messages) <> 'array' then
    perform refuse_argument('messages', 'must be a JSON array of objects');
  end if;
  for v_item, v_position in select e.value, e.ordinality from jsonb_array_elements(p_messages) with ordinality e loop
    if jsonb_typeof(v_item) <> 'object' then
      perform refuse_argument(format('messages[%s]', v_position), 'must be a JSON object');
    end if;
    select key into v_unknown from jsonb_object_keys(v_item) as k(key) where key <> all (v_known) limit 1;
    if found then
      perform refuse_argument(format('messages[%s].%s', v_position, left(v_unknown, 60)), 'unknown key',
        'Known keys: ' || array_to_string(v_known, ', '));
    end if;
    return query select e.message_id, e.duplicate from enqueue_message(
      v_item ->> 'queue', v_item ->> 'message_type',
      coalesce(v_item -> 'payload', '{}'), coalesce(v_item -> 'options', '{}'),
      coalesce((v_item ->> 'priority')::integer, 5), (v_item ->> 'delay')::interval,
      (v_item ->> 'run_at')::timestamptz, (v_item ->> 'max_attempts')::integer,
      v_item ->> 'conversation_key', v_item ->> 'dedup_key',
      coalesce((v_item ->> 'dedup_window')::interval, interval '5 minutes'),
      v_item ->> 'correlation_id', v_item ->> 'trace_context', (v_item ->> 'expires_at')::timestamptz,
      v_item ->> 'concurrency_key') e;
  end loop;
exception when sqlstate 'PH001' or sqlstate 'PH002' or data_exception then
  -- one handler around the whole array: a subtransaction per element would cost more than the inserts
  get stacked diagnostics v_column = column_name, v_hint = pg_exception_hint;
  v_text := sqlerrm;
  if sqlstate not like 'PH%' then -- a value of another type: its error has no name in it
    for v_key, v_type in select * from (values ('priority', 'integer'), ('delay', 'interval'), ('run_at', 'timestamptz'),
      ('max_attempts', 'integer'), ('dedup_window', 'interval'), ('expires_at', 'timestamptz')) as k(name, type) loop
      begin
        execute format('select %L::%s', v_item ->> v_key, v_type);
      exception when data_exception then
        v_column := v_key;
        v_text := format('%s: %s', v_key, sqlerrm);
        v_hint := 'Numbers as JSON numbers, times like "2030-01-31T12:00:00Z", intervals like "5 minutes".';
        exit;
      end;
    end loop;
  end if;
  if v_column not like 'messages%' then
    v_column := format('messages[%s]', v_position) || coalesce('.' || nullif(v_column, ''), '');
    v_text := format('messages[%s]: %s', v_position, v_text);
  end if;
  if v_hint = '' then
    raise exception using errcode = case when sqlstate = 'PH002' then sqlstate else 'PH001' end, column = v_column, message = v_text;
  end if;
  raise exception using errcode = case when sqlstate = 'PH002' then sqlstate else 'PH001' end, column = v_column, message = v_text, hint = v_hint;
end
$$;
comment on function enqueue_messages(jsonb) is 'Bulk form of enqueue_message: an array of objects; all or none.';

create function enqueue_payloads(
  p_queue            text,
  p_message_type     text,
  p_payloads         jsonb,
  p_options          jsonb       default '{}',
  p_priority         integer     default 5,
  p_delay            interval    default null,
  p_run_at           timestamptz default null,
  p_max_attempts     integer     default null,
  p_conversation_key text        default null,
  p_correlation_id   text        default null,
  p_trace_context    text        default null,
  p_expires_at       timestamptz default null,
  p_concurrency_key  text        default null,
  out message_count  bigint
)
language plpgsql set search_path from current as $$
-- Put many messages of one type on a queue that differ in their payload only: p_payloads is an array of objects, one
-- per message, in order. Several times faster than enqueue_messages; no dedup windows. All or none; returns how many.
-- Raises PH001 for a bad argument (payloads[position] for an element), PH002 for an unknown queue.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at timestamptz := coalesce(p_run_at, v_now);
  v_bad record;
begin
  perform require_queue(p_queue);
  if p_payloads is null or jsonb_typeof(p_payloads) <> 'array' then
    perform refuse_argument('payloads', format('must be a JSON array of objects, not %s', coalesce(jsonb_typeof(p_payloads), 'null')));
  end if;
  if p_delay is not null then
    if p_run_at is not null or p_delay not between interval '-3660 days' and interval '3660 days' then
      perform refuse_delay(p_run_at);
    end if;
    v_run_at := v_now + p_delay;
  end if;
  perform check_enqueue_arguments(p_message_type, '{}', p_options, p_priority, v_run_at, p_max_attempts,
    p_conversation_key, null, null, p_concurrency_key, p_correlation_id, p_trace_context, p_expires_at);
  -- one quick look at all of them; which one it is asks who knows that there is one
  if pg_column_size(p_payloads) > 1048576 or p_payloads @? 'strict $[*] ? (@.type() != "object")' then
    select e.ordinality as place, jsonb_typeof(e.value) as kind, pg_column_size(e.value) as bytes into v_bad
    from jsonb_array_elements(p_payloads) with ordinality e
    where jsonb_typeof(e.value) <> 'object' or pg_column_size(e.value) > 1048576 limit 1;
    if found then
      perform refuse_argument(format('payloads[%s]', v_bad.place), case when v_bad.kind <> 'object'
        then format('must be a JSON object, not %s', v_bad.kind) else format('%s bytes, at most 1048576', v_bad.bytes) end);
    end if;
  end if;
  insert into message_queue (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key,
    correlation_id, trace_context, expires_at, concurrency_key)
  select p_queue, p_message_type, e.value, p_options, p_priority, v_run_at, p_max_attempts, p_conversation_key,
    p_correlation_id, p_trace_context, p_expires_at, p_concurrency_key
  from jsonb_array_elements(p_payloads) with ordinality e order by e.ordinality;
  get diagnostics message_count = row_count;
  perform wake_queue(p_queue);
end
$$;
comment on function enqueue_payloads(text, text, jsonb, jsonb, integer, interval, timestamptz, integer, text, text, text, timestamptz, text)
  is 'Put many messages that differ in their payload only on a queue: an array of objects; all or none; returns how many.';

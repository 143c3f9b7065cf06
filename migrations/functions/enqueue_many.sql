-- Enqueue many: an array of objects with all their arguments, or of payloads that share all else (SPEC Q9).

create or replace function packhorse.unreadable_argument(p_message jsonb, out key text, out error text)
language plpgsql stable as $$
-- The first key of an element of enqueue_messages whose value is not of its type, and what PostgreSQL says of
-- it; null: there is none.
declare
  v_type text;
begin
  for key, v_type in
    select * from (values ('priority', 'integer'), ('delay', 'interval'), ('run_at', 'timestamptz'),
      ('max_attempts', 'integer'), ('dedup_window', 'interval'), ('expires_at', 'timestamptz'),
      ('debounce', 'interval'), ('max_wait', 'interval')) as k(name, type)
  loop
    begin
      execute format('select %L::%s', p_message ->> key, v_type);
    exception when data_exception then
      error := sqlerrm;
      return;
    end;
  end loop;
  key := null;
end
$$;
comment on function packhorse.unreadable_argument(jsonb)
  is 'Used by enqueue_messages: which value of an element has another type.';

create or replace function packhorse.check_enqueue_element(p_message jsonb, p_position bigint) returns void
language plpgsql stable as $$
-- Raise PH001 for an element of enqueue_messages that is no object, or has keys that mean nothing.
declare
  v_known constant text[] := array['queue', 'message_type', 'payload', 'options', 'priority', 'delay',
    'run_at', 'max_attempts', 'conversation_key', 'dedup_key', 'dedup_window', 'correlation_id',
    'trace_context', 'expires_at', 'concurrency_key', 'pending_key', 'when_pending', 'debounce', 'max_wait',
    'fairness_key'];
  v_unknown text;
begin
  if jsonb_typeof(p_message) <> 'object' then
    perform packhorse.refuse_argument(format('messages[%s]', p_position), 'must be a JSON object');
  end if;
  select key into v_unknown from jsonb_object_keys(p_message) as k(key) where key <> all (v_known) limit 1;
  if found then
    perform packhorse.refuse_argument(format('messages[%s].%s', p_position, left(v_unknown, 60)),
      'unknown key', 'Known keys: ' || array_to_string(v_known, ', '));
  elsif p_message ->> 'dedup_window' is not null and p_message ->> 'dedup_key' is null then
    perform packhorse.refuse_argument('dedup_window', 'without dedup_key it means nothing',
      'Give the key, too.');
  end if;
end
$$;
comment on function packhorse.check_enqueue_element(jsonb, bigint)
  is 'Used by enqueue_messages: is an element an object with known keys?';

create or replace function packhorse.enqueue_plain_messages(p_messages jsonb, p_correlation_id text)
returns bigint[]
language plpgsql volatile as $$
-- Used by enqueue_messages: all of them by one INSERT, their ids in order. Null, and nothing has been done:
-- something is wrong with one, or it has a dedup_key or a pending_key. More than twice as fast as one by one.
declare
  v_plain constant text[] := array['queue', 'message_type', 'payload', 'options', 'priority', 'delay',
    'run_at', 'max_attempts', 'conversation_key', 'correlation_id', 'trace_context', 'expires_at',
    'concurrency_key', 'fairness_key'];
  v_now constant timestamptz := clock_timestamp();
  v_queues text[];
  v_ids bigint[];
begin
  if exists (select from jsonb_array_elements(p_messages) e
      where jsonb_typeof(e.value) <> 'object' or e.value - v_plain <> '{}'
        or e.value @> '{"payload": null}' or e.value @> '{"options": null}') then
    return null;
  end if;
  v_queues := array(select distinct e.value ->> 'queue' from jsonb_array_elements(p_messages) e);
  if exists (select from unnest(v_queues) as n (name)
      where not exists (select from packhorse.queue_wakeups w where w.queue = n.name)) then
    return null;
  end if;
  with said as materialized (
    select e.ordinality as place, r.queue, r.message_type, coalesce(r.payload, '{}') as payload,
      coalesce(r.options, '{}') as options, coalesce(r.priority, 5) as priority,
      packhorse.start_time(r.run_at, r.delay, v_now) as run_at, r.max_attempts, r.conversation_key,
      coalesce(r.correlation_id, p_correlation_id) as correlation_id, r.trace_context, r.expires_at,
      r.concurrency_key, r.fairness_key
    from jsonb_array_elements(p_messages) with ordinality e
    cross join lateral jsonb_to_record(e.value) as r (queue text, message_type text, payload jsonb,
      options jsonb, priority integer, delay interval, run_at timestamptz, max_attempts integer,
      conversation_key text, correlation_id text, trace_context text, expires_at timestamptz,
      concurrency_key text, fairness_key text)
  ), right_ones as (
    select bool_and(coalesce(packhorse.is_enqueueable(s.message_type, s.payload, s.options, s.priority,
      s.run_at, s.max_attempts, s.conversation_key, s.correlation_id, s.trace_context, s.expires_at,
      s.concurrency_key, s.fairness_key), false)) as all_of_them
    from said s
  ), made as (
    insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at,
      max_attempts, conversation_key, correlation_id, trace_context, expires_at, concurrency_key,
      fairness_key)
    select s.queue, s.message_type, s.payload, s.options, s.priority, s.run_at, s.max_attempts,
      s.conversation_key, s.correlation_id, s.trace_context, s.expires_at, s.concurrency_key, s.fairness_key
    from said s cross join right_ones o where o.all_of_them order by s.place
    returning id
  )
  select array_agg(m.id order by m.id) into v_ids from made m;
  perform packhorse.wake_queue(n.name) from unnest(v_queues) as n (name) where v_ids is not null;
  return v_ids;
exception when data_exception or check_violation then
  return null;
end
$$;
comment on function packhorse.enqueue_plain_messages(jsonb, text)
  is 'Used by enqueue_messages: plain messages by one INSERT; null when one of them is not plain, or wrong.';

create or replace function packhorse.enqueue_messages(p_messages jsonb)
returns table (message_id bigint, duplicate boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Put many messages on queues: an array of objects whose keys are the arguments of enqueue_message
-- without "p_" (queue and message_type required; delay as an interval text). All or none; ids in order.
-- Raises PH001 (with the position of the bad element), PH002.
declare
  v_item jsonb;
  v_position bigint;
  v_column text;
  v_hint text;
  v_text text;
  v_unreadable record;
  v_state text;
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  if p_messages is null or jsonb_typeof(p_messages) <> 'array' then
    perform packhorse.refuse_argument('messages', 'must be a JSON array of objects');
  elsif jsonb_array_length(p_messages) > 1 then
    return query select p.id, false from unnest(packhorse.enqueue_plain_messages(p_messages, v_made)) p (id);
    if found then
      return;
    end if;
  end if;
  for v_item, v_position in
    select e.value, e.ordinality from jsonb_array_elements(p_messages) with ordinality e
  loop
    perform packhorse.check_enqueue_element(v_item, v_position);
    return query select e.message_id, e.duplicate from packhorse.enqueue_message(
      v_item ->> 'queue', v_item ->> 'message_type',
      coalesce(v_item -> 'payload', '{}'), coalesce(v_item -> 'options', '{}'),
      coalesce((v_item ->> 'priority')::integer, 5), (v_item ->> 'delay')::interval,
      (v_item ->> 'run_at')::timestamptz, (v_item ->> 'max_attempts')::integer,
      v_item ->> 'conversation_key', v_item ->> 'dedup_key',
      coalesce((v_item ->> 'dedup_window')::interval, interval '5 minutes'),
      coalesce(v_item ->> 'correlation_id', v_made), v_item ->> 'trace_context',
      (v_item ->> 'expires_at')::timestamptz, v_item ->> 'concurrency_key', v_item ->> 'pending_key',
      v_item ->> 'when_pending', (v_item ->> 'debounce')::interval, (v_item ->> 'max_wait')::interval,
      v_item ->> 'fairness_key') e;
  end loop;
exception when sqlstate 'PH001' or sqlstate 'PH002' or data_exception then
  -- one handler around the whole array: a subtransaction per element would cost more than the inserts
  get stacked diagnostics v_column = column_name, v_hint = pg_exception_hint;
  v_text := sqlerrm;
  if sqlstate not like 'PH%' then -- a value of another type: its error has no name in it
    select * into v_unreadable from packhorse.unreadable_argument(v_item);
    if v_unreadable.key is not null then
      v_column := v_unreadable.key;
      v_text := format('%s: %s', v_unreadable.key, v_unreadable.error);
      v_hint := 'Numbers as JSON numbers, times like "2030-01-31T12:00:00Z", intervals like "5 minutes".';
    end if;
  end if;
  if v_column not like 'messages%' then
    v_column := format('messages[%s]', v_position) || coalesce('.' || nullif(v_column, ''), '');
    v_text := format('messages[%s]: %s', v_position, v_text);
  end if;
  v_state := case when sqlstate = 'PH002' then sqlstate else 'PH001' end;
  if v_hint = '' then
    raise exception using errcode = v_state, column = v_column, message = v_text;
  end if;
  raise exception using errcode = v_state, column = v_column, message = v_text, hint = v_hint;
end
$$;
comment on function packhorse.enqueue_messages(jsonb)
  is 'Bulk form of enqueue_message: an array of objects; all or none.';

create or replace function packhorse.check_payloads(p_payloads jsonb) returns void
language plpgsql stable as $$
-- Raise PH001 for an array that holds something else than objects of at most 1 MiB. One quick look at all of
-- them; which one it is asks who knows that there is one.
declare
  v_bad record;
begin
  if p_payloads is null or jsonb_typeof(p_payloads) <> 'array' then
    perform packhorse.refuse_argument('payloads',
      format('must be a JSON array of objects, not %s', coalesce(jsonb_typeof(p_payloads), 'null')));
  elsif pg_column_size(p_payloads) > 1048576 or p_payloads @? 'strict $[*] ? (@.type() != "object")' then
    select e.ordinality as place, jsonb_typeof(e.value) as kind, pg_column_size(e.value) as bytes into v_bad
    from jsonb_array_elements(p_payloads) with ordinality e
    where jsonb_typeof(e.value) <> 'object' or pg_column_size(e.value) > 1048576 limit 1;
    if found then
      perform packhorse.refuse_argument(format('payloads[%s]', v_bad.place),
        case when v_bad.kind <> 'object' then format('must be a JSON object, not %s', v_bad.kind)
          else format('%s bytes, at most 1048576', v_bad.bytes) end);
    end if;
  end if;
end
$$;
comment on function packhorse.check_payloads(jsonb)
  is 'Used by enqueue_payloads: are they objects of at most 1 MiB?';

create or replace function packhorse.enqueue_payloads(
  p_queue text, p_message_type text, p_payloads jsonb, p_options jsonb default '{}',
  p_priority integer default 5, p_delay interval default null, p_run_at timestamptz default null,
  p_max_attempts integer default null,
  p_conversation_key text default null, p_correlation_id text default null, p_trace_context text default null,
  p_expires_at timestamptz default null, p_concurrency_key text default null,
  p_fairness_key text default null, out message_count bigint
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Put many messages of one type on a queue that differ in their payload only: p_payloads is an array of
-- objects, one per message, in order. Several times faster than enqueue_messages; no dedup windows. All or
-- none; returns how many. Raises PH001 for a bad argument (payloads[position] for an element), PH002 for an
-- unknown queue.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at timestamptz := coalesce(p_run_at, v_now);
  v_place bigint;
  -- of the columns' types: checked once, not for each row
  v_queue packhorse.message_name;
  v_type packhorse.message_name;
  v_options packhorse.message_json;
  v_priority packhorse.message_priority;
  v_max_attempts packhorse.message_count;
  v_conversation_key packhorse.message_key;
  v_correlation_id packhorse.message_correlation_id;
  v_trace_context packhorse.message_trace_context;
  v_concurrency_key packhorse.message_key;
  v_fairness_key packhorse.message_key;
begin
  perform packhorse.require_queue(p_queue);
  perform packhorse.check_payloads(p_payloads);
  if p_delay is not null then
    if p_run_at is not null or p_delay not between interval '-3660 days' and interval '3660 days' then
      perform packhorse.refuse_delay(p_run_at);
    end if;
    v_run_at := v_now + p_delay;
  end if;
  perform packhorse.check_enqueue_arguments(p_message_type, '{}', p_options, p_priority, v_run_at,
    p_max_attempts, p_conversation_key, null, null, p_concurrency_key, p_correlation_id, p_trace_context,
    p_expires_at, p_fairness_key => p_fairness_key);
  select p_queue, p_message_type, p_options, p_priority, p_max_attempts, p_conversation_key,
    -- one for the call, which is one cause: a UUID per message costs a fifth of a bulk enqueue
    coalesce(p_correlation_id, gen_random_uuid()::text), p_trace_context, p_concurrency_key, p_fairness_key
  into v_queue, v_type, v_options, v_priority, v_max_attempts, v_conversation_key,
    v_correlation_id, v_trace_context, v_concurrency_key, v_fairness_key;
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key)
  select v_queue, v_type, e.value, v_options, v_priority, v_run_at, v_max_attempts, v_conversation_key,
    v_correlation_id, v_trace_context, p_expires_at, v_concurrency_key, v_fairness_key
  from jsonb_array_elements(p_payloads) with ordinality e order by e.ordinality;
  get diagnostics message_count = row_count;
  perform packhorse.wake_queue(p_queue);
exception when check_violation then -- the domain says which kind of check, not which payload
  select e.ordinality into v_place from jsonb_array_elements(p_payloads) with ordinality e
  where not packhorse.is_readable_json(e.value) limit 1;
  if found then
    perform packhorse.refuse_argument(format('payloads[%s]', v_place),
      'is nested more than 500 levels deep, or holds a number of more than 4300 digits');
  end if;
  raise;
end
$$;
comment on function packhorse.enqueue_payloads(text, text, jsonb, jsonb, integer, interval, timestamptz,
  integer, text, text, text, timestamptz, text, text)
  is 'Put messages that differ in their payload only on a queue: an array; all or none; returns how many.';

-- Enqueue: one row, in the caller's transaction (SPEC Q2, Q5, Q6, Q9).
--
-- A new message is always `pending`; that it has to wait behind an earlier message of its conversation
-- is found out at the claim (conversations.sql). So a producer takes no lock on the conversation, waits for
-- nobody and deadlocks with nobody, however long its transaction lasts.
--
-- These functions run with the rights of their owner: a producer has no right on any table (rights.sql).

create or replace function packhorse.is_readable_json(p_value jsonb) returns boolean
language sql immutable parallel safe as $$
  -- as the domain message_json: so deep needs more than 2000 bytes, and such a number more than 4300 as text (1e5000 needs few as jsonb)
  select p_value is null or (pg_column_size(p_value) <= 2000 and octet_length(p_value::text) <= 4300)
    or not (pg_catalog.jsonb_path_exists(p_value, 'strict $.**{500 to last} ? (@.type() == "object" || @.type() == "array")')
      or pg_catalog.jsonb_path_exists(p_value, 'strict $.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))'))
$$;
comment on function packhorse.is_readable_json(jsonb) is 'Is it nested at most 500 levels deep, and are its numbers of at most 4300 digits? Python reads no more.';

create or replace function packhorse.check_enqueue_arguments(
  p_message_type text, p_payload jsonb, p_options jsonb, p_priority integer, p_run_at timestamptz,
  p_max_attempts integer, p_conversation_key text, p_dedup_key text, p_dedup_window interval, p_concurrency_key text,
  p_correlation_id text default null, p_trace_context text default null, p_expires_at timestamptz default null
) returns void
language plpgsql stable as $$
-- Explain the first bad argument. Called when an insert was refused, so that good input pays nothing.
begin
  if p_message_type is null or p_message_type !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform packhorse.refuse_argument('message_type', format('%L is not a message type', left(p_message_type, 120)),
      'Use the actor''s name: a letter or underscore, then letters, digits, dot, underscore or dash.');
  elsif p_payload is null or jsonb_typeof(p_payload) <> 'object' then
    perform packhorse.refuse_argument('payload', format('must be a JSON object, not %s', coalesce(jsonb_typeof(p_payload), 'null')),
      'The keys of the object are the keyword arguments of the handler.');
  elsif pg_column_size(p_payload) > 1048576 then
    perform packhorse.refuse_argument('payload', format('%s bytes, at most 1048576', pg_column_size(p_payload)),
      'Store the large part elsewhere and send its key.');
  elsif not packhorse.is_readable_json(p_payload) then
    perform packhorse.refuse_argument('payload', 'is nested more than 500 levels deep, or holds a number of more than 4300 digits',
      'Readers in other languages stop there: send deep data and long numbers as texts.');
  elsif not packhorse.is_readable_json(p_options) then
    perform packhorse.refuse_argument('options', 'is nested more than 500 levels deep, or holds a number of more than 4300 digits');
  elsif p_options is null or jsonb_typeof(p_options) <> 'object' or pg_column_size(p_options) > 1048576 then
    perform packhorse.refuse_argument('options', 'must be a JSON object of at most 1 MiB');
  elsif p_priority is null or p_priority not between 1 and 10 then
    perform packhorse.refuse_argument('priority', format('%s is out of range', coalesce(p_priority::text, 'null')), '1 (first) to 10 (last), default 5.');
  elsif not isfinite(p_run_at) or p_run_at > clock_timestamp() + interval '3660 days' then
    perform packhorse.refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  elsif p_max_attempts not between 1 and 1000000 then
    perform packhorse.refuse_argument('max_attempts', format('%s is out of range', p_max_attempts), '1 to 1000000.');
  elsif length(p_conversation_key) not between 1 and 500 then
    perform packhorse.refuse_argument('conversation_key', 'must have 1 to 500 characters');
  elsif length(p_concurrency_key) not between 1 and 500 then
    perform packhorse.refuse_argument('concurrency_key', 'must have 1 to 500 characters');
  elsif length(p_dedup_key) not between 1 and 500 then
    perform packhorse.refuse_argument('dedup_key', 'must have 1 to 500 characters');
  elsif p_dedup_window not between interval '0' and interval '366 days' then
    perform packhorse.refuse_argument('dedup_window', 'must be between 0 and 366 days');
  elsif length(p_correlation_id) > 500 then
    perform packhorse.refuse_argument('correlation_id', 'must have at most 500 characters');
  elsif length(p_trace_context) > 1000 then
    perform packhorse.refuse_argument('trace_context', 'must have at most 1000 characters', 'traceparent, or traceparent tracestate.');
  elsif p_expires_at <= p_run_at and p_run_at > clock_timestamp() then -- one that is over already may come: it ends as expired
    perform packhorse.refuse_argument('expires_at', 'the message could never start', 'It must be later than run_at, or now and the delay.');
  end if;
end
$$;
comment on function packhorse.check_enqueue_arguments(text, jsonb, jsonb, integer, timestamptz, integer, text, text, interval, text, text, text, timestamptz)
  is 'Raise PH001 for the first bad argument of an enqueue.';

create or replace function packhorse.open_dedup_window(p_queue text, p_dedup_key text, p_until timestamptz) returns bigint
language plpgsql as $$
-- Null: the window of this key is the caller's, who stores the id of his message in it. Else the message that the open window belongs to.
begin
  insert into packhorse.message_dedup as d (queue, dedup_key, message_id, expires_at)
  values (p_queue, p_dedup_key, 0, p_until) -- nobody sees the row before the caller has stored the id
  on conflict on constraint message_dedup_pkey do update
    set message_id = excluded.message_id, expires_at = excluded.expires_at
    where d.expires_at <= clock_timestamp();
  if found then
    return null;
  end if;
  return (select d.message_id from packhorse.message_dedup d where d.queue = p_queue and d.dedup_key = p_dedup_key);
end
$$;
comment on function packhorse.open_dedup_window(text, text, timestamptz) is 'Used by enqueue_message: open the dedup window of a key, or say whose it is.';

create or replace function packhorse.enqueue_message(
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
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
  from packhorse.queue_wakeups w where w.queue = p_queue;
  if not found then
    perform packhorse.require_queue(p_queue);
  end if;
  -- the delay is compared before it is added: the sum of now and an absurd one is an error without a name
  v_run_at := case when p_delay is null then coalesce(p_run_at, v_now)
    when p_run_at is null and p_delay between interval '-3660 days' and interval '3660 days' then v_now + p_delay end;
  if v_run_at is null then
    perform packhorse.refuse_delay(p_run_at);
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
     and packhorse.is_readable_json(p_payload)
     and jsonb_typeof(p_options) = 'object' and pg_column_size(p_options) <= 1048576
     and packhorse.is_readable_json(p_options)
     and p_message_type ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    null;
  else
    perform packhorse.check_enqueue_arguments(p_message_type, p_payload, p_options, p_priority, v_run_at,
      p_max_attempts, p_conversation_key, p_dedup_key, p_dedup_window, p_concurrency_key, p_correlation_id, p_trace_context, p_expires_at);
  end if;
  if p_dedup_key is not null then
    perform packhorse.check_enqueue_arguments(p_message_type, p_payload, p_options, p_priority, v_run_at,
      p_max_attempts, p_conversation_key, p_dedup_key, coalesce(p_dedup_window, interval '-1 second'), p_concurrency_key);
    message_id := packhorse.open_dedup_window(p_queue, p_dedup_key, v_now + p_dedup_window);
    if message_id is not null then
      duplicate := true;
      return;
    end if;
  end if;
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, dedup_key, correlation_id, trace_context, expires_at, concurrency_key)
  values (p_queue, p_message_type, p_payload, p_options, p_priority, v_run_at, p_max_attempts,
    p_conversation_key, p_dedup_key, coalesce(p_correlation_id, gen_random_uuid()::text), p_trace_context, p_expires_at, p_concurrency_key);
  -- the id that the insert has drawn: cheaper than to return it
  message_id := currval('packhorse.message_queue_id_seq');
  if p_dedup_key is not null then
    update packhorse.message_dedup d set message_id = enqueue_message.message_id where d.queue = p_queue and d.dedup_key = p_dedup_key;
  end if;
  if v_wake then -- also for a later one: the sleeper sets its alarm
    perform pg_notify('packhorse_wake', p_queue);
  end if;
end
$$;
comment on function packhorse.enqueue_message(text, text, jsonb, jsonb, integer, interval, timestamptz, integer, text, text, interval,
  text, text, timestamptz, text) is 'Put one message on a queue, in the caller''s transaction; returns its id and whether it was a duplicate.';

create or replace function packhorse.types_instead(p_id bigint) returns text
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- Null: some worker has registered the type of this message, which was enqueued just now, or no worker lives. Else up to five types that
-- may have been meant, with commas between them: a producer is told these, as require_queue tells it a queue. Volatile: it sees the row.
  select (select coalesce(string_agg(n.name, ','), '') from (
    select t.name::text from packhorse.message_types t
    order by (left(t.name, 3) = left(m.message_type, 3)) desc, abs(length(t.name) - length(m.message_type)), t.name limit 5) n)
  from packhorse.message_queue m
  where m.id = p_id and not exists (select from packhorse.message_types t where t.name = m.message_type)
    and exists (select from packhorse.workers w where w.last_seen_at > clock_timestamp() - w.lease_duration)
$$;
comment on function packhorse.types_instead(bigint) is 'Does no worker know the type of a new message? Then names that are like it.';

create or replace function packhorse.unreadable_argument(p_message jsonb, out key text, out error text)
language plpgsql stable as $$
-- The first key of an element of enqueue_messages whose value is not of its type, and what PostgreSQL says of it; null: there is none.
declare
  v_type text;
begin
  for key, v_type in select * from (values ('priority', 'integer'), ('delay', 'interval'), ('run_at', 'timestamptz'),
    ('max_attempts', 'integer'), ('dedup_window', 'interval'), ('expires_at', 'timestamptz')) as k(name, type) loop
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
comment on function packhorse.unreadable_argument(jsonb) is 'Used by enqueue_messages: which value of an element has another type.';

create or replace function packhorse.enqueue_messages(p_messages jsonb) returns table (message_id bigint, duplicate boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Put many messages on queues: an array of objects whose keys are the arguments of enqueue_message
-- without "p_" (queue and message_type required; delay as an interval text). All or none; ids in order.
-- Raises PH001 (with the position of the bad element), PH002.
declare
  v_item jsonb;
  v_position bigint;
  v_unknown text;
  v_column text;
  v_hint text;
  v_text text;
  v_unreadable record;
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
  v_known constant text[] := array['queue', 'message_type', 'payload', 'options', 'priority', 'delay', 'run_at',
    'max_attempts', 'conversation_key', 'dedup_key', 'dedup_window', 'correlation_id', 'trace_context', 'expires_at',
    'concurrency_key'];
begin
  if p_messages is null or jsonb_typeof(p_messages) <> 'array' then
    perform packhorse.refuse_argument('messages', 'must be a JSON array of objects');
  end if;
  for v_item, v_position in select e.value, e.ordinality from jsonb_array_elements(p_messages) with ordinality e loop
    if jsonb_typeof(v_item) <> 'object' then
      perform packhorse.refuse_argument(format('messages[%s]', v_position), 'must be a JSON object');
    end if;
    select key into v_unknown from jsonb_object_keys(v_item) as k(key) where key <> all (v_known) limit 1;
    if found then
      perform packhorse.refuse_argument(format('messages[%s].%s', v_position, left(v_unknown, 60)), 'unknown key',
        'Known keys: ' || array_to_string(v_known, ', '));
    elsif v_item ->> 'dedup_window' is not null and v_item ->> 'dedup_key' is null then
      perform packhorse.refuse_argument('dedup_window', 'without dedup_key it means nothing', 'Give the key, too.');
    end if;
    return query select e.message_id, e.duplicate from packhorse.enqueue_message(
      v_item ->> 'queue', v_item ->> 'message_type',
      coalesce(v_item -> 'payload', '{}'), coalesce(v_item -> 'options', '{}'),
      coalesce((v_item ->> 'priority')::integer, 5), (v_item ->> 'delay')::interval,
      (v_item ->> 'run_at')::timestamptz, (v_item ->> 'max_attempts')::integer,
      v_item ->> 'conversation_key', v_item ->> 'dedup_key',
      coalesce((v_item ->> 'dedup_window')::interval, interval '5 minutes'),
      coalesce(v_item ->> 'correlation_id', v_made), v_item ->> 'trace_context', (v_item ->> 'expires_at')::timestamptz,
      v_item ->> 'concurrency_key') e;
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
  if v_hint = '' then
    raise exception using errcode = case when sqlstate = 'PH002' then sqlstate else 'PH001' end, column = v_column, message = v_text;
  end if;
  raise exception using errcode = case when sqlstate = 'PH002' then sqlstate else 'PH001' end, column = v_column, message = v_text, hint = v_hint;
end
$$;
comment on function packhorse.enqueue_messages(jsonb) is 'Bulk form of enqueue_message: an array of objects; all or none.';

create or replace function packhorse.enqueue_payloads(
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
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Put many messages of one type on a queue that differ in their payload only: p_payloads is an array of objects, one
-- per message, in order. Several times faster than enqueue_messages; no dedup windows. All or none; returns how many.
-- Raises PH001 for a bad argument (payloads[position] for an element), PH002 for an unknown queue.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at timestamptz := coalesce(p_run_at, v_now);
  v_bad record;
  -- one for the call, which is one cause: a UUID per message costs a fifth of a bulk enqueue
  v_made constant text := gen_random_uuid()::text;
  -- of the column's type: checked once, not for each row
  v_queue packhorse.message_name;
  v_type packhorse.message_name;
  v_options packhorse.message_json;
begin
  perform packhorse.require_queue(p_queue);
  if p_payloads is null or jsonb_typeof(p_payloads) <> 'array' then
    perform packhorse.refuse_argument('payloads', format('must be a JSON array of objects, not %s', coalesce(jsonb_typeof(p_payloads), 'null')));
  end if;
  if p_delay is not null then
    if p_run_at is not null or p_delay not between interval '-3660 days' and interval '3660 days' then
      perform packhorse.refuse_delay(p_run_at);
    end if;
    v_run_at := v_now + p_delay;
  end if;
  perform packhorse.check_enqueue_arguments(p_message_type, '{}', p_options, p_priority, v_run_at, p_max_attempts,
    p_conversation_key, null, null, p_concurrency_key, p_correlation_id, p_trace_context, p_expires_at);
  -- one quick look at all of them; which one it is asks who knows that there is one
  if pg_column_size(p_payloads) > 1048576 or p_payloads @? 'strict $[*] ? (@.type() != "object")' then
    select e.ordinality as place, jsonb_typeof(e.value) as kind, pg_column_size(e.value) as bytes into v_bad
    from jsonb_array_elements(p_payloads) with ordinality e
    where jsonb_typeof(e.value) <> 'object' or pg_column_size(e.value) > 1048576 limit 1;
    if found then
      perform packhorse.refuse_argument(format('payloads[%s]', v_bad.place), case when v_bad.kind <> 'object'
        then format('must be a JSON object, not %s', v_bad.kind) else format('%s bytes, at most 1048576', v_bad.bytes) end);
    end if;
  end if;
  v_queue := p_queue;
  v_type := p_message_type;
  v_options := p_options;
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key,
    correlation_id, trace_context, expires_at, concurrency_key)
  select v_queue, v_type, e.value, v_options, p_priority, v_run_at, p_max_attempts, p_conversation_key,
    coalesce(p_correlation_id, v_made), p_trace_context, p_expires_at, p_concurrency_key
  from jsonb_array_elements(p_payloads) with ordinality e order by e.ordinality;
  get diagnostics message_count = row_count;
  perform packhorse.wake_queue(p_queue);
exception when check_violation then -- the domain says which kind of check, not which payload
  for v_bad in select e.ordinality as place from jsonb_array_elements(p_payloads) with ordinality e where not packhorse.is_readable_json(e.value) limit 1 loop
    perform packhorse.refuse_argument(format('payloads[%s]', v_bad.place), 'is nested more than 500 levels deep, or holds a number of more than 4300 digits');
  end loop;
  raise;
end
$$;
comment on function packhorse.enqueue_payloads(text, text, jsonb, jsonb, integer, interval, timestamptz, integer, text, text, text, timestamptz, text)
  is 'Put many messages that differ in their payload only on a queue: an array of objects; all or none; returns how many.';

create or replace function packhorse.check_enqueue_times(p_run_ats timestamptz[], p_expires_ats timestamptz[]) returns void
language plpgsql stable as $$
-- Raise PH001 for the first bad time of a bulk enqueue: what check_enqueue_arguments says of one message.
begin
  if exists (select from unnest(p_run_ats) as r (at) where not isfinite(r.at) or r.at > clock_timestamp() + interval '3660 days') then
    perform packhorse.refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  elsif exists (select from rows from (unnest(p_run_ats), unnest(p_expires_ats)) as t (run_at, expires_at)
      where t.expires_at <= t.run_at and t.run_at > clock_timestamp()) then
    perform packhorse.refuse_argument('expires_at', 'the message could never start', 'It must be later than run_at, or now and the delay.');
  end if;
end
$$;
comment on function packhorse.check_enqueue_times(timestamptz[], timestamptz[]) is 'Raise PH001 for the first bad time of a bulk enqueue.';

create or replace function packhorse.enqueue_rows(
  p_queues text, p_types text, p_payloads text, p_options text, p_priorities text, p_run_ats text, p_max_attempts text,
  p_conversation_keys text, p_correlation_ids text, p_trace_contexts text, p_expires_ats text, p_concurrency_keys text
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- Used by the bulk enqueue of the Python broker: a column per argument, values separated by chr(30), chr(31) for null; ids in order.
-- Wakes nobody: announce_messages does, once. Raises PH001, PH002.
declare
  v_queues constant text[] := string_to_array(p_queues, chr(30), chr(31));
  v_types constant text[] := string_to_array(p_types, chr(30), chr(31));
  -- of the columns' type: each name is checked once, not for each row
  v_texts constant text[] := array(select distinct n.name from unnest(v_queues || v_types) as n (name) where n.name is not null);
  v_names constant packhorse.message_name[] := v_texts;
  v_run_ats constant timestamptz[] := string_to_array(p_run_ats, chr(30), chr(31));
  v_expires_ats constant timestamptz[] := string_to_array(p_expires_ats, chr(30), chr(31));
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  perform packhorse.require_queue(q.name) from (select distinct n.name from unnest(v_queues) as n (name)) q;
  perform packhorse.check_enqueue_times(v_run_ats, v_expires_ats);
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key,
    correlation_id, trace_context, expires_at, concurrency_key)
  select v_names[array_position(v_texts, b.queue)], v_names[array_position(v_texts, b.message_type)], b.payload::jsonb, b.options::jsonb, b.priority::smallint, b.run_at, b.max_attempts::integer,
    b.conversation_key, coalesce(b.correlation_id, v_made), b.trace_context, b.expires_at, b.concurrency_key
  from rows from (unnest(v_queues), unnest(v_types),
    unnest(string_to_array(p_payloads, chr(30), chr(31))), unnest(string_to_array(p_options, chr(30), chr(31))),
    unnest(string_to_array(p_priorities, chr(30), chr(31))), unnest(v_run_ats),
    unnest(string_to_array(p_max_attempts, chr(30), chr(31))), unnest(string_to_array(p_conversation_keys, chr(30), chr(31))),
    unnest(string_to_array(p_correlation_ids, chr(30), chr(31))), unnest(string_to_array(p_trace_contexts, chr(30), chr(31))),
    unnest(v_expires_ats), unnest(string_to_array(p_concurrency_keys, chr(30), chr(31))))
    with ordinality as b (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key, correlation_id,
    trace_context, expires_at, concurrency_key, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_rows(text, text, text, text, text, text, text, text, text, text, text, text)
  is 'Used by the bulk enqueue of the Python broker: a column per argument.';

create or replace function packhorse.enqueue_rows_with_states(
  p_queues text, p_types text, p_payloads text, p_options text, p_priorities text, p_run_ats text, p_max_attempts text,
  p_conversation_keys text, p_correlation_ids text, p_trace_contexts text, p_expires_ats text, p_concurrency_keys text, p_states text
) returns void
language plpgsql volatile as $$
-- The same with the state of each row, by a role that may insert: which of them are blocked behind an earlier one of the batch.
declare
  v_queues constant text[] := string_to_array(p_queues, chr(30), chr(31));
  v_types constant text[] := string_to_array(p_types, chr(30), chr(31));
  v_texts constant text[] := array(select distinct n.name from unnest(v_queues || v_types) as n (name) where n.name is not null);
  v_names constant packhorse.message_name[] := v_texts;
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key,
    correlation_id, trace_context, expires_at, concurrency_key, state)
  select v_names[array_position(v_texts, b.queue)], v_names[array_position(v_texts, b.message_type)], b.payload::jsonb, b.options::jsonb, b.priority::smallint, b.run_at::timestamptz, b.max_attempts::integer,
    b.conversation_key, coalesce(b.correlation_id, v_made), b.trace_context, b.expires_at::timestamptz, b.concurrency_key, b.state
  from rows from (unnest(v_queues), unnest(v_types),
    unnest(string_to_array(p_payloads, chr(30), chr(31))), unnest(string_to_array(p_options, chr(30), chr(31))),
    unnest(string_to_array(p_priorities, chr(30), chr(31))), unnest(string_to_array(p_run_ats, chr(30), chr(31))),
    unnest(string_to_array(p_max_attempts, chr(30), chr(31))), unnest(string_to_array(p_conversation_keys, chr(30), chr(31))),
    unnest(string_to_array(p_correlation_ids, chr(30), chr(31))), unnest(string_to_array(p_trace_contexts, chr(30), chr(31))),
    unnest(string_to_array(p_expires_ats, chr(30), chr(31))), unnest(string_to_array(p_concurrency_keys, chr(30), chr(31))),
    unnest(string_to_array(p_states, chr(30), chr(31))))
    with ordinality as b (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key, correlation_id,
    trace_context, expires_at, concurrency_key, state, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_rows_with_states(text, text, text, text, text, text, text, text, text, text, text, text, text)
  is 'Used by the bulk enqueue of a role that may insert: a column per argument, and the state.';

create or replace function packhorse.enqueue_alike(
  p_queue text, p_message_type text, p_priority smallint, p_run_at timestamptz, p_max_attempts integer, p_conversation_key text,
  p_correlation_id text, p_trace_context text, p_expires_at timestamptz, p_concurrency_key text, p_payloads text, p_options text
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- The same for messages that differ in payload and options only: the usual case, and a third cheaper.
declare
  -- of the column's type: checked once, not for each row
  v_queue constant packhorse.message_name := p_queue;
  v_type constant packhorse.message_name := p_message_type;
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  perform packhorse.require_queue(p_queue);
  perform packhorse.check_enqueue_times(array[p_run_at], array[p_expires_at]);
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts, conversation_key,
    correlation_id, trace_context, expires_at, concurrency_key)
  select v_queue, v_type, b.payload::jsonb, b.options::jsonb, p_priority, p_run_at, p_max_attempts, p_conversation_key,
    coalesce(p_correlation_id, v_made), p_trace_context, p_expires_at, p_concurrency_key
  from rows from (unnest(string_to_array(p_payloads, chr(30))), unnest(string_to_array(p_options, chr(30))))
    with ordinality as b (payload, options, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_alike(text, text, smallint, timestamptz, integer, text, text, text, timestamptz, text, text, text)
  is 'Used by the bulk enqueue of the Python broker: messages that differ in payload and options only.';

create or replace function packhorse.announce_messages(p_queues text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- After a bulk enqueue: refuse a queue that nobody has declared (PH002), and wake sleeping workers of the others.
declare
  v_queue text;
begin
  foreach v_queue in array p_queues loop
    perform packhorse.require_queue(v_queue);
    perform packhorse.wake_queue(v_queue);
  end loop;
end
$$;
comment on function packhorse.announce_messages(text[]) is 'After a bulk enqueue: the queues must exist; their sleeping workers are woken.';

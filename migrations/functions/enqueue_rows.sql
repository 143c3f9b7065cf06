-- Enqueue rows: the bulk enqueue of the Python broker, a text per column with the values of all rows (SPEC
-- Q9). Values are separated by chr(30); chr(31) stands for null. Neither occurs in JSON text; other columns
-- are checked.

create or replace function packhorse.check_enqueue_times(p_run_ats timestamptz[], p_expires_ats timestamptz[])
returns void
language plpgsql stable as $$
-- Raise PH001 for the first bad time of a bulk enqueue: what check_enqueue_arguments says of one message.
begin
  if exists (select from unnest(p_run_ats) as r (at)
      where not isfinite(r.at) or r.at > clock_timestamp() + interval '3660 days') then
    perform packhorse.refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  elsif exists (select from rows from (unnest(p_run_ats), unnest(p_expires_ats)) as t (run_at, expires_at)
      where t.expires_at <= t.run_at and t.run_at > clock_timestamp()) then
    perform packhorse.refuse_argument('expires_at', 'the message could never start',
      'It must be later than run_at, or now and the delay.');
  end if;
end
$$;
comment on function packhorse.check_enqueue_times(timestamptz[], timestamptz[])
  is 'Raise PH001 for the first bad time of a bulk enqueue.';

create or replace function packhorse.enqueue_rows(
  p_queues text, p_types text, p_payloads text, p_options text, p_priorities text, p_run_ats text,
  p_max_attempts text, p_conversation_keys text, p_correlation_ids text, p_trace_contexts text,
  p_expires_ats text, p_concurrency_keys text, p_fairness_keys text
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- Used by the bulk enqueue of the Python broker; ids in order. Wakes nobody: announce_messages does, once.
-- Raises PH001, PH002.
declare
  v_queues constant text[] := string_to_array(p_queues, chr(30), chr(31));
  v_types constant text[] := string_to_array(p_types, chr(30), chr(31));
  -- of the columns' type: each name is checked once, not for each row
  v_texts constant text[] := array(
    select distinct n.name from unnest(v_queues || v_types) as n (name) where n.name is not null);
  v_names constant packhorse.message_name[] := v_texts;
  v_run_ats constant timestamptz[] := string_to_array(p_run_ats, chr(30), chr(31));
  v_expires_ats constant timestamptz[] := string_to_array(p_expires_ats, chr(30), chr(31));
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  perform packhorse.require_queue(q.name) from (select distinct n.name from unnest(v_queues) as n (name)) q;
  perform packhorse.check_enqueue_times(v_run_ats, v_expires_ats);
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key)
  select v_names[array_position(v_texts, b.queue)], v_names[array_position(v_texts, b.message_type)],
    b.payload::jsonb, b.options::jsonb, b.priority::smallint, b.run_at, b.max_attempts::integer,
    b.conversation_key, coalesce(b.correlation_id, v_made), b.trace_context, b.expires_at, b.concurrency_key,
    b.fairness_key
  from rows from (unnest(v_queues), unnest(v_types), unnest(string_to_array(p_payloads, chr(30), chr(31))),
    unnest(string_to_array(p_options, chr(30), chr(31))), unnest(string_to_array(p_priorities, chr(30),
    chr(31))), unnest(v_run_ats), unnest(string_to_array(p_max_attempts, chr(30), chr(31))),
    unnest(string_to_array(p_conversation_keys, chr(30), chr(31))),
    unnest(string_to_array(p_correlation_ids, chr(30), chr(31))),
    unnest(string_to_array(p_trace_contexts, chr(30), chr(31))), unnest(v_expires_ats),
    unnest(string_to_array(p_concurrency_keys, chr(30), chr(31))),
    unnest(string_to_array(p_fairness_keys, chr(30), chr(31))))
    with ordinality as b (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_rows(text, text, text, text, text, text, text, text, text, text, text,
  text, text) is 'Used by the bulk enqueue of the Python broker: a column per argument.';

create or replace function packhorse.enqueue_rows_with_states(
  p_queues text, p_types text, p_payloads text, p_options text, p_priorities text, p_run_ats text,
  p_max_attempts text, p_conversation_keys text, p_correlation_ids text, p_trace_contexts text,
  p_expires_ats text, p_concurrency_keys text, p_fairness_keys text, p_states text
) returns void
language plpgsql volatile as $$
-- The same with the state of each row, by a role that may insert: which of them are blocked behind an earlier
-- one of the batch.
declare
  v_queues constant text[] := string_to_array(p_queues, chr(30), chr(31));
  v_types constant text[] := string_to_array(p_types, chr(30), chr(31));
  v_texts constant text[] := array(
    select distinct n.name from unnest(v_queues || v_types) as n (name) where n.name is not null);
  v_names constant packhorse.message_name[] := v_texts;
  v_made constant text := gen_random_uuid()::text; -- as in enqueue_payloads
begin
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key, state)
  select v_names[array_position(v_texts, b.queue)], v_names[array_position(v_texts, b.message_type)],
    b.payload::jsonb, b.options::jsonb, b.priority::smallint, b.run_at::timestamptz, b.max_attempts::integer,
    b.conversation_key, coalesce(b.correlation_id, v_made), b.trace_context, b.expires_at::timestamptz,
    b.concurrency_key, b.fairness_key, b.state
  from rows from (unnest(v_queues), unnest(v_types), unnest(string_to_array(p_payloads, chr(30), chr(31))),
    unnest(string_to_array(p_options, chr(30), chr(31))), unnest(string_to_array(p_priorities, chr(30),
    chr(31))), unnest(string_to_array(p_run_ats, chr(30), chr(31))), unnest(string_to_array(p_max_attempts,
    chr(30), chr(31))), unnest(string_to_array(p_conversation_keys, chr(30), chr(31))),
    unnest(string_to_array(p_correlation_ids, chr(30), chr(31))),
    unnest(string_to_array(p_trace_contexts, chr(30), chr(31))),
    unnest(string_to_array(p_expires_ats, chr(30), chr(31))),
    unnest(string_to_array(p_concurrency_keys, chr(30), chr(31))),
    unnest(string_to_array(p_fairness_keys, chr(30), chr(31))), unnest(string_to_array(p_states, chr(30),
      chr(31))))
    with ordinality as b (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key, state, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_rows_with_states(text, text, text, text, text, text, text, text, text,
  text, text, text, text, text)
  is 'Used by the bulk enqueue of a role that may insert: a column per argument, and the state.';

create or replace function packhorse.enqueue_alike(
  p_queue text, p_message_type text, p_priority smallint, p_run_at timestamptz, p_max_attempts integer,
  p_conversation_key text, p_correlation_id text, p_trace_context text, p_expires_at timestamptz,
  p_concurrency_key text, p_fairness_key text, p_payloads text, p_options text
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
  insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at, max_attempts,
    conversation_key, correlation_id, trace_context, expires_at, concurrency_key, fairness_key)
  select v_queue, v_type, b.payload::jsonb, b.options::jsonb, p_priority, p_run_at, p_max_attempts,
    p_conversation_key, coalesce(p_correlation_id, v_made), p_trace_context, p_expires_at, p_concurrency_key,
    p_fairness_key
  from rows from (unnest(string_to_array(p_payloads, chr(30))), unnest(string_to_array(p_options, chr(30))))
    with ordinality as b (payload, options, place)
  order by b.place;
end
$$;
comment on function packhorse.enqueue_alike(text, text, smallint, timestamptz, integer, text, text, text,
  timestamptz, text, text, text, text)
  is 'Used by the bulk enqueue of the Python broker: messages that differ in payload and options only.';

create or replace function packhorse.announce_messages(p_queues text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- After a bulk enqueue: refuse a queue that nobody has declared (PH002), and wake sleeping workers of the
-- others.
declare
  v_queue text;
begin
  foreach v_queue in array p_queues loop
    perform packhorse.require_queue(v_queue);
    perform packhorse.wake_queue(v_queue);
  end loop;
end
$$;
comment on function packhorse.announce_messages(text[])
  is 'After a bulk enqueue: the queues must exist; their sleeping workers are woken.';

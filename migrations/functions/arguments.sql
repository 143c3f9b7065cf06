-- Refusals of bad arguments, for all functions (SPEC Q2).
--
-- The whole SQL API refuses with private SQLSTATEs:
--   PH001 bad argument (its name in COLUMN)   PH002 unknown queue   PH003 lease lost
--   PH004 no such message                     PH005 not possible in the message's state

create or replace function packhorse.refuse_argument(p_name text, p_problem text, p_hint text default '') returns void
language plpgsql immutable as $$
-- Raise PH001 for one argument: its name, what is wrong, what to do.
begin
  if p_hint = '' then
    raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem);
  end if;
  raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem), hint = p_hint;
end
$$;
comment on function packhorse.refuse_argument(text, text, text) is 'Raise PH001 that names the argument.';

create or replace function packhorse.refuse_delay(p_run_at timestamptz) returns void
language plpgsql immutable as $$
-- Raise PH001 for a delay: beside a run_at, or too long.
begin
  perform packhorse.refuse_argument('delay', case when p_run_at is null then 'must be at most ten years' else 'give delay or run_at, not both' end);
end
$$;
comment on function packhorse.refuse_delay(timestamptz) is 'Raise PH001 for a delay beside a run_at, or for one that is too long.';

create or replace function packhorse.check_lease(p_lease interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a lease is 1 second to 1 day long: an endless one would lose its message for ever.
begin
  if p_lease is null or p_lease not between interval '1 second' and interval '1 day' then
    perform packhorse.refuse_argument('lease', format('%s is out of range', coalesce(p_lease::text, 'null')), '1 second to 1 day.');
  end if;
end
$$;
comment on function packhorse.check_lease(interval) is 'Raise PH001 unless the length of a lease is in range.';

create or replace function packhorse.check_age(p_name text, p_age interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless an age is 0 to 1000 years: a negative one would mean the future, none at all everything or nothing.
begin
  if p_age is null or p_age not between interval '0' and interval '1000 years' then
    perform packhorse.refuse_argument(p_name, format('%s is out of range', coalesce(p_age::text, 'null')), '0 to 1000 years.');
  end if;
end
$$;
comment on function packhorse.check_age(text, interval) is 'Raise PH001 unless an age is in range.';

create or replace function packhorse.check_batch(p_limit integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a batch has 1 to 100000 rows: no statement of the upkeep is unbounded.
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', coalesce(p_limit::text, 'null')), '1 to 100000.');
  end if;
end
$$;
comment on function packhorse.check_batch(integer) is 'Raise PH001 unless the size of a batch is in range.';

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

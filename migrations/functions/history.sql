-- The attempt history of a message: bounded, with one fingerprint per cause (SPEC Q3, Q4).

create or replace function packhorse.bounded_text(p_text text, p_length integer) returns text
language sql immutable as $$
  select left(p_text, p_length);
$$;
comment on function packhorse.bounded_text(text, integer) is
  'A text of at most so many characters: what is stored about a failure is bounded.';

create or replace function packhorse.append_history(
  p_history jsonb, p_attempt integer, p_event text, p_error_class text, p_error_message text, p_holder uuid,
  p_error_code text default null, p_traceback text default null
) returns jsonb
language sql volatile as $$
-- The attempt history keeps the last 20 entries (bounded, SPEC Q3). What stands there and is no array (a row
-- made by hand) is left out: no ending of a message may fail for it. p_traceback: its last 4096 characters
-- are kept, for the end of a traceback says where it happened, and what (SPEC W13).
  select coalesce(jsonb_agg(e.entry order by e.place), '[]') from (
    select h.entry, h.place
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history else '[]' end
      || jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
      'attempt', p_attempt, 'event', p_event, 'at', clock_timestamp(),
      'error_class', packhorse.bounded_text(p_error_class, 200),
      'error_message', packhorse.bounded_text(p_error_message, 500), 'error_code', p_error_code,
      'holder', p_holder, 'traceback',
      case when length(p_traceback) > 4096 then '[...]' || right(p_traceback, 4091)
        else p_traceback end)))) with ordinality as h (entry, place)
    order by h.place desc limit 20) e;
$$;
comment on function packhorse.append_history(jsonb, integer, text, text, text, uuid, text, text) is
  'One more entry in a bounded attempt history.';

create or replace function packhorse.failure_details(p_details jsonb, out error_code text,
  out error_details jsonb)
language plpgsql stable as $$
-- What a failure is kept with besides its text: its code (100 characters), and as error_details its context
-- (an object of at most 16 KiB), recoverable and retryable. What is of another kind is left out: what a
-- handler did is always stored.
declare
  v_context jsonb := p_details -> 'context';
begin
  if jsonb_typeof(p_details -> 'code') = 'string' then
    error_code := packhorse.bounded_text(p_details ->> 'code', 100);
  end if;
  if jsonb_typeof(v_context) is distinct from 'object' then
    v_context := null;
  elsif pg_column_size(v_context) > 16384 then
    v_context := jsonb_build_object('left_out', 'too large');
  end if;
  error_details := case when v_context is null then '{}' else jsonb_build_object('context', v_context) end
    || case when jsonb_typeof(p_details -> 'recoverable') = 'boolean'
      then jsonb_build_object('recoverable', p_details -> 'recoverable') else '{}' end
    || case when jsonb_typeof(p_details -> 'retryable') = 'boolean'
      then jsonb_build_object('retryable', p_details -> 'retryable') else '{}' end;
  if error_details = '{}' then
    error_details := null;
  end if;
end
$$;
comment on function packhorse.failure_details(jsonb) is
  'The code of a failure, and its context and flags, bounded.';

create or replace function packhorse.history_tail(p_history jsonb, p_event text) returns integer
language sql immutable as $$
-- How many of the last entries of an attempt history are of this event, without another one between them.
  select count(*)::integer from (
    select bool_and(h.entry ->> 'event' = p_event) over (order by h.place desc) as alike
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history
      else '[]' end) with ordinality as h (entry, place)
  ) e where e.alike;
$$;
comment on function packhorse.history_tail(jsonb, text) is
  'How many entries at the end of an attempt history are of this event.';

create or replace function packhorse.json_milliseconds(p_value jsonb) returns interval
language sql immutable as $$
-- A JSON number of milliseconds as an interval of 0 to ten years; null for anything else.
  select case when jsonb_typeof(p_value) = 'number'
    then make_interval(secs => least(greatest((p_value operator(pg_catalog.#>>) '{}')::numeric, 0),
      316224000000)::double precision / 1000::float8) end;
$$;
comment on function packhorse.json_milliseconds(jsonb) is
  'A JSON number of milliseconds as an interval; null for anything else.';

create or replace function packhorse.error_fingerprint(p_message_type text, p_error_class text,
  p_error_message text, p_frame text) returns text
language sql immutable as $$
-- Groups dead letters: type, error class, own top frame, message without numbers, quoted parts and hex.
  select md5(concat_ws('|', p_message_type, p_error_class, p_frame,
    left(regexp_replace(regexp_replace(left(coalesce(p_error_message, ''), 2000), '''[^'']*''|"[^"]*"', '*',
      'g'),
      '[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*', '#', 'g'), 200)));
$$;
comment on function packhorse.error_fingerprint(text, text, text, text) is
  'Equal for failures with the same cause.';

-- Steps: what a handler stores on its way, so that no later attempt pays for it again (SPEC W3c).
--
-- They stand in the message's own row and go where it goes: over retry, snooze, release and rescue, into the
-- archive, into a dead letter and back. `steps` is an object, name -> {"value": ..., "at": ..., "attempt":
-- n}. Bounds: a name has 1 to 100 characters, a value 256 KiB of JSON text, a message 100 steps and 1 MiB of
-- them together (worker/attempt/steps.py has the same numbers).

create or replace function packhorse.check_step(p_name text, p_value jsonb) returns void
language plpgsql immutable as $$
-- Raise PH001 for a step without a name or without a value.
begin
  if p_name is null or length(p_name) not between 1 and 100 then
    perform packhorse.refuse_argument('name', format('%L is no name of a step', left(p_name, 60)),
      '1 to 100 characters.');
  elsif p_value is null then
    perform packhorse.refuse_argument('value', 'must not be null',
      'Nothing is stored as the JSON value null.');
  end if;
end
$$;
comment on function packhorse.check_step(text, jsonb) is 'Raise PH001 for a step without a name or a value.';

create or replace function packhorse.add_step(p_steps jsonb, p_attempt integer, p_name text, p_value jsonb,
  out answer text, out steps jsonb)
language plpgsql as $$
-- One more step to those of a message: the answer of store_message_steps, and what is to be written, null
-- when that is nothing. The same value that the same attempt has stored already counts as stored: the answer
-- to the first call may have been lost.
declare
  v_others constant boolean := p_steps is not null and p_steps <> '{}' and jsonb_typeof(p_steps) = 'object';
  v_known jsonb;
begin
  if v_others then
    v_known := p_steps -> p_name;
    if v_known is not null then
      answer := case when v_known -> 'value' = p_value and v_known -> 'attempt' = to_jsonb(p_attempt)
        then 'stored' else 'exists' end;
      return;
    elsif (select count(*) from jsonb_object_keys(p_steps)) >= 100 then
      answer := 'too_many';
      return;
    end if;
  end if;
  answer := 'too_large';
  if octet_length(p_value::text) > 262144 then
    return;
  end if;
  steps := jsonb_build_object(p_name,
    jsonb_build_object('value', p_value, 'at', clock_timestamp(), 'attempt', p_attempt));
  if v_others then
    steps := p_steps || steps;
    if octet_length(steps::text) > 1048576 then
      steps := null;
      return;
    end if;
  end if;
  answer := 'stored';
end
$$;
comment on function packhorse.add_step(jsonb, integer, text, jsonb) is
  'Used by store_message_steps: one more step to those of a message.';

create or replace function packhorse.store_message_steps(p_ids bigint[], p_tokens bigint[], p_names text[],
  p_values jsonb[]) returns text[]
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Store steps of messages that run, fenced by their lease tokens; several of one message are all kept. One
-- answer per position: stored; lost (somebody else owns the message); exists (another value has this name, or
-- an earlier attempt stored it); too_large; too_many; busy (somebody has locked the row: try again, the
-- others are stored). Locks the rows by id, and waits for none. Arrays of equal length, at most 10000, else
-- PH001.
declare
  v_step record;
  v_message record;
  v_added record;
  v_answers text[] := array_fill(null::text, array[coalesce(cardinality(p_ids), 0)]);
begin
  if (cardinality(p_ids) <= 10000 and cardinality(p_tokens) = cardinality(p_ids)
    and cardinality(p_names) = cardinality(p_ids)
      and cardinality(p_values) = cardinality(p_ids)) is not true then
    perform packhorse.refuse_argument('values',
      'ids, tokens, names and values must have the same length, at most 10000');
  end if;
  for v_step in
    select s.* from (
      select generate_series(1, cardinality(p_ids)) as place, unnest(p_ids) as id, unnest(p_tokens) as token,
        unnest(p_names) as name, unnest(p_values) as value) s
    order by s.id, s.place
  loop
    if (length(v_step.name) between 1 and 100 and v_step.value is not null) is not true then
      perform packhorse.check_step(v_step.name, v_step.value);
    end if;
    select m.steps, m.attempt into v_message from packhorse.message_queue m
    where m.id = v_step.id and m.lease_token = v_step.token and m.state = 'running'
    for no key update skip locked;
    if found then
      v_added := packhorse.add_step(v_message.steps, v_message.attempt, v_step.name, v_step.value);
      v_answers[v_step.place] := v_added.answer;
      if v_added.steps is not null then
        update packhorse.message_queue m set steps = v_added.steps where m.id = v_step.id;
      end if;
    else
      v_answers[v_step.place] := case when exists (select from packhorse.message_queue m
        where m.id = v_step.id and m.lease_token = v_step.token and m.state = 'running') then 'busy'
        else 'lost' end;
    end if;
  end loop;
  return v_answers;
end
$$;
comment on function packhorse.store_message_steps(bigint[], bigint[], text[], jsonb[]) is
  'Store steps of running messages, fenced by lease tokens; one answer each.';

create or replace function packhorse.store_message_step(p_id bigint, p_token bigint, p_name text,
  p_value jsonb) returns boolean
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Store one step of a message that the caller runs. False when its lease was lost: somebody else owns it,
-- stop. Raises PH001 for a name that is taken or no name, for a value that is too large, and for one step too
-- many.
declare
  v_message record;
  v_added record;
begin
  perform packhorse.check_step(p_name, p_value);
  select m.steps, m.attempt into v_message from packhorse.message_queue m
  where m.id = p_id and m.lease_token = p_token and m.state = 'running' for no key update;
  if not found then
    return false;
  end if;
  v_added := packhorse.add_step(v_message.steps, v_message.attempt, p_name, p_value);
  case v_added.answer
    when 'exists' then
      perform packhorse.refuse_argument('name',
        format('message %s has stored a step %L already', p_id, p_name), 'message_steps() reads it.');
    when 'too_many' then
      perform packhorse.refuse_argument('name',
        format('message %s has stored 100 steps, which is the most', p_id));
    when 'too_large' then
      perform packhorse.refuse_argument('value',
        format('step %L has %s bytes of JSON: it, or all steps together, are too large', p_name,
        octet_length(p_value::text)),
        'At most 262144 bytes for one, 1048576 together. Store the large part elsewhere and keep its key.');
    else
      null;
  end case;
  if v_added.steps is not null then
    update packhorse.message_queue m set steps = v_added.steps where m.id = p_id;
  end if;
  return true;
end
$$;
comment on function packhorse.store_message_step(bigint, bigint, text, jsonb) is
  'Store one step of a running message; false when its lease was lost.';

create or replace function packhorse.message_steps(p_id bigint)
returns table (name text, value jsonb, stored_at timestamptz, attempt integer, bytes integer)
language sql stable as $$
-- The steps that a message has stored, wherever it is, in the order of time; no row when there are none.
-- bytes: of the value as JSON text.
  select e.key, e.value -> 'value', (e.value ->> 'at')::timestamptz, (e.value ->> 'attempt')::integer,
    octet_length((e.value -> 'value')::text)
  from (
    select s.steps from (
      select m.steps, 1 as place from packhorse.message_queue m where m.id = p_id
      union all
      select d.steps, 2 from packhorse.dead_letters d where d.id = p_id
      union all
      (select a.steps, 3 from packhorse.message_archive a where a.id = p_id
        order by a.finished_at desc limit 1)) s
    order by s.place limit 1) found
  cross join lateral jsonb_each(case when jsonb_typeof(found.steps) = 'object' then found.steps
    else '{}' end) e
  order by 3, 1;
$$;
comment on function packhorse.message_steps(bigint) is 'The steps that a message has stored, wherever it is.';

create or replace function packhorse.describe_steps(p_steps jsonb, p_characters integer default 0)
returns jsonb
language sql immutable as $$
-- For people: an array of {name, attempt, at, bytes}, null when there are no steps. p_characters: with so
-- many of each value, as text.
  select jsonb_agg(jsonb_strip_nulls(jsonb_build_object('name', e.key, 'attempt', e.value -> 'attempt',
    'at', e.value -> 'at', 'bytes', octet_length((e.value -> 'value')::text),
    'value',
    case when p_characters > 0 then packhorse.bounded_text((e.value -> 'value')::text, p_characters) end))
    order by e.value ->> 'at', e.key)
  from jsonb_each(case when jsonb_typeof(p_steps) = 'object' then p_steps else '{}' end) e;
$$;
comment on function packhorse.describe_steps(jsonb, integer) is
  'Used by what shows a message: its steps, with a part of each value when asked.';

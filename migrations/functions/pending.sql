-- Pending keys and debounce (SPEC Q7b). A pending key is unique among the messages of a queue and type that
-- have not started; a further enqueue of the key returns the first, replaces its payload, or appends to it. A
-- debounced message is one that starts a window after the last payload (run_at moves), at gathers_until at
-- the latest. No second gate: run_at is the window, so claim, alarm and explain know it.
--
-- "Has not started" is claimed_at is null: the first claim sets it and nothing clears it. So a message that
-- waits for a retry takes nothing more: the steps that it has stored belong to the payloads it had.
--
-- Whoever answers with the first locks its row until his transaction ends: what he wrote there is seen by the
-- handler, for a claim passes over the row. Two producers of one key therefore wait for each other, and two
-- that take two keys in different orders may deadlock, as with dedup windows.

create or replace function packhorse.are_pending_arguments(
  p_payload jsonb, p_options jsonb, p_timed boolean, p_expires_at timestamptz, p_pending_key text,
  p_when_pending text, p_debounce interval, p_max_wait interval
) returns boolean
language sql immutable as $$
-- True: nothing is wrong with them. Else check_pending_arguments says what, if anything.
  select length(p_pending_key) between 1 and 500 and p_when_pending in ('return', 'replace', 'append')
    and (p_debounce is null and p_max_wait is null or p_debounce between interval '0' and interval '1 day'
      and p_when_pending <> 'return' and not p_timed and p_expires_at is null
      and (p_max_wait is null or p_max_wait between p_debounce and interval '1 day'))
    and not p_options ?| array['group_callback_uuid', 'group_completion_uuid', 'pipe_target']
    and (p_when_pending <> 'append' or jsonb_array_length(p_payload -> 'messages') between 1 and 1000
      and pg_column_size(p_payload) <= 1048576 and packhorse.is_readable_json(p_payload));
$$;
comment on function packhorse.are_pending_arguments(jsonb, jsonb, boolean, timestamptz, text, text, interval,
  interval)
  is 'Used by enqueue_pending: is nothing wrong with its arguments?';

create or replace function packhorse.check_pending_arguments(
  p_payload jsonb, p_options jsonb, p_timed boolean, p_expires_at timestamptz, p_pending_key text,
  p_when_pending text, p_debounce interval, p_max_wait interval, p_now timestamptz
) returns void
language plpgsql immutable as $$
-- Raise PH001 for the first argument of a pending key that cannot be; called when are_pending_arguments says
-- no. p_timed: delay or run_at was given. p_payload: as it will be stored.
begin
  if p_when_pending not in ('return', 'replace', 'append') then
    perform packhorse.refuse_argument('when_pending', format('there is no %L', left(p_when_pending, 60)),
      'return, replace or append.');
  elsif p_pending_key is null then
    perform packhorse.refuse_argument('pending_key',
      'when_pending, debounce and max_wait mean nothing without it',
      'Give it, too; beside debounce a conversation_key will do.');
  elsif length(p_pending_key) not between 1 and 500 then
    perform packhorse.refuse_argument('pending_key', 'must have 1 to 500 characters');
  elsif p_debounce is null and p_max_wait is not null then
    perform packhorse.refuse_argument('max_wait', 'without debounce it means nothing', 'Give debounce, too.');
  elsif p_debounce not between interval '0' and interval '1 day' then
    perform packhorse.refuse_argument('debounce', format('%s is out of range', p_debounce), '0 to 1 day.');
  elsif p_debounce is not null and p_when_pending = 'return' then
    perform packhorse.refuse_argument('when_pending',
      'return leaves the time of the first, debounce moves it',
      'append or replace.');
  elsif p_debounce is not null and p_timed then
    perform packhorse.refuse_argument('debounce', 'delay or run_at, too, says when it may start',
      'Give one of them.');
  elsif p_max_wait < p_debounce or p_max_wait > interval '1 day' then
    perform packhorse.refuse_argument('max_wait', format('%s is out of range', p_max_wait),
      'At least debounce, at most 1 day; default ten times debounce.');
  elsif p_debounce > interval '0' and p_expires_at <= p_now + p_debounce then
    perform packhorse.refuse_argument('expires_at', 'the message could never start',
      'It must be later than debounce.');
  elsif p_options ?| array['group_callback_uuid', 'group_completion_uuid', 'pipe_target'] then
    perform packhorse.refuse_argument('options',
      'what goes into another message ends no group and feeds no pipeline',
      'Send it without pending_key and debounce.');
  elsif p_when_pending = 'append' and jsonb_array_length(p_payload -> 'messages') not between 1 and 1000 then
    perform packhorse.refuse_argument('payload', format('%s messages, 1 to 1000',
      jsonb_array_length(p_payload -> 'messages')));
  end if;
  perform packhorse.check_enqueue_json(p_payload, p_options);
end
$$;
comment on function packhorse.check_pending_arguments(jsonb, jsonb, boolean, timestamptz, text, text,
  interval,
  interval, timestamptz) is 'Used by enqueue_pending: raise PH001 for the first bad argument.';

create or replace function packhorse.gathered_payload(p_payload jsonb) returns jsonb
language sql immutable as $$
-- What is appended to: {"messages": [payload, ...]}, for one payload, too. A payload that has this form
-- already (that key alone, an array of objects) stays as it is: `messages` is the handler's argument, and
-- callers may say it.
  select case when jsonb_typeof(p_payload -> 'messages') = 'array' and p_payload - 'messages'::text = '{}'
      and not p_payload @? 'strict $.messages[*] ? (@.type() != "object")' then p_payload
    else jsonb_build_object('messages', jsonb_build_array(p_payload)) end;
$$;
comment on function packhorse.gathered_payload(jsonb)
  is 'Used by enqueue_pending: the payload of a message that is appended to.';

create or replace function packhorse.close_pending_message(p_id bigint, p_now timestamptz) returns void
language sql volatile as $$
-- It takes nothing more; a debounced one is due at once, and not after the next one of its conversation: a
-- claim that meets that one first blocks it and passes over the conversation.
  update packhorse.message_queue m
  set pending_key = null, gathers_until = null,
    run_at = case when m.gathers_until is null then m.run_at else least(m.run_at, p_now, (
      select l.run_at from packhorse.message_queue l
      where l.conversation_key = m.conversation_key and l.state = 'pending'
        and l.id > m.id order by l.id limit 1)) end
  where m.id = p_id;
$$;
comment on function packhorse.close_pending_message(bigint, timestamptz)
  is 'A message takes nothing more: its pending key is free, and a debounced one is due at once.';

create or replace function packhorse.merge_into_pending(
  p_id bigint, p_first jsonb, p_when_pending text, p_conversation_key text, p_payload jsonb,
  p_expires_at timestamptz, p_debounce interval, p_now timestamptz
) returns boolean
language plpgsql as $$
-- Replace the payload p_first of a pending message that the caller has locked, or append to it. False: it
-- takes no more and is closed. It is full (1000 payloads, 1 MiB), an operator has made something else of its
-- payload, or it is not the last of its conversation any longer: what comes after others there must not go
-- before them (SPEC P4). A statement of its own after the one that has locked it: it sees what whoever had
-- the lock has put behind it. The window of a payload does not end before that of an earlier one.
declare
  v_append constant boolean := p_when_pending = 'append';
  v_payload jsonb := p_payload;
begin
  if v_append and jsonb_typeof(p_first -> 'messages') = 'array' then
    v_payload := p_first || jsonb_build_object('messages',
      (p_first -> 'messages') || (p_payload -> 'messages'));
  end if;
  if not v_append or (jsonb_typeof(p_first -> 'messages') = 'array'
      and jsonb_array_length(v_payload -> 'messages') <= 1000 and pg_column_size(v_payload) <= 1048576) then
    update packhorse.message_queue m
    set payload = v_payload,
      expires_at = case when not v_append then p_expires_at
        when m.expires_at is not null and p_expires_at is not null then greatest(m.expires_at,
          p_expires_at) end,
      run_at = case when p_debounce is null or m.gathers_until is null then m.run_at
        else greatest(m.run_at, least(p_now + p_debounce, m.gathers_until)) end
    where m.id = p_id and (not v_append or p_conversation_key is null or not (
      exists (select from packhorse.message_queue l
        where l.conversation_key = p_conversation_key and l.state = 'pending' and l.id > p_id)
      or exists (select from packhorse.message_queue l
        where l.conversation_key = p_conversation_key and l.state = 'blocked' and l.id > p_id)
      or exists (select from packhorse.message_queue l
        where l.conversation_key = p_conversation_key and l.state = 'running' and l.id > p_id)));
    if found then
      return true;
    end if;
  end if;
  perform packhorse.close_pending_message(p_id, p_now);
  return false;
end
$$;
comment on function packhorse.merge_into_pending(bigint, jsonb, text, text, jsonb, timestamptz, interval,
  timestamptz)
  is 'Used by enqueue_pending: replace the payload of a pending message, or append to it.';

create or replace function packhorse.enqueue_pending(
  p_queue text, p_message_type text, p_payload jsonb, p_options jsonb, p_priority integer,
  p_run_at timestamptz, p_timed boolean, p_max_attempts integer, p_conversation_key text, p_dedup_key text,
    p_correlation_id text,
  p_trace_context text, p_expires_at timestamptz, p_concurrency_key text, p_pending_key text,
  p_when_pending text, p_debounce interval, p_max_wait interval, p_fairness_key text, p_now timestamptz,
  out message_id bigint, out duplicate boolean, out merged boolean, out announce boolean
)
language plpgsql set enable_seqscan = off as $$
-- enqueue_message with a pending key, by default the conversation of a debounced message. announce: a
-- sleeping worker may not know of it. What moves to later needs no word, unless its old time may be over at
-- the commit.
declare
  v_key constant text := coalesce(p_pending_key,
    case when p_debounce is not null then p_conversation_key end);
  v_when constant text := coalesce(p_when_pending,
    case when p_debounce is null then 'return' else 'append' end);
  v_payload constant jsonb := case v_when when 'append'
    then packhorse.gathered_payload(p_payload) else p_payload end;
  v_until constant timestamptz := case when p_debounce is not null
    then p_now + coalesce(p_max_wait, least(10::float8 * p_debounce, interval '1 day')) end;
  v_first record;
begin
  if packhorse.are_pending_arguments(v_payload, p_options, p_timed, p_expires_at, v_key, v_when, p_debounce,
      p_max_wait) is not true then
    perform packhorse.check_pending_arguments(v_payload, p_options, p_timed, p_expires_at, v_key, v_when,
      p_debounce, p_max_wait, p_now);
  end if;
  loop
    select m.id, m.payload, m.conversation_key, m.run_at into v_first from packhorse.message_queue m
    where m.queue = p_queue and m.message_type = p_message_type and m.pending_key = v_key
      and m.claimed_at is null
    for no key update;
    if not found then
      insert into packhorse.message_queue (queue, message_type, payload, options, priority, run_at,
        max_attempts, conversation_key, dedup_key, correlation_id, trace_context, expires_at,
        concurrency_key, pending_key, gathers_until, fairness_key)
      values (p_queue, p_message_type, v_payload, p_options, p_priority, p_run_at + coalesce(p_debounce, '0'),
        p_max_attempts, p_conversation_key, p_dedup_key, coalesce(p_correlation_id, gen_random_uuid()::text),
        p_trace_context, p_expires_at, p_concurrency_key, v_key, v_until, p_fairness_key)
      on conflict (queue, message_type, pending_key) where pending_key is not null
        and claimed_at is null do nothing
      returning id into message_id;
      duplicate := false;
      merged := false;
      announce := true;
      exit when message_id is not null;
      continue; -- another producer was first: look at what he made
    end if;
    message_id := v_first.id;
    duplicate := true;
    merged := v_when <> 'return';
    announce := v_first.run_at <= p_now + interval '1 second';
    if v_when <> 'return' and v_first.conversation_key is distinct from p_conversation_key then
      perform packhorse.refuse_argument('conversation_key', 'the pending message of this key has another one',
        'Let pending_key decide the conversation.');
    end if;
    exit when v_when = 'return' or packhorse.merge_into_pending(v_first.id, v_first.payload, v_when,
      p_conversation_key, v_payload, p_expires_at, p_debounce, p_now);
  end loop;
end
$$;
comment on function packhorse.enqueue_pending(text, text, jsonb, jsonb, integer, timestamptz, boolean,
  integer, text, text,
  text, text, timestamptz, text, text, text, interval, interval, text, timestamptz)
  is 'Used by enqueue_message: one that has a pending key, or is debounced.';

create or replace function packhorse.is_superseded(p_id bigint) returns boolean
language plpgsql stable set enable_seqscan = off as $$
-- Is there a later live message of this one's conversation? Without a conversation: one of its pending key
-- that has not started. False also for a message that lives no longer. Nothing is locked: the next moment may
-- answer otherwise.
declare
  v_m record;
begin
  select m.queue, m.message_type, m.conversation_key, m.pending_key into v_m
  from packhorse.message_queue m where m.id = p_id;
  if v_m.conversation_key is not null then
    -- one look into the index of each state; one that runs is not behind one that runs
    return exists (select from packhorse.message_queue l
        where l.conversation_key = v_m.conversation_key and l.state = 'pending' and l.id > p_id)
      or exists (select from packhorse.message_queue l
        where l.conversation_key = v_m.conversation_key and l.state = 'blocked' and l.id > p_id);
  end if;
  return exists (select from packhorse.message_queue l where l.queue = v_m.queue
    and l.message_type = v_m.message_type
    and l.pending_key = v_m.pending_key and l.claimed_at is null and l.id <> p_id);
end
$$;
comment on function packhorse.is_superseded(bigint)
  is 'Is there a later live message of the same conversation, or of the same pending key?';

-- What an operator does with one message that does not run (SPEC Q5): edit, reschedule, move, priority,
-- limits, bury, clone, retry.
--
-- Each answers with a word: what it did, or the state that forbids it (running, done, cancelled, dead), or
-- gone. One that runs is its worker's; cancel_message asks that worker to stop. Each act is recorded in
-- operator_actions in the same transaction.
--
-- Order of a conversation (SPEC P4): it goes by id over all queues, and none of these changes the id of a
-- message or takes a row away but bury, which promotes as every end does. So a message that is edited,
-- rescheduled, moved or given another priority keeps its place: one that is first holds the others until it
-- is done, wherever and whenever that is. A clone has a new id and stands at the end.

create or replace function packhorse.lock_waiting_message(p_id bigint) returns text
language plpgsql as $$
-- Null: the message waits (pending or blocked), and its row is locked until the transaction ends. Else where
-- it is: running, done, cancelled, dead or gone. Not FOR UPDATE: a claim that blocks others behind this one
-- (FOR KEY SHARE) need not wait, for the row stays.
declare
  v_state text;
begin
  loop
    perform 1 from packhorse.message_queue m where m.id = p_id and m.state <> 'running' for no key update;
    if found then
      return null;
    end if;
    v_state := coalesce(
      (select m.state::text from packhorse.message_queue m where m.id = p_id),
      (select 'dead'::text from packhorse.dead_letters d where d.id = p_id),
      (select a.state from packhorse.message_archive a where a.id = p_id limit 1), 'gone');
    -- its holder gave it back between the two statements: look again
    exit when v_state not in ('pending', 'blocked');
  end loop;
  return v_state;
end
$$;
comment on function packhorse.lock_waiting_message(bigint) is
  'Used by the verbs of operators: lock a message that waits; else say where it is.';

create or replace function packhorse.payload_change(p_before jsonb, p_after jsonb) returns jsonb
language sql immutable as $$
-- What the record of an edit keeps: which top-level keys differ (100 at most) and a hash of either side. No
-- values: they may be personal.
  select jsonb_build_object(
    'changed', coalesce((select jsonb_agg(k.key order by k.key) from (
      select n.key
      from (select b.key from jsonb_object_keys(p_before) as b (key) union select a.key
        from jsonb_object_keys(p_after) as a (key)) n
      where p_before -> n.key is distinct from p_after -> n.key order by n.key limit 100) k), '[]'),
    'before', md5(p_before::text), 'after', md5(p_after::text));
$$;
comment on function packhorse.payload_change(jsonb, jsonb) is
  'Which top-level keys of two payloads differ, and a hash of each.';

create or replace function packhorse.check_edited_payload(p_payload jsonb) returns void
language plpgsql immutable as $$
-- Raise PH001 unless it is an object of at most 1 MiB.
begin
  if p_payload is null or jsonb_typeof(p_payload) <> 'object' then
    perform packhorse.refuse_argument('payload',
      format('must be a JSON object, not %s', coalesce(jsonb_typeof(p_payload), 'null')));
  elsif pg_column_size(p_payload) > 1048576 then
    perform packhorse.refuse_argument('payload',
      format('%s bytes, at most 1048576', pg_column_size(p_payload)));
  end if;
end
$$;
comment on function packhorse.check_edited_payload(jsonb) is
  'Used by edit_message and edit_dead_letter: may this be a payload?';

create or replace function packhorse.edit_message(
  p_id bigint, p_payload jsonb, p_operator text default current_user, p_reason text default null,
  p_before jsonb default null, p_fresh boolean default false
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Replace the payload of a message that waits: 'edited', else the state that forbids it. p_before: the
-- payload that the editor has seen; when somebody has changed it meanwhile, PH005 and nothing happens.
-- p_fresh: the steps that it has stored are forgotten. Raises PH001.
declare
  v_forbidden text;
  v_old jsonb;
begin
  perform packhorse.check_edited_payload(p_payload);
  v_forbidden := packhorse.lock_waiting_message(p_id);
  if v_forbidden is not null then
    return v_forbidden;
  end if;
  select m.payload into v_old from packhorse.message_queue m where m.id = p_id;
  if v_old <> p_before then
    raise exception using errcode = 'PH005', column = 'payload',
      message = format('payload: somebody else has edited message %s meanwhile', p_id);
  end if;
  update packhorse.message_queue
  set payload = p_payload, steps = case when coalesce(p_fresh, false) then null else steps end
  where id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('edit', p_operator, p_reason, p_id,
    packhorse.payload_change(v_old, p_payload)
      || case when p_fresh then '{"fresh": true}' else '{}' end::jsonb);
  return 'edited';
end
$$;
comment on function packhorse.edit_message(bigint, jsonb, text, text, jsonb, boolean) is
  'Replace the payload of a message that waits: edited, or the state that forbids it.';

create or replace function packhorse.reschedule_message(
  p_id bigint, p_run_at timestamptz default null, p_delay interval default null,
  p_operator text default current_user, p_reason text default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A message that waits is due at p_run_at, or p_delay from now: 'rescheduled', 'expires' (it would expire
-- before that; nothing is changed), else the state that forbids it. A time that is over means now. The first
-- message of a conversation holds the others until then. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_run_at timestamptz;
  v_forbidden text;
  v_m packhorse.message_queue;
begin
  if (p_run_at is null) = (p_delay is null) then
    perform packhorse.refuse_argument('run_at', 'give run_at or delay, one of them');
  elsif p_delay not between interval '0' and interval '3660 days' then
    perform packhorse.refuse_argument('delay', 'must be between 0 and ten years');
  elsif not isfinite(p_run_at) or p_run_at > v_now + interval '3660 days' then
    perform packhorse.refuse_argument('run_at', 'must be a finite time, at most ten years ahead');
  end if;
  v_run_at := greatest(coalesce(p_run_at, v_now + p_delay), v_now);
  v_forbidden := packhorse.lock_waiting_message(p_id);
  if v_forbidden is not null then
    return v_forbidden;
  end if;
  select * into v_m from packhorse.message_queue m where m.id = p_id;
  if v_m.expires_at <= v_run_at then
    return 'expires';
  end if;
  update packhorse.message_queue m set run_at = v_run_at, gathers_until = null,
    pending_key = case when m.gathers_until is null
      then m.pending_key end -- else the next payload would move it
  where m.id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('reschedule', p_operator, p_reason, p_id, jsonb_build_object('from', v_m.run_at, 'to', v_run_at));
  perform packhorse.wake_queue(v_m.queue); -- also for a later time: the sleeper sets its alarm
  return 'rescheduled';
end
$$;
comment on function packhorse.reschedule_message(bigint, timestamptz, interval, text, text) is
  'When a message that waits is due: rescheduled, expires, or the state that forbids it.';

create or replace function packhorse.move_message(p_id bigint, p_queue text,
  p_operator text default current_user, p_reason text default null) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A message that waits goes to another queue: 'moved', 'unchanged' (it is there), else the state that forbids
-- it. It keeps its id, so its place in its conversation, and its run_at; limits and retry policy are those of
-- the new queue, and its dedup window stays with the old one. Raises PH002 for a queue that does not exist.
-- Locks the queue's row, so that nobody deletes it meanwhile.
declare
  v_forbidden text;
  v_from text;
begin
  perform packhorse.require_queue(p_queue);
  perform 1 from packhorse.queues q where q.name = p_queue for key share;
  v_forbidden := packhorse.lock_waiting_message(p_id);
  if v_forbidden is not null then
    return v_forbidden;
  end if;
  select m.queue into v_from from packhorse.message_queue m where m.id = p_id;
  if v_from = p_queue then
    return 'unchanged';
  end if;
  -- its pending key may be somebody else's there
  update packhorse.message_queue set queue = p_queue, pending_key = null,
    gathers_until = null where id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('move', p_operator, p_reason, p_id, jsonb_build_object('from', v_from, 'to', p_queue));
  perform packhorse.wake_queue(p_queue);
  return 'moved';
end
$$;
comment on function packhorse.move_message(bigint, text, text, text) is
  'Put a message that waits on another queue: moved, unchanged, or the state that forbids it.';

create or replace function packhorse.set_message_priority(
  p_id bigint, p_priority integer, p_operator text default current_user, p_reason text default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- 1 (first) to 10 (last), within its queue; the order of its conversation stays: 'changed', 'unchanged', else
-- the state that forbids it. Raises PH001.
declare
  v_forbidden text;
  v_m packhorse.message_queue;
begin
  if p_priority is null or p_priority not between 1 and 10 then
    perform packhorse.refuse_argument('priority',
      format('%s is out of range', coalesce(p_priority::text, 'null')), '1 (first) to 10 (last), default 5.');
  end if;
  v_forbidden := packhorse.lock_waiting_message(p_id);
  if v_forbidden is not null then
    return v_forbidden;
  end if;
  select * into v_m from packhorse.message_queue m where m.id = p_id;
  if v_m.priority = p_priority then
    return 'unchanged';
  end if;
  update packhorse.message_queue set priority = p_priority where id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('set_priority', p_operator, p_reason, p_id,
    jsonb_build_object('from', v_m.priority, 'to', p_priority));
  perform packhorse.wake_queue(v_m.queue);
  return 'changed';
end
$$;
comment on function packhorse.set_message_priority(bigint, integer, text, text) is
  'The priority of a message that waits: changed, unchanged, or the state that forbids it.';

create or replace function packhorse.set_message_limits(
  p_id bigint, p_max_attempts integer default null, p_expires_at timestamptz default null,
  p_operator text default current_user, p_reason text default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- How often a message that waits is tried, and until when it is worth doing: 'changed', 'unchanged', else the
-- state that forbids it. Null leaves a limit as it is; p_expires_at => 'infinity': it does not expire. Raises
-- PH001, also for a limit that lets it never start.
declare
  v_forbidden text;
  v_m packhorse.message_queue;
  v_max_attempts integer;
  v_expires_at timestamptz;
begin
  if p_max_attempts not between 1 and 1000000 then
    perform packhorse.refuse_argument('max_attempts', format('%s is out of range', p_max_attempts),
      '1 to 1000000.');
  elsif p_max_attempts is null and p_expires_at is null then
    perform packhorse.refuse_argument('max_attempts', 'give max_attempts or expires_at, or both');
  end if;
  v_forbidden := packhorse.lock_waiting_message(p_id);
  if v_forbidden is not null then
    return v_forbidden;
  end if;
  select * into v_m from packhorse.message_queue m where m.id = p_id;
  if p_max_attempts <= v_m.attempt then
    perform packhorse.refuse_argument('max_attempts', format('it has made %s attempts already', v_m.attempt),
      'Allow more, or bury it.');
  elsif p_expires_at <= greatest(v_m.run_at, clock_timestamp()) then
    perform packhorse.refuse_argument('expires_at', 'the message could never start',
      'It must be later than now and than run_at; or cancel the message.');
  end if;
  v_max_attempts := coalesce(p_max_attempts, v_m.max_attempts);
  v_expires_at := case when p_expires_at is null then v_m.expires_at
    when isfinite(p_expires_at) then p_expires_at end;
  if (v_max_attempts, v_expires_at) is not distinct from (v_m.max_attempts::integer, v_m.expires_at) then
    return 'unchanged';
  end if;
  update packhorse.message_queue set max_attempts = v_max_attempts, expires_at = v_expires_at where id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('set_limits', p_operator, p_reason, p_id,
    jsonb_build_object('from',
      jsonb_build_object('max_attempts', v_m.max_attempts, 'expires_at', v_m.expires_at),
    'to', jsonb_build_object('max_attempts', v_max_attempts, 'expires_at', v_expires_at)));
  return 'changed';
end
$$;
comment on function packhorse.set_message_limits(bigint, integer, timestamptz, text, text)
  is 'Attempts and expiry of a message that waits: changed, unchanged, or the state that forbids it.';

create or replace function packhorse.bury_waiting_message(p_id bigint, p_operator text default current_user,
  p_reason text default null) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- An operator gives a message up that waits, or whose completion the database refuses: it becomes a dead
-- letter. 'buried', else the state that forbids it. Its conversation goes on, unless its queue says on_dead =
-- 'block'. p_reason is the error message of the dead letter.
declare
  v_state text := packhorse.lock_waiting_message(p_id);
begin
  if coalesce(v_state, 'running') <> 'running'
    or not packhorse.bury_message(p_id, p_error_message => p_reason) then
    return v_state;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, message_id)
  values ('bury', p_operator, p_reason, p_id);
  return 'buried';
end
$$;
comment on function packhorse.bury_waiting_message(bigint, text, text) is
  'Give a message up that does not run: buried, or the state that forbids it.';

create or replace function packhorse.clone_message(
  p_id bigint, p_delay interval default '0', p_operator text default current_user, p_reason text default null,
  out answer text, out clone_id bigint
)
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A new message like this one, which waits, is finished or is dead: 'cloned' and its id, else 'running' or
-- 'gone'. It has the same queue, type, payload, options, priority, keys and correlation id; neither attempts,
-- steps and dedup key nor what ties options to the first message (its id, a group that counts its members).
-- Its history says where it comes from. It stands at the end of its conversation. Raises PH001, PH002.
declare
  v_m record;
begin
  answer := packhorse.lock_waiting_message(p_id);
  if answer in ('running', 'gone') then
    return;
  end if;
  select s.* into v_m from (
    select m.queue::text, m.message_type::text, m.payload::jsonb, m.options::jsonb, m.priority::integer,
      m.max_attempts::integer, m.conversation_key::text, m.concurrency_key::text, m.fairness_key::text,
      m.correlation_id::text, m.trace_context::text, m.expires_at
    from packhorse.message_queue m where m.id = p_id
    union all
    select d.queue, d.message_type, d.payload, d.options, d.priority, d.max_attempts, d.conversation_key,
      d.concurrency_key, d.fairness_key, d.correlation_id, d.trace_context, null from packhorse.dead_letters d
      where d.id = p_id
    union all
    select a.queue, a.message_type, a.payload, a.options, a.priority, null, a.conversation_key, null, null,
      a.correlation_id, a.trace_context, null
    from packhorse.message_archive a where a.id = p_id) s limit 1;
  select e.message_id into clone_id from packhorse.enqueue_message(v_m.queue, v_m.message_type, v_m.payload,
    v_m.options - array['message_id', 'retries', 'traceback', 'requeue_timestamp', 'group_completion_uuid',
      'group_completion_callbacks'],
    v_m.priority, p_delay => coalesce(p_delay, interval '0'), p_max_attempts => v_m.max_attempts,
    p_conversation_key => v_m.conversation_key, p_concurrency_key => v_m.concurrency_key,
    p_fairness_key => v_m.fairness_key, p_correlation_id => v_m.correlation_id,
    p_trace_context => v_m.trace_context,
    p_expires_at => case when v_m.expires_at > clock_timestamp() + coalesce(p_delay, interval '0')
      then v_m.expires_at end) e;
  update packhorse.message_queue
  set history = packhorse.append_history(null, 0, 'clone', null, format('of message %s', p_id), null)
  where id = clone_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('clone', p_operator, p_reason, p_id, jsonb_build_object('clone', clone_id));
  answer := 'cloned';
end
$$;
comment on function packhorse.clone_message(bigint, interval, text, text) is
  'A new message like one that does not run: cloned and its id, or running or gone.';

create or replace function packhorse.retry_message(p_id bigint, p_operator text default current_user,
  p_reason text default null) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Do not wait. A message that waits is due at once, one that was due already keeps its place in the line:
-- 'due', or 'blocked' (when its conversation is free). One whose completion the database refuses runs again.
-- A dead one is redriven: 'redriven'. Else the state that forbids it.
declare
  v_queue text;
  v_state text;
begin
  loop
    update packhorse.message_queue
    set run_at = least(run_at, clock_timestamp()), completion_refused_at = null, gathers_until = null,
      pending_key = case when gathers_until is null then pending_key end,
      state = case when state = 'blocked' then state else 'pending' end, lease_holder = null,
      lease_token = null, lease_expires_at = null
    where id = p_id and (state in ('pending', 'blocked') or completion_refused_at is not null)
    returning queue, case when state = 'blocked' then 'blocked' else 'due' end into v_queue, v_state;
    if found then
      insert into packhorse.operator_actions (action, operator, reason, message_id)
      values ('retry_now', p_operator, p_reason, p_id);
      perform packhorse.wake_queue(v_queue);
      return v_state;
    elsif cardinality(packhorse.redrive_dead_letters(array[p_id], p_operator => p_operator,
      p_reason => p_reason)) = 1 then
      return 'redriven';
    end if;
    v_state := packhorse.lock_waiting_message(p_id);
    exit when v_state is not null; -- else its holder gave it back meanwhile
  end loop;
  return v_state;
end
$$;
comment on function packhorse.retry_message(bigint, text, text) is
  'A message need not wait: due, blocked, redriven, or the state that forbids it.';

-- What an AI agent remembers of a person (SPEC C7, M3): rows of 20 messages, one per session. A session ends
-- after 30 quiet minutes.

create or replace function platform.touch_conversation_memory(p_phone text, p_agent_type text,
  p_session_id uuid) returns platform.ai_conversation_memory
language plpgsql as $$
-- Used by get_or_create_conversation_memory: the memory that goes on, touched; null when there is none.
-- p_phone: the normal form.
declare
  v_now constant timestamptz := clock_timestamp();
  v_quiet constant timestamptz := v_now - interval '30 minutes';
  v_memory platform.ai_conversation_memory;
begin
  if p_session_id is null then
    update platform.ai_conversation_memory m set last_interaction = greatest(m.last_interaction, v_now)
    where m.id = (
      select n.id from platform.ai_conversation_memory n
      where platform.normalize_phone(n.user_phone) = p_phone and n.agent_type = p_agent_type
        and n.last_interaction > v_quiet
      order by n.last_interaction desc, n.id limit 1)
    returning m.* into v_memory;
  else
    update platform.ai_conversation_memory m
    set conversation_history
      = case when m.last_interaction > v_quiet then m.conversation_history else '[]' end,
        context = case when m.last_interaction > v_quiet then m.context else '{}' end,
        last_interaction = greatest(m.last_interaction, v_now)
    where platform.normalize_phone(m.user_phone) = p_phone and m.agent_type = p_agent_type
      and m.session_id = p_session_id
    returning m.* into v_memory;
  end if;
  return v_memory;
end
$$;
comment on function platform.touch_conversation_memory(text, text, uuid) is
  'Used by get_or_create_conversation_memory: the memory that goes on.';

create or replace function platform.get_or_create_conversation_memory(
  p_user_phone text, p_agent_type text, p_session_id uuid default null
) returns platform.ai_conversation_memory
language plpgsql as $$
-- What an agent remembers of a person. Without a session id: the newest row touched in the last 30 minutes,
-- else a new row and session. With one: that row, which starts anew (history and context empty) after 30
-- quiet minutes; made when missing. Sets last_interaction. In READ COMMITTED any number of callers at the
-- same instant get the same row. Locks: the row; to make one, the person and agent (advisory). Raises PH001.
declare
  v_phone constant text := platform.check_phone('user_phone', p_user_phone);
  v_memory platform.ai_conversation_memory;
begin
  perform platform.check_text('agent_type', p_agent_type, 100);
  v_memory := platform.touch_conversation_memory(v_phone, p_agent_type, p_session_id);
  if v_memory.id is not null then
    return v_memory;
  end if;
  -- no unique key can say "one in thirty minutes": one maker at a time, and whoever comes second finds the
  -- row
  perform pg_advisory_xact_lock(hashtext('packhorse memory'), hashtext(v_phone || ' ' || p_agent_type));
  v_memory := platform.touch_conversation_memory(v_phone, p_agent_type, p_session_id);
  if v_memory.id is null then
    insert into platform.ai_conversation_memory as m (user_phone, agent_type, session_id)
    values (p_user_phone, p_agent_type, coalesce(p_session_id, gen_random_uuid()))
    returning m.* into v_memory;
  end if;
  return v_memory;
end
$$;
comment on function platform.get_or_create_conversation_memory(text, text, uuid)
  is 'What an agent remembers of a person; a new session after 30 quiet minutes.';

create or replace function platform.update_conversation_memory(p_memory_id uuid, p_message jsonb,
  p_context jsonb default null) returns boolean
language plpgsql as $$
-- Append a message {"role", "content"} with the time as its `timestamp`, keep the newest 20, and put the keys
-- of p_context into the context (a null value removes its key). Sets last_interaction. False when there is no
-- such memory. Concurrent callers append one after the other, in the order of the row's lock. Raises PH001.
declare
  v_now timestamptz;
begin
  perform platform.check_object('message', p_message);
  perform platform.check_message(p_message ->> 'role', p_message ->> 'content');
  if p_context is not null then
    perform platform.check_object('context', p_context);
  end if;
  perform from platform.ai_conversation_memory m where m.id = p_memory_id for no key update;
  v_now := clock_timestamp(); -- after the lock, so that the times in a history have its order
  update platform.ai_conversation_memory m
  set conversation_history
    = platform.append_entry(m.conversation_history, p_message || jsonb_build_object('timestamp', v_now), 20),
      context = platform.merge_context(m.context, coalesce(p_context, '{}')),
      message_count = m.message_count + 1, last_interaction = greatest(m.last_interaction, v_now)
  where m.id = p_memory_id;
  return found;
end
$$;
comment on function platform.update_conversation_memory(uuid, jsonb, jsonb) is
  'Remember one more message, and put keys into the context; the newest 20 stay.';

create or replace function platform.cleanup_old_conversations(p_older_than interval default '7 days',
  p_limit integer default null) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) memories that nobody has touched for p_older_than (30 minutes,
-- so that no living session is met, to ten years), oldest first; rows that somebody works on are left for the
-- next call. Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '30 minutes', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with quiet as materialized (
    select m.id from platform.ai_conversation_memory m
    where m.last_interaction <= v_before
    order by m.last_interaction
    limit p_limit
    for update skip locked
  )
  delete from platform.ai_conversation_memory m using quiet q where m.id = q.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_conversations(interval, integer) is
  'Delete memories that nobody has touched for 7 days; returns how many.';

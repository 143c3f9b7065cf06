-- Sessions of people with AI agents (SPEC C1, M3). Phones match by their normal form; the row keeps the form
-- it was given. Paused sessions do not hinder a new active one (a person took over, say), and time ends them
-- as well.

create or replace function platform.get_or_create_agent_session(
  p_user_phone text, p_agent_type text, p_user_id uuid default null, p_agent_id uuid default null
) returns uuid
language plpgsql as $$
-- The id of the active session of a phone with an agent, or of a new one that lives 24 hours; one that is
-- over is marked expired on the way. Sets last_message_at; p_user_id and p_agent_id are filled in where the
-- session has none. Any number of callers at the same instant get the same id. Locks: the session's row; an
-- insert waits for another one of the same phone and agent. Raises PH001.
declare
  v_phone constant text := platform.check_phone('user_phone', p_user_phone);
  v_now timestamptz;
  v_id uuid;
begin
  perform platform.check_text('agent_type', p_agent_type, 100);
  if p_user_id is not null and not exists (select from platform.whatsapp_users u where u.id = p_user_id) then
    perform platform.refuse_value('user_id', format('there is no person %s in whatsapp_users', p_user_id),
      'Null when the person is not known.');
  end if;
  loop
    v_now := clock_timestamp();
    update platform.agent_chat_sessions s
    set last_message_at = greatest(s.last_message_at, v_now), user_id = coalesce(s.user_id, p_user_id),
      agent_id = coalesce(s.agent_id, p_agent_id)
    where platform.normalize_phone(s.user_phone) = v_phone and s.agent_type = p_agent_type
      and s.status = 'active'
      and (s.expires_at is null or s.expires_at > v_now)
    returning s.id into v_id;
    if found then
      return v_id;
    end if;
    update platform.agent_chat_sessions s set status = 'expired'
    where platform.normalize_phone(s.user_phone) = v_phone and s.agent_type = p_agent_type
      and s.status = 'active' and s.expires_at <= v_now;
    insert into platform.agent_chat_sessions as s (user_phone, agent_type, user_id, agent_id)
    values (p_user_phone, p_agent_type, p_user_id, p_agent_id)
    on conflict (platform.normalize_phone(user_phone), agent_type) where status = 'active' do nothing
    returning s.id into v_id;
    if found then
      return v_id;
    end if;
    -- somebody else was faster and has committed: the next look finds its session
  end loop;
end
$$;
comment on function platform.get_or_create_agent_session(text, text, uuid, uuid)
  is 'The id of the active session of a phone with an agent, made when there is none; the same for all callers at the same instant.';

create or replace function platform.add_agent_message(p_session_id uuid, p_role text, p_content text,
  p_metadata jsonb default '{}') returns boolean
language plpgsql as $$
-- Append one message to a session and set last_message_at; the newest 100 stay, message_count counts all.
-- True; false when there is no such session, or it is completed, expired or past its time. A paused one
-- accepts. Concurrent callers append one after the other, in the order of the row's lock. Raises PH001.
declare
  v_now timestamptz;
begin
  perform platform.check_message(p_role, p_content);
  perform platform.check_object('metadata', coalesce(p_metadata, '{}'));
  perform from platform.agent_chat_sessions s where s.id = p_session_id for no key update;
  v_now := clock_timestamp(); -- after the lock, so that the times in a history have its order
  update platform.agent_chat_sessions s
  set conversation_history = platform.append_entry(s.conversation_history, jsonb_build_object(
        'role', p_role, 'content', p_content, 'timestamp', v_now, 'metadata', coalesce(p_metadata, '{}')),
    100),
      message_count = s.message_count + 1, last_message_at = greatest(s.last_message_at, v_now)
  where s.id = p_session_id and s.status in ('active', 'paused')
    and (s.expires_at is null or s.expires_at > v_now);
  return found;
end
$$;
comment on function platform.add_agent_message(uuid, text, text, jsonb) is
  'Append a message to a session; false when it is over or not there.';

create or replace function platform.get_agent_conversation(p_session_id uuid, p_limit integer default 20)
returns jsonb
language plpgsql stable as $$
-- {"messages": [the last p_limit (1..100), oldest first], "context": {...}}; null when there is no such
-- session. Locks nothing. Raises PH001.
begin
  perform platform.check_number('limit', p_limit, 1, 100);
  return (
    select jsonb_build_object(
      'messages', case when jsonb_typeof(s.conversation_history) = 'array' then coalesce((
        select jsonb_agg(e.value order by e.ordinality)
        from jsonb_array_elements(s.conversation_history) with ordinality e
        where e.ordinality > jsonb_array_length(s.conversation_history) - p_limit), '[]') else '[]' end,
      'context', coalesce(s.context, '{}'))
    from platform.agent_chat_sessions s where s.id = p_session_id);
end
$$;
comment on function platform.get_agent_conversation(uuid, integer) is
  'The last messages of a session, oldest first, and its context.';

create or replace function platform.refuse_agent_session(p_session_id uuid) returns void
language plpgsql stable as $$
-- Raise PH004 or PH005: why a session could not be changed.
declare
  v_session platform.agent_chat_sessions;
begin
  select * into v_session from platform.agent_chat_sessions s where s.id = p_session_id;
  if not found then
    raise exception using errcode = 'PH004', column = 'session_id',
      message = format('session_id: there is no session %s', p_session_id);
  end if;
  raise exception using errcode = 'PH005', column = 'session_id',
    message = format('session_id: the session is %s', case when v_session.status in ('active', 'paused')
      then format('past its time, which ended at %s', v_session.expires_at) else v_session.status end),
    hint = 'get_or_create_agent_session() gives the active one.';
end
$$;
comment on function platform.refuse_agent_session(uuid) is 'Raise why a session could not be changed.';

create or replace function platform.set_agent_session_status(p_session_id uuid, p_status text) returns boolean
language plpgsql as $$
-- active <-> paused, either -> completed. True when it changed, false when it was so already. Locks the row.
-- Raises PH001, PH004 (no such session), PH005 (over; or another active session is in the way).
begin
  if p_status is null or p_status not in ('active', 'paused', 'completed') then
    perform platform.refuse_value('status', format('%L cannot be set', left(p_status, 60)),
      'active, paused or completed.');
  end if;
  update platform.agent_chat_sessions s set status = p_status
  where s.id = p_session_id and s.status in ('active', 'paused') and s.status <> p_status
    and (s.expires_at is null or s.expires_at > clock_timestamp());
  if found then
    return true;
  elsif exists (select from platform.agent_chat_sessions s where s.id = p_session_id and s.status = p_status)
  then
    return false;
  end if;
  perform platform.refuse_agent_session(p_session_id);
exception when unique_violation then
  raise exception using errcode = 'PH005', column = 'session_id',
    message = 'session_id: the phone has another active session with this agent',
    hint = 'Pause or complete that one first.';
end
$$;
comment on function platform.set_agent_session_status(uuid, text) is
  'Pause, resume or complete a session; true when it changed.';

create or replace function platform.expire_agent_chat_sessions(p_limit integer default 1000) returns integer
language plpgsql as $$
-- Mark up to p_limit (1..100000; null: all) active and paused sessions whose time is over as expired, oldest
-- first; rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with over as materialized (
    select s.id from platform.agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at <= v_now
    order by s.expires_at
    limit p_limit
    for update skip locked
  )
  update platform.agent_chat_sessions s set status = 'expired' from over o where s.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.expire_agent_chat_sessions(integer) is
  'Mark a batch of sessions whose time is over as expired; returns how many.';

-- Sessions of people with AI agents (SPEC C1, M3). Paused ones do not hinder a new active one (a person took over, say), and time
-- ends them as well. History is bounded to the last 100 messages.

create or replace function platform.get_or_create_agent_session(
  p_phone text, p_agent_type text, p_user_id uuid default null, p_context jsonb default '{}', out session_id uuid, out created boolean
)
language plpgsql as $$
-- The active session of a phone with an agent, or a new one with p_context; one that is over is marked
-- expired on the way. Any number of callers at the same instant get the same session, and one of them
-- created = true. p_user_id is filled in where the session has none.
-- Locks: the session's row when it is changed; an insert waits for another one of the same phone and agent.
-- Raises PH001.
declare
  v_now timestamptz;
  v_expires_at timestamptz;
begin
  perform platform.check_text('phone', p_phone, 100);
  perform platform.check_text('agent_type', p_agent_type, 100);
  perform platform.check_object('context', p_context);
  created := false;
  loop
    v_now := clock_timestamp();
    select s.id, s.expires_at into session_id, v_expires_at from platform.agent_chat_sessions s
    where s.phone = p_phone and s.agent_type = p_agent_type and s.status = 'active';
    if found and v_expires_at > v_now then
      if p_user_id is not null then
        update platform.agent_chat_sessions s set user_id = p_user_id where s.id = session_id and s.user_id is null;
      end if;
      return;
    elsif found then
      update platform.agent_chat_sessions s set status = 'expired', ended_at = v_now
      where s.id = session_id and s.status = 'active' and s.expires_at <= v_now;
    end if;
    insert into platform.agent_chat_sessions as s (phone, agent_type, user_id, context)
    values (p_phone, p_agent_type, p_user_id, p_context)
    on conflict (phone, agent_type) where status = 'active' do nothing
    returning s.id into session_id;
    if found then
      created := true;
      return;
    end if;
    -- somebody else was faster and has committed: the next look finds its session
  end loop;
end
$$;
comment on function platform.get_or_create_agent_session(text, text, uuid, jsonb)
  is 'The active session of a phone with an agent, or a new one; the same for all callers at the same instant.';

create or replace function platform.refuse_agent_session(p_session_id uuid) returns void
language plpgsql stable as $$
-- Raise PH004 or PH005: why a session could not be changed.
declare
  v_status text := (select s.status from platform.agent_chat_sessions s where s.id = p_session_id);
begin
  if v_status is null then
    raise exception using errcode = 'PH004', column = 'session_id', message = format('session_id: there is no session %s', p_session_id);
  end if;
  raise exception using errcode = 'PH005', column = 'session_id',
    message = format('session_id: the session is %s', case when v_status in ('active', 'paused') then v_status || ', or its time is over' else v_status end),
    hint = 'get_or_create_agent_session() gives the active one.';
end
$$;
comment on function platform.refuse_agent_session(uuid) is 'Raise why a session could not be changed.';

create or replace function platform.add_agent_message(p_session_id uuid, p_role text, p_content text, p_metadata jsonb default '{}') returns integer
language plpgsql as $$
-- Append one message to an active session and let it live 24 hours more; the last 100 are kept. Returns how
-- many messages the session has had. Concurrent callers append one after the other, in the order of the
-- row's lock. Raises PH001, PH004 (no such session), PH005 (paused or over).
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_role(p_role);
  perform platform.check_text('content', p_content, 32768);
  perform platform.check_object('metadata', p_metadata);
  update platform.agent_chat_sessions s
  set history = platform.append_entry(s.history, jsonb_build_object(
        'role', p_role, 'content', p_content, 'metadata', p_metadata, 'sent_at', v_now), 100),
      message_count = s.message_count + 1, last_activity_at = v_now, expires_at = v_now + interval '24 hours'
  where s.id = p_session_id and s.status = 'active' and s.expires_at > v_now
  returning s.message_count into v_count;
  if not found then
    perform platform.refuse_agent_session(p_session_id);
  end if;
  return v_count;
end
$$;
comment on function platform.add_agent_message(uuid, text, text, jsonb) is 'Append a message to an active session; returns how many it has had.';

create or replace function platform.get_agent_conversation(p_session_id uuid, p_limit integer default 20)
returns table ("position" integer, role text, content text, metadata jsonb, sent_at timestamptz)
language plpgsql stable as $$
-- The last p_limit (1..100) messages of a session, oldest first; position counts from 1 over the session's
-- whole life. No row when nothing was said. Locks nothing. Raises PH001, PH004 (no such session).
declare
  v_session platform.agent_chat_sessions;
begin
  if p_limit is null or p_limit not between 1 and 100 then
    perform packhorse.refuse_argument('limit', 'must be between 1 and 100');
  end if;
  select * into v_session from platform.agent_chat_sessions s where s.id = p_session_id;
  if not found then
    perform platform.refuse_agent_session(p_session_id);
  end if;
  return query
  select (v_session.message_count - jsonb_array_length(v_session.history) + e.ordinality)::integer,
    e.value ->> 'role', e.value ->> 'content', e.value -> 'metadata', (e.value ->> 'sent_at')::timestamptz
  from jsonb_array_elements(v_session.history) with ordinality e
  where e.ordinality > jsonb_array_length(v_session.history) - p_limit
  order by e.ordinality;
end
$$;
comment on function platform.get_agent_conversation(uuid, integer) is 'The last messages of a session, oldest first.';

create or replace function platform.set_agent_session_status(p_session_id uuid, p_status text) returns boolean
language plpgsql as $$
-- active <-> paused, either -> completed. True when it changed, false when it was so already.
-- Locks the row. Raises PH001, PH004 (no such session), PH005 (over; or another active session is in the way).
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if p_status is null or p_status not in ('active', 'paused', 'completed') then
    perform packhorse.refuse_argument('status', format('%L cannot be set', left(p_status, 60)), 'active, paused or completed.');
  end if;
  if exists (select from platform.agent_chat_sessions s where s.id = p_session_id and s.status = p_status) then
    return false;
  end if;
  update platform.agent_chat_sessions s
  set status = p_status, ended_at = case when p_status = 'completed' then v_now end
  where s.id = p_session_id and s.status in ('active', 'paused') and s.expires_at > v_now;
  if not found then
    perform platform.refuse_agent_session(p_session_id);
  end if;
  return true;
exception when unique_violation then
  raise exception using errcode = 'PH005', column = 'session_id',
    message = 'session_id: the phone has another active session with this agent';
end
$$;
comment on function platform.set_agent_session_status(uuid, text) is 'Pause, resume or complete a session; true when it changed.';

create or replace function platform.expire_agent_chat_sessions(p_limit integer default 1000) returns integer
language plpgsql as $$
-- Mark up to p_limit (1..100000) active and paused sessions whose time is over as expired, oldest first;
-- rows that somebody works on are left for the next call. Returns how many. Raises PH001.
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
  update platform.agent_chat_sessions s set status = 'expired', ended_at = v_now from over o where s.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.expire_agent_chat_sessions(integer) is 'Mark a batch of sessions whose time is over as expired; returns how many.';

-- Sessions of people with AI agents (SPEC C1, M3).
--
-- A partial unique index, not the code, sees to it that a phone has one active session per agent. A session
-- ends 24 hours after the last message in it. Paused ones stand aside (a person took over, say): they do not
-- hinder a new active one, and time ends them as well. History is bounded to the last 100 messages.
-- Lock and duration: new objects only, milliseconds.

create table agent_chat_sessions (
  id               uuid         not null default gen_random_uuid(),
  user_id          uuid,
  phone            phone_number not null,
  agent_type       text         not null,
  status           text         not null default 'active',
  history          jsonb        not null default '[]',
  context          message_json not null default '{}',
  message_count    integer      not null default 0,
  created_at       timestamptz  not null default clock_timestamp(),
  updated_at       timestamptz  not null default clock_timestamp(),
  last_activity_at timestamptz  not null default clock_timestamp(),
  expires_at       timestamptz  not null default clock_timestamp() + interval '24 hours',
  ended_at         timestamptz,
  constraint agent_chat_sessions_pkey primary key (id),
  constraint agent_chat_sessions_agent_type_length check (length(agent_type) between 1 and 100),
  constraint agent_chat_sessions_status_known check (status in ('active', 'paused', 'completed', 'expired')),
  constraint agent_chat_sessions_ended_when_over check ((ended_at is not null) = (status in ('completed', 'expired'))),
  constraint agent_chat_sessions_history_is_array check (jsonb_typeof(history) = 'array'),
  constraint agent_chat_sessions_message_count_range check (message_count >= 0)
) with (fillfactor = 70);
create unique index agent_chat_sessions_active_key on agent_chat_sessions (phone, agent_type) where status = 'active';
create index agent_chat_sessions_expires_idx on agent_chat_sessions (expires_at) where status in ('active', 'paused');
create index agent_chat_sessions_ended_idx on agent_chat_sessions (ended_at) where ended_at is not null;
create index agent_chat_sessions_user_idx on agent_chat_sessions (user_id) where user_id is not null;
create index agent_chat_sessions_phone_idx on agent_chat_sessions (phone, created_at);
create trigger agent_chat_sessions_touch before update on agent_chat_sessions for each row execute function touch_updated_at();
comment on table agent_chat_sessions is 'Sessions with AI agents: at most one active per phone and agent, over after 24 quiet hours.';

create function get_or_create_agent_session(
  p_phone text, p_agent_type text, p_user_id uuid default null, p_context jsonb default '{}', out session_id uuid, out created boolean
)
language plpgsql set search_path from current as $$
-- The active session of a phone with an agent, or a new one with p_context; one that is over is marked
-- expired on the way. Any number of callers at the same instant get the same session, and one of them
-- created = true. p_user_id is filled in where the session has none.
-- Locks: the session's row when it is changed; an insert waits for another one of the same phone and agent.
-- Raises PH001.
declare
  v_now timestamptz;
  v_expires_at timestamptz;
begin
  perform check_text('phone', p_phone, 100);
  perform check_text('agent_type', p_agent_type, 100);
  perform check_object('context', p_context);
  created := false;
  loop
    v_now := clock_timestamp();
    select s.id, s.expires_at into session_id, v_expires_at from agent_chat_sessions s
    where s.phone = p_phone and s.agent_type = p_agent_type and s.status = 'active';
    if found and v_expires_at > v_now then
      if p_user_id is not null then
        update agent_chat_sessions s set user_id = p_user_id where s.id = session_id and s.user_id is null;
      end if;
      return;
    elsif found then
      update agent_chat_sessions s set status = 'expired', ended_at = v_now
      where s.id = session_id and s.status = 'active' and s.expires_at <= v_now;
    end if;
    insert into agent_chat_sessions as s (phone, agent_type, user_id, context)
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
comment on function get_or_create_agent_session(text, text, uuid, jsonb)
  is 'The active session of a phone with an agent, or a new one; the same for all callers at the same instant.';

create function refuse_agent_session(p_session_id uuid) returns void
language plpgsql stable set search_path from current as $$
-- Raise PH004 or PH005: why a session could not be changed.
declare
  v_status text := (select s.status from agent_chat_sessions s where s.id = p_session_id);
begin
  if v_status is null then
    raise exception using errcode = 'PH004', column = 'session_id', message = format('session_id: there is no session %s', p_session_id);
  end if;
  raise exception using errcode = 'PH005', column = 'session_id',
    message = format('session_id: the session is %s', case when v_status in ('active', 'paused') then v_status || ', or its time is over' else v_status end),
    hint = 'get_or_create_agent_session() gives the active one.';
end
$$;
comment on function refuse_agent_session(uuid) is 'Raise why a session could not be changed.';

create function add_agent_message(p_session_id uuid, p_role text, p_content text, p_metadata jsonb default '{}') returns integer
language plpgsql set search_path from current as $$
-- Append one message to an active session and let it live 24 hours more; the last 100 are kept. Returns how
-- many messages the session has had. Concurrent callers append one after the other, in the order of the
-- row's lock. Raises PH001, PH004 (no such session), PH005 (paused or over).
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform check_role(p_role);
  perform check_text('content', p_content, 32768);
  perform check_object('metadata', p_metadata);
  update agent_chat_sessions s
  set history = append_entry(s.history, jsonb_build_object(
        'role', p_role, 'content', p_content, 'metadata', p_metadata, 'sent_at', v_now), 100),
      message_count = s.message_count + 1, last_activity_at = v_now, expires_at = v_now + interval '24 hours'
  where s.id = p_session_id and s.status = 'active' and s.expires_at > v_now
  returning s.message_count into v_count;
  if not found then
    perform refuse_agent_session(p_session_id);
  end if;
  return v_count;
end
$$;
comment on function add_agent_message(uuid, text, text, jsonb) is 'Append a message to an active session; returns how many it has had.';

create function get_agent_conversation(p_session_id uuid, p_limit integer default 20)
returns table ("position" integer, role text, content text, metadata jsonb, sent_at timestamptz)
language plpgsql stable set search_path from current as $$
-- The last p_limit (1..100) messages of a session, oldest first; position counts from 1 over the session's
-- whole life. No row when nothing was said. Locks nothing. Raises PH001, PH004 (no such session).
declare
  v_session agent_chat_sessions;
begin
  if p_limit is null or p_limit not between 1 and 100 then
    perform refuse_argument('limit', 'must be between 1 and 100');
  end if;
  select * into v_session from agent_chat_sessions s where s.id = p_session_id;
  if not found then
    perform refuse_agent_session(p_session_id);
  end if;
  return query
  select (v_session.message_count - jsonb_array_length(v_session.history) + e.ordinality)::integer,
    e.value ->> 'role', e.value ->> 'content', e.value -> 'metadata', (e.value ->> 'sent_at')::timestamptz
  from jsonb_array_elements(v_session.history) with ordinality e
  where e.ordinality > jsonb_array_length(v_session.history) - p_limit
  order by e.ordinality;
end
$$;
comment on function get_agent_conversation(uuid, integer) is 'The last messages of a session, oldest first.';

create function set_agent_session_status(p_session_id uuid, p_status text) returns boolean
language plpgsql set search_path from current as $$
-- active <-> paused, either -> completed. True when it changed, false when it was so already.
-- Locks the row. Raises PH001, PH004 (no such session), PH005 (over; or another active session is in the way).
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if p_status is null or p_status not in ('active', 'paused', 'completed') then
    perform refuse_argument('status', format('%L cannot be set', left(p_status, 60)), 'active, paused or completed.');
  end if;
  if exists (select from agent_chat_sessions s where s.id = p_session_id and s.status = p_status) then
    return false;
  end if;
  update agent_chat_sessions s
  set status = p_status, ended_at = case when p_status = 'completed' then v_now end
  where s.id = p_session_id and s.status in ('active', 'paused') and s.expires_at > v_now;
  if not found then
    perform refuse_agent_session(p_session_id);
  end if;
  return true;
exception when unique_violation then
  raise exception using errcode = 'PH005', column = 'session_id',
    message = 'session_id: the phone has another active session with this agent';
end
$$;
comment on function set_agent_session_status(uuid, text) is 'Pause, resume or complete a session; true when it changed.';

create function expire_agent_chat_sessions(p_limit integer default 1000) returns integer
language plpgsql set search_path from current as $$
-- Mark up to p_limit (1..100000) active and paused sessions whose time is over as expired, oldest first;
-- rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform check_limit(p_limit);
  with over as materialized (
    select s.id from agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at <= v_now
    order by s.expires_at
    limit p_limit
    for update skip locked
  )
  update agent_chat_sessions s set status = 'expired', ended_at = v_now from over o where s.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function expire_agent_chat_sessions(integer) is 'Mark a batch of sessions whose time is over as expired; returns how many.';

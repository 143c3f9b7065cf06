-- Sessions of people with AI agents (SPEC C1, M3).
--
-- A partial unique index, not the code, sees to it that a phone has one active session per agent. A session
-- ends 24 hours after the last message in it. Paused ones stand aside (a person took over, say): they do not
-- hinder a new active one, and time ends them as well. History is bounded to the last 100 messages.
-- Lock and duration: new objects only, milliseconds.

create table platform.agent_chat_sessions (
  id               uuid         not null default gen_random_uuid(),
  user_id          uuid,
  phone            platform.phone_number not null,
  agent_type       text         not null,
  status           text         not null default 'active',
  history          jsonb        not null default '[]',
  context          packhorse.message_json not null default '{}',
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
create unique index agent_chat_sessions_active_key on platform.agent_chat_sessions (phone, agent_type) where status = 'active';
create index agent_chat_sessions_expires_idx on platform.agent_chat_sessions (expires_at) where status in ('active', 'paused');
create index agent_chat_sessions_ended_idx on platform.agent_chat_sessions (ended_at) where ended_at is not null;
create index agent_chat_sessions_user_idx on platform.agent_chat_sessions (user_id) where user_id is not null;
create index agent_chat_sessions_phone_idx on platform.agent_chat_sessions (phone, created_at);
comment on table platform.agent_chat_sessions is 'Sessions with AI agents: at most one active per phone and agent, over after 24 quiet hours.';

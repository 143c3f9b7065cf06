-- People in WhatsApp, their sessions with AI agents, what agents remember, workflows in steps (SPEC C1, C7).
--
-- The clients of these tables look up a phone as they stored it. Unique keys and our functions compare the
-- normal form: one person has one active session, whatever the form. History and context are JSON in the row,
-- bounded by the functions that write them: a row is rewritten whole.
-- Lock and duration: new objects only, milliseconds; an adopted table is locked while its indexes are built.

create table if not exists platform.whatsapp_users (
  id           uuid        not null default gen_random_uuid(),
  wa_id        text,
  phone_number text,
  created_at   timestamptz not null default clock_timestamp(),
  updated_at   timestamptz not null default clock_timestamp(),
  constraint whatsapp_users_pkey primary key (id),
  constraint whatsapp_users_wa_id_key unique (wa_id),
  constraint whatsapp_users_wa_id_length check (length(wa_id) <= 100),
  constraint whatsapp_users_phone_number_length check (length(phone_number) <= 100)
);
do $$
begin
  if not exists (select from platform.platform_adopted_tables a where a.name = 'whatsapp_users') then
    create index idx_whatsapp_users_phone_number on platform.whatsapp_users (phone_number);
    create index idx_whatsapp_users_normal_phone_number on platform.whatsapp_users (
      platform.normalize_phone(phone_number));
    create index idx_whatsapp_users_normal_wa_id on platform.whatsapp_users (platform.normalize_phone(wa_id));
    comment on table platform.whatsapp_users is 'People by their WhatsApp id and phone number.';
  end if;
end
$$;

create table if not exists platform.agent_chat_sessions (
  id                   uuid        not null default gen_random_uuid(),
  user_id              uuid,
  user_phone           platform.phone_number,
  agent_type           text        not null,
  agent_id             uuid,
  conversation_history jsonb       default '[]',
  context              jsonb       default '{}',
  status               text        default 'active',
  created_at           timestamptz default clock_timestamp(),
  updated_at           timestamptz default clock_timestamp(),
  last_message_at      timestamptz default clock_timestamp(),
  expires_at           timestamptz default clock_timestamp() + interval '24 hours',
  constraint agent_chat_sessions_pkey primary key (id),
  constraint agent_chat_sessions_user_id_fkey foreign key (user_id)
    references platform.whatsapp_users (id) on delete cascade,
  constraint agent_chat_sessions_status_known check (status in ('active', 'paused', 'completed', 'expired'))
);
alter table platform.agent_chat_sessions
  add column if not exists message_count integer not null default 0,
  add column if not exists ended_at timestamptz;
-- the source has it on user_phone itself; two forms of one number would be two sessions
drop index if exists platform.idx_agent_chat_sessions_active_unique;
create unique index idx_agent_chat_sessions_active_unique on platform.agent_chat_sessions (
  platform.normalize_phone(user_phone), agent_type)
  where status = 'active';
create index if not exists idx_agent_chat_sessions_user_id on platform.agent_chat_sessions (user_id);
create index if not exists idx_agent_chat_sessions_user_phone on platform.agent_chat_sessions (user_phone);
create index if not exists idx_agent_chat_sessions_agent_type on platform.agent_chat_sessions (agent_type);
create index if not exists idx_agent_chat_sessions_status on platform.agent_chat_sessions (status);
create index if not exists idx_agent_chat_sessions_last_message_at on platform.agent_chat_sessions (
  last_message_at desc);
create index if not exists idx_agent_chat_sessions_expires_at on platform.agent_chat_sessions (expires_at);
create index if not exists idx_agent_chat_sessions_ended_at on platform.agent_chat_sessions (ended_at)
where ended_at is not null;
comment on table platform.agent_chat_sessions is
  'Sessions of a person with an AI agent: one active one per phone and agent, 24 hours long.';

create table if not exists platform.ai_conversation_memory (
  id                   uuid        not null default gen_random_uuid(),
  user_phone           platform.phone_number not null,
  agent_type           text        not null,
  conversation_history jsonb       not null default '[]',
  context              jsonb       not null default '{}',
  last_interaction     timestamptz not null default clock_timestamp(),
  session_id           uuid        not null default gen_random_uuid(),
  created_at           timestamptz not null default clock_timestamp(),
  updated_at           timestamptz not null default clock_timestamp(),
  constraint ai_conversation_memory_pkey primary key (id),
  constraint unique_user_agent_session unique (user_phone, agent_type, session_id),
  constraint ai_conversation_memory_agent_type_length check (length(agent_type) <= 100),
  constraint ai_conversation_memory_history_bounded check (
    case when jsonb_typeof(conversation_history) = 'array' then jsonb_array_length(conversation_history) <= 20
      else false end)
);
alter table platform.ai_conversation_memory add column if not exists message_count bigint not null default 0;
create index if not exists idx_ai_memory_user_phone on platform.ai_conversation_memory (user_phone);
create index if not exists idx_ai_memory_agent_type on platform.ai_conversation_memory (agent_type,
  last_interaction desc);
create index if not exists idx_ai_memory_last_interaction on platform.ai_conversation_memory (
  last_interaction desc);
create index if not exists idx_ai_memory_normal_phone on platform.ai_conversation_memory
  (platform.normalize_phone(user_phone), agent_type, last_interaction desc);
comment on table platform.ai_conversation_memory is
  'What an agent remembers of a person: the last 20 messages and a context per session.';

create table if not exists platform.workflow_states (
  id             uuid        not null default gen_random_uuid(),
  user_phone     platform.phone_number,
  workflow_type  text        not null,
  current_step   text        not null,
  workflow_data  jsonb       not null default '{}',
  status         text        not null default 'active',
  agent_type     text,
  started_at     timestamptz not null default clock_timestamp(),
  updated_at     timestamptz not null default clock_timestamp(),
  completed_at   timestamptz,
  timeout_at     timestamptz,
  error_info     jsonb,
  correlation_id text,
  constraint workflow_states_pkey primary key (id),
  constraint workflow_states_status_known
    check (status in ('active', 'paused', 'completed', 'failed', 'timeout', 'cancelled')),
  constraint workflow_states_type_length check (length(workflow_type) <= 100),
  constraint workflow_states_step_length check (length(current_step) <= 100)
);
alter table platform.workflow_states
  add column if not exists step_number integer not null default 1,
  add column if not exists history jsonb not null default '[]',
  add column if not exists conversation_key text constraint workflow_states_conversation_key_length
    check (length(conversation_key) <= 500);
drop index if exists platform.unique_active_workflow;
create unique index unique_active_workflow on platform.workflow_states (platform.normalize_phone(user_phone),
  workflow_type)
  where status = 'active' and user_phone is not null;
create index if not exists idx_workflow_states_active on platform.workflow_states (user_phone, status,
  workflow_type)
  where status in ('active', 'paused');
create index if not exists idx_workflow_timeout on platform.workflow_states (timeout_at)
where status = 'active' and timeout_at is not null;
create index if not exists idx_workflow_updated on platform.workflow_states (updated_at desc);
create index if not exists idx_workflow_completed on platform.workflow_states (completed_at)
where completed_at is not null;
comment on table platform.workflow_states is
  'Workflows in steps: one active one per person and type, each with an end in time.';

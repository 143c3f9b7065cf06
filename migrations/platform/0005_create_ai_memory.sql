-- What an AI agent remembers of a conversation: the last 20 messages and a context (SPEC C7, M3).
--
-- One row per conversation and agent, so that get-or-create is one statement. After 30 quiet minutes the
-- next touch starts a new session in the same row: messages and context are empty again.
-- Lock and duration: new objects only, milliseconds.

create table platform.ai_conversation_memory (
  conversation_key   packhorse.message_key  not null,
  agent_type         text         not null,
  session_id         uuid         not null default gen_random_uuid(),
  messages           jsonb        not null default '[]',
  context            packhorse.message_json not null default '{}',
  message_count      bigint       not null default 0,
  session_count      bigint       not null default 1,
  session_started_at timestamptz  not null default clock_timestamp(),
  last_activity_at   timestamptz  not null default clock_timestamp(),
  created_at         timestamptz  not null default clock_timestamp(),
  updated_at         timestamptz  not null default clock_timestamp(),
  constraint ai_conversation_memory_pkey primary key (conversation_key, agent_type),
  constraint ai_conversation_memory_agent_type_length check (length(agent_type) between 1 and 100),
  constraint ai_conversation_memory_twenty_messages check (jsonb_typeof(messages) = 'array' and jsonb_array_length(messages) <= 20)
) with (fillfactor = 70);
create index ai_conversation_memory_activity_idx on platform.ai_conversation_memory (last_activity_at);
comment on table platform.ai_conversation_memory is 'The last 20 messages of a conversation with an agent, forgotten after 30 quiet minutes.';

-- Conversations with a lock in the row, and the conversations of the assistant Amara (SPEC C5, C7).
--
-- The lock is for work outside the queue: messages of the queue with a conversation_key need none. It is data
-- in the row with an end in time, so nothing has to be cleaned up for it to be free again.
-- Lock and duration: new objects only, milliseconds; an adopted table is locked while its indexes are built.

create table platform.conversations (
  id               uuid         not null default gen_random_uuid(),
  conversation_key packhorse.message_key  not null,
  company_id       bigint,
  phone            platform.phone_number not null,
  channel          text         not null default 'whatsapp',
  status           text         not null default 'open',
  metadata         packhorse.message_json not null default '{}',
  lock_holder      text,
  locked_at        timestamptz,
  lock_expires_at  timestamptz,
  created_at       timestamptz  not null default clock_timestamp(),
  updated_at       timestamptz  not null default clock_timestamp(),
  last_message_at  timestamptz  not null default clock_timestamp(),
  constraint conversations_pkey primary key (id),
  constraint conversations_key_key unique (conversation_key),
  constraint conversations_company_fkey foreign key (company_id)
    references platform.companies (id) on delete cascade,
  constraint conversations_channel_length check (length(channel) between 1 and 50),
  constraint conversations_status_known check (status in ('open', 'closed')),
  -- a lock of somebody else's making may have no end: release_stuck_conversations() knows when it is stuck
  constraint conversations_lock_is_whole check (
    (lock_holder is null) = (locked_at is null) and (lock_expires_at is null or lock_holder is not null)),
  constraint conversations_lock_holder_length check (length(lock_holder) between 1 and 500)
) with (fillfactor = 70);
create index conversations_locked_idx on platform.conversations (locked_at) where locked_at is not null;
create index conversations_phone_idx on platform.conversations (phone);
create index conversations_company_idx on platform.conversations (company_id) where company_id is not null;
create index conversations_last_message_idx on platform.conversations (last_message_at);
comment on table platform.conversations is 'Conversations by their key, each with a lock that ends by time.';

create table if not exists platform.amara_conversations (
  id              uuid        not null default gen_random_uuid(),
  user_id         uuid        not null,
  locale          text        not null default 'en',
  is_active       boolean     not null default true,
  last_message_at timestamptz not null default clock_timestamp(),
  created_at      timestamptz not null default clock_timestamp(),
  updated_at      timestamptz not null default clock_timestamp(),
  constraint amara_conversations_pkey primary key (id)
);
create index if not exists idx_amara_conversations_user_id on platform.amara_conversations (user_id);
create index if not exists idx_amara_conversations_last_message_at on platform.amara_conversations (
  last_message_at desc);
create index if not exists idx_amara_conversations_is_active on platform.amara_conversations (user_id)
where is_active;
comment on table platform.amara_conversations is 'Conversations of a user with the assistant Amara.';

create table if not exists platform.amara_messages (
  id              uuid        not null default gen_random_uuid(),
  conversation_id uuid        not null,
  role            text        not null,
  content         text        not null,
  tool_calls      jsonb,
  metadata        jsonb,
  created_at      timestamptz not null default clock_timestamp(),
  constraint amara_messages_pkey primary key (id),
  constraint amara_messages_conversation_id_fkey foreign key (conversation_id)
    references platform.amara_conversations (id) on delete cascade,
  constraint amara_messages_role_known check (role in ('user', 'assistant', 'system'))
);
create index if not exists idx_amara_messages_conversation_id on platform.amara_messages (conversation_id,
  created_at);
create index if not exists idx_amara_messages_created_at on platform.amara_messages (created_at);
create index if not exists idx_amara_messages_role on platform.amara_messages (role);
comment on table platform.amara_messages is
  'What was said in conversations with Amara, and the tools that were called.';

-- What was said in conversations with customers, one partition per UTC month of created_at (SPEC M5, C6).
--
-- No default partition: it would forbid DETACH CONCURRENTLY, and rows in it would stop every later partition
-- from being made. An insert into a month without a partition fails loudly; functions/messages.sql makes this
-- month and five ahead, and keeps them so. No foreign keys: attaching a partition would lock the tables that
-- they name.
-- Lock and duration: new objects only, milliseconds; an adopted table is locked while its indexes are built.

create sequence if not exists platform.messages_id_seq;
comment on sequence platform.messages_id_seq is 'Ids of messages, over all partitions.';
create table if not exists platform.messages (
  id                 bigint      not null default nextval('platform.messages_id_seq'),
  company_id         bigint,
  phone              platform.phone_number not null,
  message            text,
  direction          text        not null,
  message_id         text,
  from_me            boolean     not null default false,
  status             text,
  processed          boolean     default false,
  processed_at       timestamptz,
  ai_response        text,
  processing_time_ms integer,
  context_id         bigint,
  intent             text,
  created_at         timestamptz not null default clock_timestamp(),
  constraint messages_pkey primary key (id, created_at),
  constraint messages_direction_known check (direction in ('inbound', 'outbound')),
  constraint messages_status_known
    check (status in ('received', 'queued', 'sent', 'delivered', 'read', 'failed'))
) partition by range (created_at);
alter sequence platform.messages_id_seq owned by platform.messages.id;
alter table platform.messages
  add column if not exists conversation_id uuid,
  add column if not exists message_type text not null default 'text',
  add column if not exists correlation_id text,
  add column if not exists metadata jsonb not null default '{}';
create index if not exists idx_messages_company_phone on platform.messages (company_id, phone,
  created_at desc);
create index if not exists idx_messages_direction on platform.messages (direction, created_at desc);
create index if not exists idx_messages_processed on platform.messages (processed, created_at)
where not processed;
create index if not exists idx_messages_message_id on platform.messages (message_id)
where message_id is not null;
create index if not exists idx_messages_intent on platform.messages (intent, created_at desc)
where intent is not null;
create index if not exists idx_messages_phone on platform.messages (phone, created_at desc);
create index if not exists idx_messages_company on platform.messages (company_id, created_at desc);
create index if not exists idx_messages_status on platform.messages (status, created_at desc)
where status is not null;
comment on table platform.messages is
  'What was said, one partition per UTC month of created_at; retention drops partitions.';

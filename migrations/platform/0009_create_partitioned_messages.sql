-- What was said in conversations with customers, one partition per UTC month of created_at (SPEC M5, C6).
--
-- No default partition: it would forbid DETACH CONCURRENTLY, and rows in it would stop every later partition
-- from being made. An insert into a month without a partition fails loudly; maintain_messages_partitions()
-- keeps five months ahead. It only ever creates: dropping is somebody else's work, in other transactions.
-- No foreign keys: attaching a partition would lock the tables that they name.
-- Lock and duration: new objects only, milliseconds.

create sequence platform.messages_id_seq;
comment on sequence platform.messages_id_seq is 'Ids of messages, over all partitions.';

create table platform.messages (
  id              bigint       not null default nextval('platform.messages_id_seq'),
  company_id      bigint,
  conversation_id uuid,
  phone           platform.phone_number not null,
  direction       text         not null,
  message_type    text         not null default 'text',
  content         text,
  status          text         not null default 'received',
  external_id     text,
  correlation_id  text,
  metadata        packhorse.message_json not null default '{}',
  created_at      timestamptz  not null default clock_timestamp(),
  constraint messages_pkey primary key (id, created_at),
  constraint messages_direction_known check (direction in ('inbound', 'outbound')),
  constraint messages_type_length check (length(message_type) between 1 and 50),
  constraint messages_status_known check (status in ('received', 'queued', 'sent', 'delivered', 'read', 'failed'))
) partition by range (created_at);
alter sequence platform.messages_id_seq owned by platform.messages.id;
create index messages_phone_idx on platform.messages (phone, created_at, id);
create index messages_conversation_idx on platform.messages (conversation_id, created_at) where conversation_id is not null;
create index messages_external_id_idx on platform.messages (external_id) where external_id is not null;
comment on table platform.messages is 'What was said, one partition per UTC month of created_at; retention drops partitions.';

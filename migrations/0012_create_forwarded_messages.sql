-- What is known here of messages that are handled from RabbitMQ (docs/rabbitmq.md). Functions:
-- functions/forwarded.sql.
--
-- Lock and duration: new objects only, milliseconds.

-- A row for those that something has happened to: nearly none has one.
create table packhorse.forwarded_messages (
  id       bigint      not null,
  -- attempts that were spent, as far as known; of those with a conversation, and after a hard limit
  attempt  integer     not null default 0,
  -- how many processes have died while it ran
  crashes  smallint    not null default 0,
  -- its handler is done and its connection was lost before RabbitMQ heard of it
  is_done  boolean     not null default false,
  -- it waits for its next attempt until then
  next_at  timestamptz,
  history  jsonb,
  noted_at timestamptz not null default clock_timestamp(),
  constraint forwarded_messages_pkey primary key (id)
);
create index forwarded_messages_noted_at_idx on packhorse.forwarded_messages (noted_at);
comment on table packhorse.forwarded_messages is
  'What workers on RabbitMQ must know of a message that they get again; forgotten after seven days.';

alter table packhorse.forwarded_messages enable row level security;
create policy forwarded_messages_worker on packhorse.forwarded_messages
  to packhorse_worker using (true) with check (true);
create policy forwarded_messages_reader on packhorse.forwarded_messages
  for select to packhorse_reader using (true);

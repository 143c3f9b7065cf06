-- Workers and the types they register, dedup windows, processed webhooks, conversation locks, results, rate
-- limiters, tokens of the page, and what tells a restored copy from its original (SPEC W1, W1b, Q2, Q6, O11).
--
-- Lock and duration: new objects only, milliseconds.

create table packhorse.workers (
  id              uuid        not null,
  -- the parent of the process, new with each start of a daemon; what an operator asks is asked of it
  -- (daemon_requests)
  daemon          uuid        not null default gen_random_uuid(),
  hostname        text        not null,
  pid             integer     not null,
  version         text        not null,
  queues          text[]      not null,
  message_types   text[]      not null,
  threads         integer     not null,
  -- it runs only messages that were there when two processes died
  isolation       boolean     not null default false,
  -- it runs nothing: it takes messages of queues that go there (queues.forward)
  forward         text,
  state           text        not null default 'running',
  started_at      timestamptz not null default clock_timestamp(),
  last_seen_at    timestamptz not null default clock_timestamp(),
  lease_duration  interval    not null,
  running         integer     not null default 0,
  done_total      bigint      not null default 0,
  failed_total    bigint      not null default 0,
  -- of the last four heartbeats, newest first: seconds since 1970, done_total, failed_total; rates are over
  -- these
  recent_counts   float8[]    not null default '{}',
  problems        text[]      not null default '{}',
  constraint workers_pkey primary key (id),
  constraint workers_state_known check (state in ('running', 'quiet', 'draining'))
) with (fillfactor = 50);
comment on table packhorse.workers is
  'Worker processes that live: a fresh id per process start. Information only; no lease depends on it.';

create table packhorse.daemon_requests (
  daemon       uuid        not null,
  request      text        not null,
  requested_by text        not null,
  requested_at timestamptz not null default clock_timestamp(),
  constraint daemon_requests_pkey primary key (daemon),
  constraint daemon_requests_known check (request in ('quiet', 'drain'))
);
comment on table packhorse.daemon_requests is
  'What operators have asked of daemons: claim nothing more, or end. Their processes read it with each heartbeat.';

create table packhorse.message_types (
  name         text        not null,
  queue        packhorse.queue_name  not null,
  -- what the actor's code says of retries, for whoever ends an attempt without that code; see failure_policy
  policy       jsonb       not null default '{}',
  last_seen_at timestamptz not null default clock_timestamp(),
  constraint message_types_pkey primary key (name),
  constraint message_types_name_format check (name ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}[*]?$')
) with (fillfactor = 50);
comment on table packhorse.message_types is
  'Types, or patterns of them, that some worker registers, their queue and retry policy, and when it last '
  'said so (SPEC W1b, Q5).';

create table packhorse.message_dedup (
  queue      text        not null,
  dedup_key  text        not null,
  message_id bigint      not null,
  expires_at timestamptz not null,
  constraint message_dedup_pkey primary key (queue, dedup_key)
);
create index message_dedup_expires_idx on packhorse.message_dedup (expires_at);
comment on table packhorse.message_dedup is
  'Dedup windows: they end by time, whatever becomes of the message (SPEC Q6).';

create table packhorse.processed_messages (
  external_id    text        not null,
  correlation_id text,
  first_seen_at  timestamptz not null default clock_timestamp(),
  processed_at   timestamptz,
  processing_ms  integer,
  constraint processed_messages_pkey primary key (external_id),
  constraint processed_messages_external_id_length check (length(external_id) between 1 and 500),
  constraint processed_messages_processing_ms_range check (processing_ms >= 0)
);
create index processed_messages_first_seen_idx on packhorse.processed_messages (first_seen_at);
comment on table packhorse.processed_messages is
  'Inbound webhook ids that were seen, for is_new_message() (SPEC Q6).';

create table packhorse.conversation_locks (
  conversation_key text        not null,
  holder           text        not null,
  acquired_at      timestamptz not null default clock_timestamp(),
  expires_at       timestamptz, -- null: a lock of somebody else's making, without an end
  constraint conversation_locks_pkey primary key (conversation_key)
);
comment on table packhorse.conversation_locks is
  'Locks that callers take around their own work with acquire_conversation_lock(); messages do not need them.';

create table packhorse.message_results (
  result_key text        not null,
  result     jsonb       not null,
  expires_at timestamptz not null,
  constraint message_results_pkey primary key (result_key)
);
create index message_results_expires_idx on packhorse.message_results (expires_at);
comment on table packhorse.message_results is 'Results of dramatiq actors with store_results (SPEC W1).';

create table packhorse.rate_limiters (
  limiter_key text        not null,
  value       bigint      not null,
  expires_at  timestamptz not null,
  constraint rate_limiters_pkey primary key (limiter_key)
);
comment on table packhorse.rate_limiters is
  'Counters of the dramatiq rate limiter backend on Postgres (SPEC W1).';

create table packhorse.access_tokens (
  id           uuid        not null default gen_random_uuid(),
  name         text        not null,
  role         text        not null,
  token_sha256 bytea       not null, -- of 32 random bytes, which nobody guesses: no salt, no slow hash
  queues       text[], -- into which a producer may enqueue; null: another role
  created_at   timestamptz not null default clock_timestamp(),
  created_by   text        not null,
  last_used_at timestamptz, -- the last login
  revoked_at   timestamptz,
  constraint access_tokens_pkey primary key (id),
  constraint access_tokens_role_known check (role in ('viewer', 'operator', 'admin', 'producer')),
  constraint access_tokens_queues_of_producer check ((role = 'producer') = (queues is not null)),
  constraint access_tokens_name_length check (length(name) between 1 and 100),
  constraint access_tokens_hash_length check (length(token_sha256) = 32)
);
create unique index access_tokens_name_idx on packhorse.access_tokens (name) where revoked_at is null;
create unique index access_tokens_hash_idx on packhorse.access_tokens (token_sha256);
comment on table packhorse.access_tokens is
  'Who may use the page, as what; of each token only a hash (SPEC O6).';

create table packhorse.installation (
  is_only            boolean not null default true,
  -- the numbers that this database has given to two of our tables; a dump that is restored gets others
  queue_oid          oid     not null,
  dead_letters_oid   oid     not null,
  constraint installation_pkey primary key (is_only),
  constraint installation_is_one_row check (is_only)
);
insert into packhorse.installation (queue_oid, dead_letters_oid)
values ('packhorse.message_queue'::regclass::oid, 'packhorse.dead_letters'::regclass::oid);
comment on table packhorse.installation is
  'Which database this is: in a restored copy nothing starts before somebody accepts it (SPEC O11).';

-- Queues and their run-time settings (SPEC Q8). One row per queue; a change works within seconds.
--
-- Lock and duration: new objects only, milliseconds.

create domain packhorse.queue_name as text
  constraint queue_name_format check (value ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$');
comment on domain packhorse.queue_name is
  'A letter or underscore, then letters, digits, dot, underscore, dash; 100 at most.';

create domain packhorse.message_json as jsonb
  constraint message_json_is_object check (jsonb_typeof(value) = 'object')
  constraint message_json_size check (pg_column_size(value) <= 1048576)
  -- what readers in other languages cannot read; is_readable_json says the same
  constraint message_json_readable
    check ((pg_column_size(value) <= 2000 and octet_length(value::text) <= 4300)
    or
      not (pg_catalog.jsonb_path_exists(value,
        'strict $.**{500 to last} ? (@.type() == "object" || @.type() == "array")')
      or pg_catalog.jsonb_path_exists(value,
        'strict $.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))')));
comment on domain packhorse.message_json is
  'A JSON object of at most 1 MiB, nested at most 500 levels deep, its numbers with at most 4300 digits. A domain, so that it is checked when written, not at every claim.';

create table packhorse.queues (
  name                    packhorse.queue_name  not null,
  paused_at               timestamptz,
  paused_by               text,
  -- paused with all others, for a maintenance window: resume_all_queues() resumes these only
  paused_with_all         boolean     not null default false,
  -- tenants (fairness_key) take turns
  fair_share              boolean     not null default false,
  -- null means unlimited; counted over the whole fleet
  max_concurrency         integer,
  max_concurrency_per_key integer,
  -- starts per interval, as a token bucket that holds at most rate_burst
  rate_limit              integer,
  rate_interval           interval    not null default '1 second',
  rate_burst              integer,
  rate_tokens             double precision not null default 0,
  rate_refilled_at        timestamptz not null default clock_timestamp(),
  -- the same for each concurrency_key; the buckets are in key_rates
  rate_limit_per_key      integer,
  rate_interval_per_key   interval    not null default '1 second',
  rate_burst_per_key      integer,
  keep_done               interval    not null default '7 days',
  max_attempts            integer     not null default 3,
  crash_limit             integer     not null default 3,
  backoff_initial         interval    not null default '1 second',
  backoff_multiplier      double precision not null default 2,
  backoff_max             interval    not null default '30 seconds',
  backoff_jitter          double precision not null default 0,
  on_dead                 text        not null default 'skip',
  -- so many failures of one cause in a row park it; null: never
  failure_breaker         integer,
  -- where its messages go instead of being run from here: `amqp`, RabbitMQ; null: nowhere
  forward                 text,
  created_at              timestamptz not null default clock_timestamp(),
  updated_at              timestamptz not null default clock_timestamp(),
  constraint queues_pkey primary key (name),
  constraint queues_max_concurrency_range check (max_concurrency between 1 and 1000000),
  constraint queues_max_concurrency_per_key_range check (max_concurrency_per_key between 1 and 1000000),
  constraint queues_rate_limit_range check (rate_limit between 1 and 1000000000),
  constraint queues_rate_burst_range check (rate_burst between 1 and 1000000000),
  constraint queues_rate_interval_range
    check (rate_interval between interval '1 millisecond' and interval '366 days'),
  constraint queues_rate_limit_per_key_range check (rate_limit_per_key between 1 and 1000000000),
  constraint queues_rate_burst_per_key_range check (rate_burst_per_key between 1 and 1000000000),
  constraint queues_rate_interval_per_key_range
    check (rate_interval_per_key between interval '1 millisecond' and interval '366 days'),
  constraint queues_keep_done_range check (keep_done between interval '0' and interval '3660 days'),
  constraint queues_forward_known check (forward = 'amqp'),
  constraint queues_max_attempts_range check (max_attempts between 1 and 1000000),
  constraint queues_crash_limit_range check (crash_limit between 1 and 1000),
  constraint queues_backoff_initial_range
    check (backoff_initial between interval '0' and interval '366 days'),
  constraint queues_backoff_max_range check (backoff_max between backoff_initial and interval '366 days'),
  constraint queues_backoff_multiplier_range check (backoff_multiplier between 1 and 1000),
  constraint queues_backoff_jitter_range check (backoff_jitter between 0 and 1),
  constraint queues_failure_breaker_range check (failure_breaker between 1 and 1000000),
  constraint queues_on_dead_known check (on_dead in ('skip', 'block'))
) with (fillfactor = 50);
comment on table packhorse.queues is 'One row per queue: pause, limits, retention, retry policy (SPEC Q8).';

-- Who sleeps, and who watches. A worker that finds nothing writes wake_until; a producer that reads a future
-- wake_until sends one NOTIFY, unless attended_until is in the future, too: then one awake worker looks every
-- few milliseconds, so that producers never touch the NOTIFY lock of the whole cluster (SPEC Q10). Apart from
-- `queues` because it is written often: the row stays tiny and HOT. Producers only read it.
create table packhorse.queue_wakeups (
  queue          packhorse.queue_name not null,
  wake_until     timestamptz,
  attended_until timestamptz,
  constraint queue_wakeups_pkey primary key (queue)
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table packhorse.queue_wakeups is
  'wake_until in the future: some worker sleeps and wants a NOTIFY for this queue; attended_until in the future: not now, for one looks.';

-- Where the claims of a session that has just begun start on the ring of keys; others know it themselves
-- (claim_ring.sql). Written about once a second per session.
create table packhorse.queue_turns (
  queue    packhorse.queue_name not null,
  last_key text collate "C" not null default '',
  constraint queue_turns_pkey primary key (queue)
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table packhorse.queue_turns is
  'The key that had the last turn in a queue whose keys take turns (SPEC Q8c).';

-- A bucket per key, written under the lock of its queue's row. No row: a full one; upkeep removes those.
create table packhorse.key_rates (
  queue       packhorse.queue_name not null,
  key         text        not null,
  tokens      double precision not null,
  refilled_at timestamptz not null,
  constraint key_rates_pkey primary key (queue, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
comment on table packhorse.key_rates is
  'What rate_limit_per_key allows each concurrency key (SPEC Q8); a key without a row has a full bucket.';

insert into packhorse.queues (name) values ('default');
insert into packhorse.queue_wakeups (queue) values ('default');

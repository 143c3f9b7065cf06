-- Parked scopes: what keeps messages that share something from starting (SPEC W10, Q8d). Functions:
-- functions/scopes.sql.
--
-- Lock and duration: new objects only, milliseconds.

create table packhorse.scopes (
  name           text        not null,
  -- the queue of a scope `queue:<name>`: all its messages; else those of message_types
  queue          text,
  message_types  text[]      not null default '{}',
  parked_until   timestamptz,
  -- when that is over it is not lifted: one message at a time starts, until somebody lifts or parks it
  probing        boolean     not null default false,
  probe_id       bigint,
  probe_at       timestamptz,
  -- parked_until, infinity while it is probing, null when it is lifted: what the claim looks for
  ends_at        timestamptz,
  reason         text,
  parked_by      text,
  parked_at      timestamptz,
  -- failure breaker: failures of one cause without a success between them, and for how long it is parked next
  -- time
  fingerprint    text,
  failures       integer     not null default 0,
  last_failed_at timestamptz,
  next_park      interval,
  constraint scopes_pkey primary key (name),
  constraint scopes_name_length check (length(name) between 1 and 200),
  constraint scopes_ends_when_parked check ((ends_at is null) = (parked_until is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
-- empty while nothing is parked: all that a claim costs then
create index scopes_ends_at_idx on packhorse.scopes (ends_at) where ends_at is not null;
-- empty while no failure breaker counts: all that a completion costs then
create index scopes_failures_idx on packhorse.scopes (failures) where failures > 0;
comment on table packhorse.scopes is
  'What messages share (a service, an actor, a queue), and until when it rests; few rows (SPEC W10, Q8d).';

-- While something rests, claims would walk over its backlog again and again. This says how far they need not
-- look.
create table packhorse.claim_marks (
  queue     text          not null,
  types_key text          not null,
  since     timestamptz[] not null,
  looked_at timestamptz   not null,
  took      interval      not null,
  constraint claim_marks_pkey primary key (queue, types_key)
);
comment on table packhorse.claim_marks is
  'By queue and wanted types, for each priority: before this time only messages wait that a claim does not take.';

-- What keeps a claim from messages, as what_rests() finds it.
create type packhorse.resting as (
  held    text[],      -- types of scopes that are parked or probing
  closed  text[],      -- queues of such scopes
  stopped text[],      -- types that not even a probe may be of
  probing text[],      -- scopes of which a probe may start
  next_at timestamptz  -- when the first of them ends, or has a probe
);

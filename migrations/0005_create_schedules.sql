-- Schedules: when something is to be done again and again (SPEC M1, P7).
--
-- No leader. A planned time fires when the row (schedule, planned_at) can be inserted, in the transaction
-- that enqueues the message; whoever comes second finds the row and does nothing. Triggers are computed by
-- the scheduler processes (schedules/timetable/triggers.py), each for itself: they agree because a planned
-- time follows from the trigger alone, never from when somebody looked. All times are of the database clock
-- (P6).
-- Lock and duration: new objects only, milliseconds.

create table packhorse.schedules (
  name            packhorse.message_name not null,
  source          text         not null,
  origin          text[]       not null default '{}',
  cron            text,
  every           interval,
  time_zone       text         not null default 'UTC',
  missed          text         not null default 'once',
  missed_limit    integer      not null default 10,
  overlap         text         not null default 'skip',
  jitter          interval     not null default '0',
  queue           packhorse.queue_name   not null,
  message_type    packhorse.message_name not null,
  payload         packhorse.message_json not null default '{}',
  priority        packhorse.message_priority not null default 5,
  max_attempts    packhorse.message_count,
  paused_at       timestamptz,
  paused_by       text,
  last_planned_at timestamptz  not null default clock_timestamp(),
  next_planned_at timestamptz,
  problem         text,
  missed_total    bigint       not null default 0,
  created_at      timestamptz  not null default clock_timestamp(),
  updated_at      timestamptz  not null default clock_timestamp(),
  constraint schedules_pkey primary key (name),
  constraint schedules_source_known check (source in ('packhorse', 'code', 'toml', 'sql')),
  constraint schedules_one_trigger check ((cron is null) <> (every is null)),
  constraint schedules_every_range check (every between interval '1 second' and interval '3660 days'),
  constraint schedules_missed_known check (missed in ('skip', 'once', 'all')),
  constraint schedules_missed_limit_range check (missed_limit between 1 and 1000),
  constraint schedules_overlap_known check (overlap in ('skip', 'wait', 'allow')),
  constraint schedules_jitter_range check (jitter between interval '0' and interval '1 day'),
  constraint schedules_paused_by_somebody check ((paused_at is null) = (paused_by is null))
);
comment on table packhorse.schedules is
  'The timetable: trigger, what is enqueued, how missed and overlapping runs are treated (SPEC M1).';
comment on column packhorse.schedules.origin is
  'Packages of the scheduler that declared it: one that has loaded them all and declares it no longer removes it.';
comment on column packhorse.schedules.last_planned_at is
  'The newest planned time that was decided; what is due lies after it.';
comment on column packhorse.schedules.missed_total is
  'Planned times that passed without a run of their own: left out, or made up for by another.';
comment on column packhorse.schedules.next_planned_at is
  'The next planned time as a scheduler computed it; null: none has looked since the last change.';

create table packhorse.schedule_runs (
  id           bigint generated always as identity,
  schedule     packhorse.message_name not null,
  planned_at   timestamptz  not null,
  fired_at     timestamptz  not null default clock_timestamp(),
  outcome      text         not null,
  triggered_by text         not null,
  missed_count integer      not null default 0,
  message_id   bigint,
  started_at   timestamptz,
  ended_at     timestamptz,
  error        text,
  constraint schedule_runs_pkey primary key (id),
  constraint schedule_runs_planned_key unique (schedule, planned_at),
  constraint schedule_runs_outcome_known check (
    outcome in ('enqueued', 'done', 'dead', 'cancelled', 'untraced', 'missed', 'overlapped', 'failed')),
  constraint schedule_runs_message_when_enqueued check (
    (message_id is not null) = (outcome in ('enqueued', 'done', 'dead', 'cancelled', 'untraced')))
);
-- Open runs are few and looked at every few seconds; the history is read by schedule and by age.
create index schedule_runs_open_idx on packhorse.schedule_runs (id) where outcome = 'enqueued';
create index schedule_runs_schedule_idx on packhorse.schedule_runs (schedule, id);
create index schedule_runs_fired_at_idx on packhorse.schedule_runs (fired_at);
create index schedule_runs_done_idx on packhorse.schedule_runs (schedule, id) where outcome = 'done';
comment on table packhorse.schedule_runs is
  'One row per planned time that was decided; unique by (schedule, planned_at), which is who-fires (SPEC P7).';

-- Maintenance: runs of retention, partition and table-care tasks and of backfills, and the health gates they
-- obey (SPEC M2-M9).
--
-- What a task does is configuration (schedules/config.py); what it did is here. One run at a time per task: a
-- unique index says so, and a run whose process died is taken over with its cursor.
-- Lock and duration: new objects only, milliseconds.

create table packhorse.maintenance_runs (
  id                  bigint generated always as identity,
  task                packhorse.message_name not null,
  kind                text         not null,
  state               text         not null default 'running',
  triggered_by        text         not null,
  message_id          bigint,
  plan                jsonb        not null default '{}',
  cutoff              timestamptz,
  cursor              jsonb,
  rows_done           bigint       not null default 0,
  rows_total          bigint,
  batches             integer      not null default 0,
  batch_size          integer,
  resumed             integer      not null default 0,
  gate                text,
  gates_hit           jsonb        not null default '{}',
  throttled_seconds   double precision not null default 0,
  details             jsonb,
  error               text,
  cancel_requested_by text,
  -- to end after its step and be gone on with later
  pause_requested_by  text,
  started_at          timestamptz  not null default clock_timestamp(),
  beat_at             timestamptz  not null default clock_timestamp(),
  ended_at            timestamptz,
  constraint maintenance_runs_pkey primary key (id),
  constraint maintenance_runs_kind_known check (kind in ('retention', 'partitions', 'job', 'backfill')),
  constraint maintenance_runs_state_known
    check (state in ('running', 'paused', 'succeeded', 'failed', 'cancelled')),
  constraint maintenance_runs_ended_when_over
    check ((ended_at is not null) = (state in ('succeeded', 'failed', 'cancelled')))
);
-- One runner per task; paused (its time budget was spent) is unfinished, too: the next run goes on with it.
create unique index maintenance_runs_unfinished_key on packhorse.maintenance_runs (task)
where state in ('running', 'paused');
create index maintenance_runs_task_idx on packhorse.maintenance_runs (task, id);
create index maintenance_runs_ended_at_idx on packhorse.maintenance_runs (ended_at)
where ended_at is not null;
comment on table packhorse.maintenance_runs is
  'Runs of maintenance tasks: cursor, progress, gates, outcome; also their audit (SPEC M6, M7).';

create table packhorse.maintenance_tasks (
  task            packhorse.message_name not null,
  rows_total      bigint       not null default 0,
  last_success_at timestamptz,
  policy          jsonb,
  constraint maintenance_tasks_pkey primary key (task)
);
comment on table packhorse.maintenance_tasks is
  'Totals of each task, which outlive the history of its runs: a counter that never goes back. policy: as configuration last said.';

create table packhorse.detached_partitions (
  parent        text        not null,
  partition     text        not null,
  lower_bound   text        not null,
  upper_bound   text        not null,
  detached_at   timestamptz not null default clock_timestamp(),
  exported_at   timestamptz,
  export_path   text,
  export_rows   bigint,
  export_sha256 text,
  dropped_at    timestamptz,
  constraint detached_partitions_pkey primary key (parent, partition, detached_at),
  constraint detached_partitions_export_whole check (
    (exported_at is null) = (export_path is null) and (exported_at is null) = (export_sha256 is null)
      and (exported_at is null) = (export_rows is null))
);
comment on table packhorse.detached_partitions is
  'Partitions that were detached, with their export and their drop (SPEC M5).';

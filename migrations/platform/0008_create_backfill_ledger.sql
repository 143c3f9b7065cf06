-- What a backfill did not copy as it was, row by row, with the reason and what stood there (SPEC M8).
--
-- Lock and duration: new objects only, milliseconds.

create table platform.platform_backfill_rows (
  backfill     text        not null,
  source_table text        not null,
  source_id    text        not null,
  outcome      text        not null,
  reason       text        not null,
  old_value    jsonb,
  target_id    text,
  recorded_at  timestamptz not null default clock_timestamp(),
  constraint platform_backfill_rows_pkey primary key (backfill, source_table, source_id),
  constraint platform_backfill_rows_outcome_known check (outcome in ('skipped', 'nulled', 'changed'))
);
create index platform_backfill_rows_recorded_idx on platform.platform_backfill_rows (recorded_at);
comment on table platform.platform_backfill_rows is
  'Rows that a backfill did not copy as they were: what became of each, and why.';

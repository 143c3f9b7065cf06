-- Backfills: how far each is, who asked for it, and what its source did since somebody looked (SPEC M8).
--
-- The cursor is that of the run (maintenance_runs, task backfill.NAME). Rows that were not copied as they
-- were are in the platform's ledger, platform_backfill_rows.
-- Lock and duration: new objects only, milliseconds.
-- Runs beside: 0.1.0

create table packhorse.backfills (
  name                  packhorse.message_name not null,
  state                 text         not null default 'new',
  -- the table whose rows are walked
  source                text         not null,
  -- what its declaration leaves open (names of tables, mostly); fixed from the first run to the way back
  settings              jsonb        not null default '{}',
  -- workers carry it: messages of the maintenance queue, one slice each
  carried               boolean      not null default false,
  source_rows           bigint,
  source_rows_estimated boolean      not null default false,
  rows_copied           bigint       not null default 0,
  rows_skipped          bigint       not null default 0,
  -- walks that came to the end of the source
  passes                integer      not null default 0,
  -- of the last minute, newest first: seconds since 1970, rows that the run had done
  recent_rows           float8[]     not null default '{}',
  -- what its way back needs to know
  memo                  jsonb        not null default '{}',
  -- of the last verification
  findings              jsonb        not null default '[]',
  paused_at             timestamptz,
  paused_by             text,
  -- the drop guard: counters of the source at the last look, and since when they have not moved
  looked_at             timestamptz,
  counters_seen         bigint[],
  quiet_since           timestamptz,
  requested_by          text         not null,
  created_at            timestamptz  not null default clock_timestamp(),
  started_at            timestamptz,
  copied_at             timestamptz,
  verified_at           timestamptz,
  finished_at           timestamptz,
  rolled_back_at        timestamptz,
  constraint backfills_pkey primary key (name),
  constraint backfills_state_known
    check (state in ('new', 'running', 'copied', 'verified', 'finished', 'rolled_back')),
  constraint backfills_paused_by_somebody check ((paused_at is null) = (paused_by is null)),
  constraint backfills_settings_are_an_object check (jsonb_typeof(settings) = 'object')
) with (fillfactor = 50);
comment on table packhorse.backfills is
  'One row per backfill that somebody has begun: state, progress, verification, drop guard (SPEC M8).';

-- After a clean-up the mark of migrated rows is gone; the way back still knows them by these.
create table packhorse.backfill_copies (
  backfill packhorse.message_name not null,
  place    integer     not null,
  ids      text[]      not null,
  constraint backfill_copies_pkey primary key (backfill, place)
);
comment on table packhorse.backfill_copies is
  'Ids of the rows that a finished backfill had copied, for its way back; no other data.';

do $$
declare
  v_table text;
begin
  foreach v_table in array array['backfills', 'backfill_copies'] loop
    execute format('alter table packhorse.%I enable row level security', v_table);
    execute format('create policy %I on packhorse.%I to packhorse_worker using (true) with check (true)',
      v_table || '_worker', v_table);
    execute format('create policy %I on packhorse.%I for select to packhorse_reader using (true)',
      v_table || '_reader', v_table);
  end loop;
end
$$;

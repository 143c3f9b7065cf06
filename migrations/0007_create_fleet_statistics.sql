-- Numbers of the whole fleet for /metrics, counted once for everybody (SPEC O2). One row holds them as JSON;
-- whoever finds it too old counts anew while all others go on reading it, so twenty workers cost what one
-- does.
--
-- Counting is bounded, so a table of any size costs the same: due and delayed messages of a queue and dead
-- letters by an index-only walk of at most p_limit entries, running and blocked ones (their index does not
-- know the queue) of at most half of that, beyond which stands the planner's estimate, marked `estimated`. A
-- refresh that took long makes the next one wait twenty times as long.
--
-- Lock and duration: a new table and functions, milliseconds; a new index on dead_letters, SHARE lock (deaths
-- wait) for about a second per million dead letters.

create table packhorse.fleet_statistics (
  only_row     boolean     not null default true,
  refreshed_at timestamptz not null default '-infinity',
  took         interval    not null default '0',
  statistics   jsonb       not null default '{}',
  constraint fleet_statistics_pkey primary key (only_row),
  constraint fleet_statistics_is_one_row check (only_row)
) with (fillfactor = 50);
comment on table packhorse.fleet_statistics is
  'One row: numbers of the fleet as refresh_fleet_statistics() counted them last.';

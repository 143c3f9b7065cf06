-- name: refresh_fleet_statistics
-- Count the fleet's numbers anew if they are older than this many seconds; false when there was no need, or somebody is at it.
select packhorse.refresh_fleet_statistics(make_interval(secs => %s));

-- name: fleet_statistics
-- The fleet's numbers and their age; no row before the first refresh.
select statistics, age_seconds from packhorse.fleet_statistics();

-- name: database_clock
-- Seconds since 1970, now.
select extract(epoch from clock_timestamp())::float8;

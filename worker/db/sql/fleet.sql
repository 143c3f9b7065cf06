-- name: refresh_fleet_statistics
-- Count the fleet's numbers anew if they are older than this many seconds; false when there was no need, or
-- somebody is at it.
select packhorse.refresh_fleet_statistics(make_interval(secs => %s));

-- name: fleet_statistics
-- The fleet's numbers and their age; no row before the first refresh.
select statistics, age_seconds from packhorse.fleet_statistics();

-- name: database_clock
-- Seconds since 1970, now.
select extract(epoch from clock_timestamp())::float8;

-- name: read_only
-- Why this session could write nothing; null when it can.
select case when pg_is_in_recovery()
  then 'it is a standby; connect to the primary (target_session_attrs=read-write)'
  when current_setting('transaction_read_only') = 'on'
    then 'default_transaction_read_only is on for this server, database or role' end;

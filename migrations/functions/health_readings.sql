-- What the health checks (SPEC O1) are made of: levels, words for people, samples of the archive.
--
-- The archive is read by the blocks of the days in question: its rows never move, so the last blocks are the
-- last ends, and a table of any size costs the same.

create or replace function packhorse.health_level(p_value double precision, p_warn double precision,
  p_fail double precision) returns text
language sql immutable as $$
-- The status of a number that should be small; null is ok.
  select case when p_value >= p_fail then 'fail' when p_value >= p_warn then 'warn' else 'ok' end;
$$;
comment on function packhorse.health_level(double precision, double precision, double precision) is
  'Status of a number that should be small: ok, warn or fail.';

create or replace function packhorse.health_worst(p_statuses text[]) returns text
language sql immutable as $$
-- The worst of several statuses; ok when there are none.
  select case when 'fail' = any (p_statuses) then 'fail' when 'warn' = any (p_statuses) then 'warn'
    else 'ok' end;
$$;
comment on function packhorse.health_worst(text[]) is 'The worst of several statuses.';

create or replace function packhorse.health_count(p_count bigint, p_limit bigint) returns text
language sql immutable as $$
-- A count that stopped at a limit, in words.
  select case when p_count >= p_limit then 'at least ' || p_count else coalesce(p_count, 0)::text end;
$$;
comment on function packhorse.health_count(bigint, bigint) is 'A count that stopped at a limit, in words.';

create or replace function packhorse.health_duration(p_seconds double precision) returns text
language sql immutable as $$
-- Seconds for people; null stays null.
  select case when p_seconds < 1::float8 then round((p_seconds * 1000::float8)::numeric) || ' ms'
    when p_seconds < 120::float8 then round(p_seconds::numeric, 1) || ' s'
    when p_seconds < 7200::float8 then round((p_seconds / 60::float8)::numeric) || ' min'
    when p_seconds < 172800::float8 then round((p_seconds / 3600::float8)::numeric) || ' h'
    else round((p_seconds / 86400::float8)::numeric) || ' days' end;
$$;
comment on function packhorse.health_duration(double precision) is 'Seconds for people.';

create or replace function packhorse.has_platform_table(p_table text) returns boolean
language sql stable as $$
-- Is this table here, and ours? Another team's table may have the same name: then the platform was never
-- installed.
  select to_regclass(format('platform.%I', p_table)) is not null
    and exists (select from packhorse.packhorse_migrations m
      where m.name = 'platform/0009_secure_platform_rows');
$$;
comment on function packhorse.has_platform_table(text) is
  'Has this database the conversation platform with this table?';

create or replace function packhorse.health_absent(p_table text)
returns table (status text, summary text, details jsonb)
language sql immutable as $$
-- The answer of a check whose table is not here.
  select 'absent', format('no table %s: the conversation platform is not installed', p_table), '{}'::jsonb;
$$;
comment on function packhorse.health_absent(text) is 'The answer of a check whose table is not here.';

create or replace function packhorse.archive_reading(p_since timestamptz, p_until timestamptz,
  p_blocks integer)
returns table (lower_at timestamptz, upper_at timestamptz, first_tid tid, percent real, whole boolean)
language sql stable as $$
-- How to read the archive from p_since to p_until with at most p_blocks blocks of each day: from which block
-- on (the newest rows), or which share (any rows).
  select greatest(d.day at time zone 'UTC', p_since),
    least((d.day + interval '1 day') at time zone 'UTC', p_until),
    format('(%s,0)', greatest(s.blocks - p_blocks, 0))::tid,
    least(100, 100.0 * p_blocks::numeric / s.blocks::numeric)::real, s.blocks <= p_blocks
  from generate_series(date_trunc('day', p_since at time zone 'UTC'), p_until at time zone 'UTC',
    interval '1 day') as d (day)
  cross join lateral (select pg_relation_size(to_regclass('packhorse.message_archive_'
    || to_char(d.day, 'YYYYMMDD')))
    / current_setting('block_size')::bigint as blocks) s
  where s.blocks > 0;
$$;
comment on function packhorse.archive_reading(timestamptz, timestamptz, integer) is
  'Used by the health checks: which part of each day of the archive to read.';

create or replace function packhorse.recent_ends(p_since timestamptz, p_blocks integer)
returns table (id bigint, queue text, message_type text, attempt integer, error_class text,
  wait double precision, run double precision, finished_at timestamptz, whole boolean, error_code text)
language plpgsql stable set plan_cache_mode = force_custom_plan as $$
-- Messages that were done since p_since, from the newest p_blocks blocks of each day; seconds from enqueue to
-- claim and from claim to end. whole = false: there were more blocks.
declare
  v_day record;
begin
  for v_day in select * from packhorse.archive_reading(p_since, clock_timestamp(), p_blocks) loop
    return query
    select a.id, a.queue, a.message_type, a.attempt, a.error ->> 'class',
      extract(epoch from a.claimed_at - a.created_at)::float8,
      extract(epoch from a.finished_at - a.claimed_at)::float8, a.finished_at, v_day.whole, a.error ->> 'code'
    from packhorse.message_archive a
    where a.finished_at >= v_day.lower_at and a.finished_at < v_day.upper_at and a.ctid >= v_day.first_tid
      and a.state = 'done';
  end loop;
end
$$;
comment on function packhorse.recent_ends(timestamptz, integer) is
  'Used by the health checks: the newest done messages, at most so many blocks of each day.';

create or replace function packhorse.ends_by_hour(p_now timestamptz, p_hours integer, p_blocks integer)
returns table (hours_ago integer, done bigint, retried bigint, estimated boolean)
language plpgsql volatile set plan_cache_mode = force_custom_plan as $$
-- Messages done in each of the last p_hours hours, and those of them that had failed before. A day of more
-- than p_blocks blocks is counted from a sample of its blocks.
declare
  v_day record;
begin
  for v_day in select *
  from packhorse.archive_reading(p_now - p_hours::float8 * interval '1 hour', p_now, p_blocks) loop
    return query
    select floor(extract(epoch from p_now - a.finished_at) / 3600.0)::integer,
      round(count(*)::float8 * 100::float8 / v_day.percent::float8)::bigint,
      round(count(*) filter (where a.error is not null)::float8 * 100::float8
        / v_day.percent::float8)::bigint, not v_day.whole
    from packhorse.message_archive a tablesample system (v_day.percent)
    where a.finished_at >= v_day.lower_at and a.finished_at < v_day.upper_at and a.state = 'done'
    group by 1;
  end loop;
end
$$;
comment on function packhorse.ends_by_hour(timestamptz, integer, integer) is
  'Used by the health checks: messages done per hour, from a sample of a large archive.';

-- The check of the whole system, and health_checks() for all fourteen (SPEC O1).

create or replace function packhorse.health_glance(p_limit integer default 10000,
  p_blocks integer default 1000) returns jsonb
language plpgsql volatile as $$
-- The five numbers that people look at first: due messages, stuck workflows, dead letters, active sessions
-- (null without the platform), and the share of dead letters among what ended in the last hour. Counts stop
-- at p_limit; of the archive p_blocks blocks are read. Null while one of their tables is locked: the check of
-- that table says so.
declare
  v_now constant timestamptz := clock_timestamp();
  v_done bigint;
  v_dead bigint;
  v_stuck bigint;
  v_sessions bigint;
begin
  v_done := (select sum(e.done) from packhorse.ends_by_hour(v_now, 1, p_blocks) e where e.hours_ago = 0);
  v_dead := (select count(*) from (
    select from packhorse.dead_letters d where d.dead_at > v_now - interval '1 hour'
    order by d.dead_at desc limit p_limit) r);
  if packhorse.has_platform_table('workflow_states') then
    v_stuck := (select count(*) from (
      select from platform.workflow_states w where w.status = 'active' and w.timeout_at <= v_now
      order by w.timeout_at limit p_limit) s);
    v_sessions := (select count(*) from (
      select from platform.agent_chat_sessions s
      where s.status = 'active' and s.expires_at > v_now limit p_limit) a);
  end if;
  return jsonb_build_object('pending',
    (select sum(c.messages) from packhorse.count_queue_messages(v_now, p_limit) c where c.state = 'pending'),
    'stuck_workflows', v_stuck,
    'dead_letters', (select count(*) from (select from packhorse.dead_letters limit p_limit) d),
    'active_sessions', v_sessions,
    'error_ratio', v_dead::float8 / nullif(coalesce(v_done, 0) + v_dead, 0)::float8);
exception when lock_not_available then
  return null;
end
$$;
comment on function packhorse.health_glance(integer, integer) is
  'Due messages, stuck workflows, dead letters, active sessions, share of errors.';

create or replace function packhorse.health_glance_text(p_glance jsonb) returns text
language sql immutable as $$
-- The numbers of health_glance() in words; null when there are none.
  select nullif(concat_ws(', ', (p_glance ->> 'pending') || ' due',
    (p_glance ->> 'stuck_workflows') || ' stuck workflow(s)',
    (p_glance ->> 'active_sessions') || ' active session(s)',
    (p_glance ->> 'dead_letters') || ' dead letter(s)',
    round(100.0 * (p_glance ->> 'error_ratio')::numeric, 1) || ' % errors'), '');
$$;
comment on function packhorse.health_glance_text(jsonb) is 'The numbers of health_glance() in words.';

create or replace function packhorse.health_worker_problems()
returns table (worker uuid, hostname text, pid integer, problem text, vital boolean, place bigint)
language sql stable as $$
-- What workers cannot do, the gravest first. vital: messages wait for it. It is so when a worker cannot
-- claim, complete, publish, beat or keep its timetable, and when it is silent while it holds leases.
  with told as (
    select w.id, w.hostname, w.pid, p.problem,
      p.problem ~ '^(fetcher|claim|complete|publish|beat|timekeeper|pool|scheduler) '
      or (p.problem like 'silent %' and exists (
        select from packhorse.message_queue m
        where m.state = 'running' and m.lease_token is not null and m.lease_holder = w.id)) as vital
    from packhorse.workers w cross join lateral unnest(packhorse.worker_problems(w)) as p (problem)
  )
  select t.*, row_number() over (order by t.vital desc, t.hostname, t.pid, t.problem) from told t;
$$;
comment on function packhorse.health_worker_problems() is 'What workers cannot do, the gravest first.';

create or replace function packhorse.health_server_facts(p_now timestamptz)
returns table (connections bigint, max_connections integer, workers bigint, silent bigint,
  runway double precision, snapshot double precision, sees_all boolean)
language sql stable as $$
-- What health_system_summary() judges of server and fleet. runway: seconds until the archive has no
-- partition; snapshot: age of the oldest one in seconds; sees_all: may this role see the age of every one?
  select
    -- the kind of other roles' backends is hidden from most roles
    (select count(*) from pg_stat_activity a
      where a.datid is not null and coalesce(a.backend_type, 'client backend') = 'client backend'),
    current_setting('max_connections')::integer,
    (select count(*) from packhorse.workers w where p_now - w.last_seen_at <= w.lease_duration),
    (select count(*) from packhorse.workers w where p_now - w.last_seen_at > w.lease_duration),
    (select extract(epoch from e.ends_at - p_now)::float8 from packhorse.partition_ends(p_now) e
      where e.table_name = 'message_archive'),
    packhorse.oldest_snapshot_seconds(p_now), packhorse.snapshots_are_visible();
$$;
comment on function packhorse.health_server_facts(timestamptz) is
  'What the summary of the system judges: connections, workers, partitions ahead, snapshots.';

create or replace function packhorse.health_system_summary(
  p_warn_connections double precision default 0.8, p_fail_connections double precision default 0.95,
  p_warn_runway interval default '2 days', p_fail_runway interval default '1 day',
  p_warn_snapshot interval default '15 minutes', p_fail_snapshot interval default '2 hours',
  p_warn_schedule interval default '5 minutes', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql volatile set lock_timeout = '500ms' as $$
-- The numbers of health_glance(p_limit), 0: without them; server, connections, workers and what they cannot
-- do, archive partitions ahead, oldest snapshot, schedules that are late, maintenance that failed. A vital
-- problem of a worker is a failure, any other a warning. Snapshots that this role may not see are said to be
-- hidden. A timetable that somebody keeps locked is a failure, and hides nothing else.
declare
  v_now constant timestamptz := clock_timestamp();
  v_snapshot_seconds constant float8 := extract(epoch from p_warn_snapshot);
  v_glance constant jsonb := case when p_limit > 0 then packhorse.health_glance(p_limit) end;
  v_late bigint;
  v_failed bigint;
  v_locked boolean := false;
begin
  begin
    v_late := (select count(*) from packhorse.schedules s
      where s.paused_at is null and s.next_planned_at < v_now - p_warn_schedule);
    v_failed := (select count(*) from packhorse.maintenance_health h where h.state = 'failed');
  exception when lock_not_available then
    v_locked := true;
  end;
  return query
  with problems as materialized (select * from packhorse.health_worker_problems()),
  counted as (select count(*) as n, count(*) filter (where p.vital) as vital from problems p)
  select packhorse.health_worst(array[
      packhorse.health_level(f.connections::float8 / f.max_connections::float8, p_warn_connections,
        p_fail_connections),
      packhorse.health_level(-coalesce(f.runway, 0), -extract(epoch from p_warn_runway)::float8,
        -extract(epoch from p_fail_runway)::float8),
      packhorse.health_level(f.snapshot, v_snapshot_seconds, extract(epoch from p_fail_snapshot)::float8),
      case when v_late > 0 or v_failed > 0 or f.silent > 0 then 'warn' end,
      case when c.vital > 0 or v_locked then 'fail' when c.n > 0 then 'warn' end]),
    format(
      'PostgreSQL %s, %s of %s connections, %s worker process(es)%s, archive partitions for %s%s%s%s%s%s%s',
      split_part(current_setting('server_version'), ' ', 1), f.connections, f.max_connections, f.workers,
      case when f.silent > 0 then format(' and %s silent', f.silent) end,
      packhorse.health_duration(greatest(f.runway, 0)),
      (select format('; %s pid %s: %s', p.hostname, p.pid, p.problem) from problems p where p.place = 1)
        || case when c.n > 1 then format(' and %s more', c.n - 1) else '' end,
      case when f.snapshot >= v_snapshot_seconds
        then '; oldest snapshot ' || packhorse.health_duration(f.snapshot)
        when not f.sees_all
        then '; a snapshot of another role, whose age this one may not see (grant pg_read_all_stats)' end,
      case when v_locked then '; the timetable cannot be read: somebody keeps it locked' end,
      case when v_late > 0 then format('; %s late schedule(s)', v_late) end,
      case when v_failed > 0 then format('; %s failed maintenance task(s)', v_failed) end,
      '; ' || packhorse.health_glance_text(v_glance)),
    jsonb_build_object('glance', v_glance, 'server_version', current_setting('server_version'),
      'started_at', pg_postmaster_start_time(), 'connections', f.connections,
      'max_connections', f.max_connections, 'workers', f.workers, 'silent_workers', f.silent,
      'archive_runway_seconds', f.runway,
      'worker_problems', coalesce((select jsonb_agg(to_jsonb(p) - 'place' order by p.place)
        from problems p where p.place <= 50), '[]'),
      'oldest_snapshot_seconds', case when f.sees_all or f.snapshot >= v_snapshot_seconds then f.snapshot end,
      'sees_all_snapshots', f.sees_all, 'late_schedules', v_late, 'failed_maintenance_tasks', v_failed)
  from packhorse.health_server_facts(v_now) f cross join counted c;
end
$$;
comment on function packhorse.health_system_summary(double precision, double precision, interval,
  interval, interval, interval, interval, integer)
  is 'Health check: server, connections, workers, partitions ahead, snapshots, schedules, maintenance.';

create or replace function packhorse.health_checks(p_check text default null)
returns table (check_name text, status text, summary text, details jsonb)
language plpgsql volatile set lock_timeout = '500ms' as $$
-- All checks with their defaults in a fixed order, or the one named p_check. A check that cannot look (a
-- right is missing, a table was changed or is locked for longer than half a second, there is a value that it
-- cannot read) is a failed one; the others go on. Raises PH001 for a name that is none.
declare
  v_names constant text[] := array['stuck_workflows', 'queue_health', 'dead_letters', 'agent_performance',
    'conversation_state', 'processing_latency', 'error_rate', 'top_errors', 'workflow_completion',
    'agent_sessions', 'circuit_breakers', 'stale_locks', 'dedup_effectiveness', 'system_summary'];
begin
  if p_check <> all (v_names) then
    raise exception using errcode = 'PH001', column = 'check',
      message = format('check: there is no check %L', left(p_check, 60)),
      -- as refuse_argument() does, which is not the reader's to call
      hint = 'One of: ' || array_to_string(v_names, ', ') || '.';
  end if;
  foreach check_name in array case when p_check is null then v_names else array[p_check] end loop
    begin
      execute format('select c.status, c.summary, c.details from packhorse.%I() c', 'health_' || check_name)
        into status, summary, details;
    exception when others then
      status := 'fail';
      -- class 42 is about undefined names and missing rights; others quote values, a time that is none in a
      -- chat's history, say
      summary := 'cannot be checked: '
        || case when sqlstate like '42%' then sqlerrm else 'error ' || sqlstate end;
      details := jsonb_build_object('sqlstate', sqlstate);
    end;
    return next;
  end loop;
end
$$;
comment on function packhorse.health_checks(text) is
  'The fourteen health checks: ok, warn, fail or absent, with a sentence and details.';

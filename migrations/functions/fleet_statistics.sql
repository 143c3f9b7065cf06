-- Numbers of the whole fleet for /metrics, counted once for everybody (SPEC O2). One row holds them as JSON;
-- whoever finds it too old counts anew while all others go on reading it, so twenty workers cost what one
-- does. Counting is bounded (count.sql), and a refresh that took long makes the next one wait twenty times as
-- long.

create or replace function packhorse.snapshots_are_visible() returns boolean
language sql stable as $$
-- May this role see the age of every snapshot that is there now? Everybody sees that there is one, not how
-- old another role's is.
  select pg_has_role('pg_read_all_stats', 'usage') or not exists (select from pg_stat_activity a
    where a.backend_xmin is not null and a.xact_start is null and a.datname = current_database()
      and a.pid <> pg_backend_pid());
$$;
comment on function packhorse.snapshots_are_visible() is
  'May this role see the age of every snapshot that is there now?';

create or replace function packhorse.oldest_snapshot_seconds(p_now timestamptz) returns double precision
language sql stable as $$
-- Age of the oldest snapshot in this database, of those whose age this role may see; null when there is none.
  select extract(epoch from p_now - min(s.since))::float8
  from (
    select a.xact_start as since from pg_stat_activity a
    where a.backend_xmin is not null and a.datname = current_database() and a.pid <> pg_backend_pid()
    union all
    select x.prepared from pg_prepared_xacts x where x.database = current_database()
  ) s;
$$;
comment on function packhorse.oldest_snapshot_seconds(timestamptz) is
  'Age of the oldest snapshot in this database that this role may see.';

create or replace function packhorse.table_statistics(p_now timestamptz) returns jsonb
language sql stable as $$
-- Sizes, dead rows, how long inserts find a partition, and the oldest snapshot: null when there is one whose
-- age this role may not see.
  with trees as (
    select t.name, n.relid from (values ('message_queue'), ('message_archive'), ('dead_letters')) as t (name)
    cross join lateral (
      select to_regclass(format('packhorse.%I', t.name))::oid as relid union select p.relid::oid
      from pg_partition_tree(to_regclass(format('packhorse.%I', t.name))) p) n
  )
  select jsonb_build_object(
    'table_bytes', (select jsonb_agg(jsonb_build_object('table', t.name, 'value', t.bytes)) from (
      select name, sum(pg_total_relation_size(relid)) as bytes from trees group by name) t),
    'table_dead_rows', (select jsonb_agg(jsonb_build_object('table', t.name, 'value', t.dead)) from (
      select name, coalesce(sum(pg_stat_get_dead_tuples(relid)), 0) as dead from trees group by name) t),
    'partition_runway_seconds',
    (select jsonb_agg(jsonb_build_object('table', e.table_name, 'every', e.every,
      'value', extract(epoch from e.ends_at - p_now)))
      from packhorse.partition_ends(p_now) e where isfinite(e.ends_at)),
    'oldest_snapshot_age_seconds', case when packhorse.snapshots_are_visible()
      then greatest(coalesce(packhorse.oldest_snapshot_seconds(p_now), 0), 0) end);
$$;
comment on function packhorse.table_statistics(timestamptz) is
  'Sizes, dead rows, time until inserts find no partition, age of the oldest snapshot.';

create or replace function packhorse.schedule_statistics(p_now timestamptz) returns jsonb
language sql stable as $$
-- How schedules, maintenance and backfills fare; the first hundred of each by name, so that a scrape stays
-- bounded.
  with timetable as (
    select h.name, h.lag_seconds, h.last_success_at, s.missed_total from packhorse.schedule_health h
    join packhorse.schedules s on s.name = h.name order by h.name limit 100),
  tasks as (select t.task, t.rows_total, t.last_success_at from packhorse.maintenance_tasks t
    order by t.task limit 100),
  backfills as (select b.name, b.rows_copied, b.rows_skipped, b.done_ratio, b.eta_seconds
    from packhorse.backfill_progress b order by b.name limit 100)
  select jsonb_build_object(
    'schedule_lag_seconds',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', coalesce(s.lag_seconds, 0)))
      from timetable s),
    'schedule_missed_total',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', s.missed_total)) from timetable s),
    'schedule_last_success_timestamp_seconds',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', extract(epoch from s.last_success_at)))
      from timetable s where s.last_success_at is not null),
    'maintenance_rows_total',
    (select jsonb_agg(jsonb_build_object('task', t.task, 'value', t.rows_total)) from tasks t),
    'maintenance_last_success_timestamp_seconds',
    (select jsonb_agg(jsonb_build_object('task', t.task, 'value', extract(epoch from t.last_success_at)))
      from tasks t where t.last_success_at is not null),
    'backfill_rows_total',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'outcome', o.outcome, 'value', o.rows))
      from backfills b
      cross join lateral (values ('copied', b.rows_copied), ('skipped', b.rows_skipped)) as o (outcome,
        rows)),
    'backfill_done_ratio',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'value', b.done_ratio)) from backfills b
      where b.done_ratio is not null),
    'backfill_remaining_seconds',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'value', b.eta_seconds)) from backfills b
      where b.eta_seconds is not null));
$$;
comment on function packhorse.schedule_statistics(timestamptz) is
  'Lag, misses and last success of schedules, rows and last success of maintenance tasks, progress of backfills.';

create or replace function packhorse.queue_statistics() returns jsonb
language sql stable as $$
-- For /metrics: which queues are paused, and which are forwarded.
  select jsonb_build_object('queue_paused',
    jsonb_agg(jsonb_build_object('queue', q.name, 'value', (q.paused_at is not null)::integer)),
    'queue_forwarded',
    jsonb_agg(jsonb_build_object('queue', q.name, 'value', 1)) filter (where q.forward is not null))
  from packhorse.queues q;
$$;
comment on function packhorse.queue_statistics() is
  'Which queues are paused or forwarded, for metrics.';

create or replace function packhorse.refresh_fleet_statistics(p_max_age interval default '15 seconds')
returns boolean
language plpgsql as $$
-- Count anew when the numbers are older than p_max_age (and than twenty times what counting took) and nobody
-- else is at it; says whether it did. Holds the row of fleet_statistics while it counts; readers and other
-- refreshers go on.
declare
  v_now timestamptz := clock_timestamp();
  v_messages jsonb;
  v_due jsonb;
  v_blocked jsonb;
  v_blocked_age jsonb;
  v_rest jsonb;
begin
  if p_max_age is null or p_max_age < interval '0' then
    perform packhorse.refuse_argument('max_age', 'must not be null or negative');
  end if;
  if not exists (select from packhorse.fleet_statistics) then
    insert into packhorse.fleet_statistics default values on conflict do nothing;
  end if;
  perform from packhorse.fleet_statistics s
  where s.refreshed_at = '-infinity'
    or v_now - s.refreshed_at > greatest(p_max_age, least(s.took * 20::float8, interval '10 minutes'))
  for update skip locked;
  if not found then
    return false;
  end if;
  select jsonb_agg(jsonb_build_object('queue', c.queue, 'state', c.state, 'value', c.messages,
    'estimated', c.estimated)),
    jsonb_agg(jsonb_build_object('queue', c.queue,
      'value', coalesce(greatest(extract(epoch from v_now - c.oldest_due), 0), 0)))
      filter (where c.state = 'pending')
  into v_messages, v_due from packhorse.count_queue_messages(v_now) c;
  select jsonb_agg(jsonb_build_object('queue', b.queue, 'value', b.conversations)),
    jsonb_agg(jsonb_build_object('queue', b.queue,
      'value', coalesce(greatest(extract(epoch from v_now - b.blocked_since), 0), 0)))
  into v_blocked, v_blocked_age from packhorse.count_blocked_conversations() b;
  v_rest := jsonb_build_object(
    'conversations_blocked', v_blocked, 'conversation_blocked_age_seconds', v_blocked_age,
    'dead_letters', (select jsonb_agg(jsonb_build_object('queue', q.name, 'value', d.n))
      from packhorse.queues q cross join lateral (
      select count(*) as n
      from (select from packhorse.dead_letters d where d.queue = q.name limit 100000) e) d),
    'isolated_messages', (select count(*)
      from (select from packhorse.message_queue m
        where m.state = 'pending' and m.crashes >= 2 limit 100000) i),
    'refused_completions',
    (select count(*)
      from (select from packhorse.message_queue m where m.completion_refused_at is not null limit 100000) r),
    'workers',
    (select jsonb_agg(jsonb_build_object('state', s.state, 'value', (select count(*) from packhorse.workers w
        where s.state = case when v_now - w.last_seen_at > w.lease_duration then 'silent' else w.state end)))
      from (values ('running'), ('quiet'), ('draining'), ('silent')) as s (state)));
  update packhorse.fleet_statistics set refreshed_at = v_now, took = clock_timestamp() - v_now,
    statistics = jsonb_build_object('queue_messages', v_messages, 'queue_oldest_due_age_seconds', v_due)
      || v_rest || packhorse.queue_statistics() || packhorse.table_statistics(v_now)
      || packhorse.schedule_statistics(v_now) || packhorse.service_statistics()
        || packhorse.scope_statistics(v_now);
  return true;
end
$$;
comment on function packhorse.refresh_fleet_statistics(interval) is
  'Count the fleet''s numbers anew if they are too old and nobody else is at it; says whether it did.';

create or replace function packhorse.fleet_statistics()
returns table (statistics jsonb, age_seconds double precision)
language sql stable as $$
-- What was counted last and how old it is by the database clock; no row before the first refresh.
  select s.statistics, extract(epoch from clock_timestamp() - s.refreshed_at)::double precision
  from packhorse.fleet_statistics s where isfinite(s.refreshed_at);
$$;
comment on function packhorse.fleet_statistics() is 'The fleet''s numbers as JSON, and their age in seconds.';

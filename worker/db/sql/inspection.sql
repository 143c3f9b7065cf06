-- name: inspect_dead_by_queue
-- Dead letters by queue: at most so many of each are counted, and of all together.
select d.queue, d.messages, d.estimated
from packhorse.count_dead_letters(packhorse.count_bound('dead_letters', %(limit)s, %(total)s)) d;

-- name: inspect_queues
-- Settings of all queues, for people.
select name::text as name, paused_at, paused_by, fair_share, max_concurrency, max_concurrency_per_key,
  rate_limit_per_key, rate_interval_per_key::text, rate_burst_per_key, rate_limit,
  rate_interval::text, rate_burst, on_dead,
  failure_breaker, forward, max_attempts, keep_done::text
from packhorse.queues order by name limit 1000;

-- name: inspect_types
-- Types that workers register on a queue, and when one last said so.
select name::text as name, policy, last_seen_at from packhorse.message_types where queue = %s
order by name limit 500;

-- name: inspect_oldest
-- The oldest due messages of a queue, by priority.
select m.id, m.message_type, m.priority, m.attempt, m.conversation_key, m.run_at
from generate_series(1, 10) as level (priority) cross join lateral (
  select o.id, o.message_type::text, o.priority::integer, o.attempt, o.conversation_key::text, o.run_at
  from packhorse.message_queue o
  where o.queue = %(queue)s and o.state = 'pending' and o.crashes < 2 and o.priority = level.priority
    and o.run_at <= clock_timestamp()
  order by o.run_at, o.id limit 10) m
order by m.priority, m.run_at, m.id limit 10;

-- name: inspect_running
-- Messages that run, longest first, and who holds each.
select m.id, m.queue::text as queue, m.message_type::text as message_type, m.attempt,
  m.conversation_key::text as conversation_key, m.claimed_at,
  m.lease_expires_at, m.lease_expires_at < clock_timestamp() as lease_over, m.lease_holder,
  m.cancel_requested_at, extract(epoch from clock_timestamp() - m.claimed_at)::float8 as running_seconds
from packhorse.message_queue m where m.lease_token is not null order by m.claimed_at limit %(limit)s;

-- name: inspect_workers
-- Worker processes: slots, versions, what was asked of them, and their rates between the oldest and the
-- newest heartbeat that is kept.
select w.id, w.daemon, w.hostname, w.pid, w.version, w.queues, w.message_types, w.threads, w.isolation,
  w.state, w.running, w.done_total, w.failed_total,
  w.started_at, w.last_seen_at, clock_timestamp() - w.last_seen_at > w.lease_duration as silent,
  packhorse.worker_problems(w) as problems,
  (select r.request from packhorse.daemon_requests r where r.daemon = w.daemon) as asked,
  (w.recent_counts[2] - w.recent_counts[c.oldest + 1]) / c.seconds as done_per_second,
  (w.recent_counts[3] - w.recent_counts[c.oldest + 2]) / c.seconds as failed_per_second
from packhorse.workers w cross join lateral (
  select o.oldest, nullif(w.recent_counts[1] - w.recent_counts[o.oldest], 0::float8) as seconds
  from (select cardinality(w.recent_counts) - 2 as oldest) o) c
order by clock_timestamp() - w.last_seen_at > w.lease_duration desc, w.hostname, w.started_at,
  w.id limit %(limit)s;

-- name: inspect_schedules
-- Schedules, what they enqueue, and how many planned times were missed.
select h.name::text as name, h.source, h.trigger, h.time_zone, h.paused, h.next_planned_at, h.last_run_at,
  h.last_outcome, h.last_ended_at, h.last_success_at,
  h.lag_seconds, h.problem, s.queue::text as queue, s.message_type::text as message_type, s.missed_total,
  s.paused_by
from packhorse.schedule_health h join packhorse.schedules s on s.name = h.name order by h.name limit 1000;

-- name: inspect_next_runs
-- The next times: of a period all, of a cron expression the first, which is what the database knows.
select s.name::text as name, s.next_planned_at + coalesce(s.every, interval '0') * k.n as planned_at,
  s.every is null as only_first
from packhorse.schedules s
cross join lateral generate_series(0, case when s.every is null then 0 else %(limit)s - 1 end) as k (n)
where s.paused_at is null and s.next_planned_at is not null and (%(name)s::text is null or s.name = %(name)s)
order by 2, 1 limit %(limit)s;

-- name: inspect_missed
-- Planned times that did not become a message, newest first: missed while no scheduler ran, left out beside a
-- run, or failed.
select r.id, r.schedule::text as schedule, r.planned_at, r.fired_at, r.outcome, r.missed_count, r.error
from packhorse.schedule_runs r
where r.fired_at > clock_timestamp() - interval '7 days'
  and (r.outcome in ('missed', 'overlapped', 'failed') or r.missed_count > 0)
order by r.fired_at desc limit %(limit)s;

-- name: inspect_maintenance
-- Maintenance tasks that a scheduler has planned, that configuration has declared, or that ran: the next
-- time, the last run and its rate, gates left out.
with tasks (name) as (
  select s.name::text from packhorse.schedules s where s.message_type = 'packhorse.maintenance'
  union select t.task::text from packhorse.maintenance_tasks t
  union select h.task from packhorse.maintenance_health h
)
select k.name as task, s.name is not null as is_planned, s.cron, s.time_zone, s.next_planned_at, s.paused_at,
  s.paused_by, s.problem, t.policy, coalesce(t.rows_total, 0) as rows_total, t.last_success_at,
  r.id as run_id, r.state, r.gate, r.rows_done, r.rows_total as rows_expected, r.started_at, r.ended_at,
  r.error, r.cancel_requested_by,
  -- a run that was gone on with rested in between
  case when r.resumed = 0
    then r.rows_done / nullif(greatest(extract(epoch from
        coalesce(r.ended_at, case when r.state = 'running' then clock_timestamp() end, r.beat_at)
        - r.started_at)::float8 - r.throttled_seconds, 0), 0) end as rows_per_second
from tasks k
left join packhorse.schedules s on s.name = k.name and s.message_type = 'packhorse.maintenance'
left join packhorse.maintenance_tasks t on t.task = k.name
left join lateral (select l.* from packhorse.maintenance_runs l where l.task = k.name
  order by l.task desc, l.id desc limit 1) r on true
where k.name not like 'backfill.%%' order by k.name limit 500;

-- name: inspect_partitioned
-- Range-partitioned tables of ours, and those that a policy looks after, with their partitions: bounds,
-- planner's rows, bytes.
select k.partrelid::regclass::text as parent, t.relname::text as name, c.relname::text as partition,
  substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \(''([^'']+)''\)') as lower_bound,
  substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \(''([^'']+)''\)') as upper_bound,
  pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' as is_default, i.inhdetachpending as detach_pending,
  greatest(c.reltuples, 0)::float8 as estimated_rows, pg_total_relation_size(c.oid) as bytes
from pg_partitioned_table k join pg_class t on t.oid = k.partrelid
left join pg_inherits i on i.inhparent = k.partrelid left join pg_class c on c.oid = i.inhrelid
where k.partstrat = 'r'
  and (t.relnamespace in (select n.relnamespace from pg_class n
    where n.oid in (to_regclass('packhorse.message_queue'), to_regclass('platform.companies')))
  or t.oid in (select to_regclass(p.policy ->> 'table') from packhorse.maintenance_tasks p
    where p.task like 'partitions.%%'))
order by 1, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', 4 nulls first, 3 limit 5000;

-- name: inspect_runways
-- Until when inserts find a partition.
select table_name, ends_at, every from packhorse.partition_ends(clock_timestamp())
order by ends_at, table_name limit 500;

-- name: inspect_server
-- The server, in one row.
select current_setting('server_version') as version, pg_postmaster_start_time() as started_at,
  pg_is_in_recovery() as standby,
  current_setting('max_connections')::integer as max_connections,
  pg_database_size(current_database()) as bytes, current_database()::text as database,
  (select count(*) from pg_stat_activity a where a.backend_type = 'client backend') as connections,
  (select max(age(d.datfrozenxid)) from pg_database d
    where d.datname = current_database())::bigint as transaction_age;

-- name: inspect_connections
-- Client connections by program and state, and the longest transaction of each.
select coalesce(nullif(a.application_name, ''), '(no name)') as application, a.usename::text as login,
  coalesce(a.state, 'hidden') as state, count(*) as count,
  count(*) filter (where a.wait_event_type = 'Lock') as waiting_for_locks,
  extract(epoch from max(clock_timestamp() - a.xact_start))::float8 as longest_seconds
from pg_stat_activity a where a.backend_type = 'client backend' and a.datname = current_database()
group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 100;

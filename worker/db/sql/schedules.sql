-- name: set_schedule
-- Make or change a schedule: created, changed or unchanged.
select packhorse.set_schedule(%(name)s, %(message_type)s, p_cron => %(cron)s,
  p_every => make_interval(secs => %(every_seconds)s), p_time_zone => %(time_zone)s,
  p_queue => %(queue)s, p_payload => %(payload)s::jsonb, p_missed => %(missed)s,
  p_missed_limit => %(missed_limit)s, p_overlap => %(overlap)s,
  p_jitter => make_interval(secs => %(jitter_seconds)s), p_priority => %(priority)s,
  p_max_attempts => %(max_attempts)s, p_source => %(source)s, p_origin => %(origin)s::text[]);

-- name: remove_undeclared_schedules
-- Schedules of these sources, declared by schedulers with no other packages, that are no longer declared:
-- their names, and whether they are removed. Not those whose row somebody has locked: waiting for it would
-- hold up the timetable.
with free as (
  select s.name from packhorse.schedules s
  where s.source = any (%(sources)s::text[]) and s.origin <@ %(origin)s::text[]
    and s.name <> all (%(names)s::text[])
  for update skip locked
), removed as (
  delete from packhorse.schedules s using free f where s.name = f.name returning s.name
)
select s.name, r.name is not null
from packhorse.schedules s left join removed r on r.name = s.name
where s.source = any (%(sources)s::text[]) and s.origin <@ %(origin)s::text[]
  and s.name <> all (%(names)s::text[]);

-- name: due_schedules
-- What a scheduler has to decide now, and the time until the next planned time (null: nothing is planned). A
-- last planned time that is still to come was decided while the clock was ahead: plan_schedule takes it back.
-- unusable: with those that some scheduler could not compute, which another one may. deferred: those that
-- this one leaves alone for a while.
select s.name, s.cron, extract(epoch from s.every)::float8, s.time_zone, s.missed, s.missed_limit,
  s.last_planned_at, s.problem, n.now, n.wait_seconds, n.open_runs
from (
  select clock_timestamp() as now,
    extract(epoch from min(p.next_planned_at) - clock_timestamp())::float8 as wait_seconds,
    exists (select from packhorse.schedule_runs r where r.outcome = 'enqueued') as open_runs
  from packhorse.schedules p where p.paused_at is null and p.name <> all (%(deferred)s::text[])) n
left join packhorse.schedules s on s.paused_at is null and s.name <> all (%(deferred)s::text[])
  and ((s.next_planned_at is null or s.last_planned_at > n.now + interval '1 minute')
    and (s.problem is null or %(unusable)s)
    or s.next_planned_at <= n.now)
order by s.next_planned_at nulls first, s.name
limit 500;

-- name: fire_schedule
-- Decide one planned time.
select packhorse.fire_schedule(%s, %s, %s, %s, %s, %s);

-- name: fail_schedule_run
-- Record a planned time that could not be enqueued.
select packhorse.fail_schedule_run(%s, %s, %s, %s);

-- name: plan_schedule
-- Store the next planned time, or why there is none.
select packhorse.plan_schedule(%s, %s, %s, %s);

-- name: finish_schedule_runs
-- Write the ends of runs into their history.
select packhorse.finish_schedule_runs(%s);

-- name: schedule_list
-- One row per schedule.
select name, source, trigger, time_zone, paused, next_planned_at, last_run_at, last_outcome, lag_seconds,
  problem from packhorse.schedule_health order by name;

-- name: schedule_show
-- One schedule, whole.
select name, source, cron, extract(epoch from every)::float8 as every_seconds, time_zone, missed,
  missed_limit, overlap, queue, message_type, payload,
  priority, max_attempts, paused_at, paused_by, last_planned_at, next_planned_at, problem,
  clock_timestamp() as now
from packhorse.schedules where name = %s;

-- name: schedule_history
-- Runs, newest first; with the rows of those that were maintenance.
select r.id, r.schedule, r.planned_at, r.fired_at, r.started_at, r.ended_at, r.outcome, m.rows_done as rows,
  r.triggered_by, r.missed_count,
  r.message_id, r.error
from (select h.* from packhorse.schedule_runs h where h.schedule = %(name)s or %(name)s::text is null
  order by h.id desc limit %(limit)s) r
left join packhorse.maintenance_runs m on m.message_id = r.message_id
order by r.id desc;

-- name: require_schedule
-- Raise unless the schedule exists.
select packhorse.require_schedule(%s);

-- name: pause_schedule
-- Stop a schedule.
select packhorse.pause_schedule(%s, %s, %s);

-- name: resume_schedule
-- Let a schedule go on.
select packhorse.resume_schedule(%s, %s, %s);

-- name: run_schedule_now
-- Enqueue a run at once.
select packhorse.run_schedule_now(%s, %s, %s);

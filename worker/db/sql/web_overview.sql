-- name: web_recent_ends
-- What was done in the last hour, from the newest blocks of each day: over all (queue null) and by queue.
with ends as materialized (
  select e.queue, e.wait, e.run, e.whole, extract(epoch from clock_timestamp() - e.finished_at)::float8 as age
  from packhorse.recent_ends(clock_timestamp() - interval '1 hour', %(blocks)s) e
), grouped as (
  select e.queue, count(*) as done,
    percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.wait) as wait,
    percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run,
    count(*) filter (where e.age < 300) as done_lately
  from ends e group by grouping sets ((), (e.queue))
), span as (
  select case when bool_and(e.whole) then 3600 else max(e.age) end as seconds, bool_and(e.whole) as whole
  from ends e
), minutes as (
  select jsonb_agg(jsonb_build_array(m.ago, m.done) order by m.ago) as minutes
  from (select least(floor(e.age / 60), 59)::integer as ago, count(*) as done from ends e group by 1) m
)
select g.queue, g.done, s.seconds, s.whole, g.wait, g.run, g.done_lately,
  least(300, s.seconds) as lately_seconds,
  case when g.queue is null then m.minutes end as minutes
from grouped g cross join span s cross join minutes m order by g.queue nulls first limit 1001;

-- name: web_check_queue_health
-- The checks of the overview, each with smaller bounds than that of `packhorse health`: exact up to so many
-- messages of a queue.
select c.status, c.summary, c.details from packhorse.health_queue_health(
  p_limit => packhorse.count_bound('message_queue', %(limit)s, %(total)s)) c;

-- name: web_check_dead_letters
-- Messages given up lately.
select c.status, c.summary, c.details from packhorse.health_dead_letters(p_limit => %(limit)s) c;

-- name: web_check_conversation_state
-- Conversations that wait.
select c.status, c.summary, c.details
from packhorse.health_conversation_state(p_limit => least(%(limit)s, 1000)) c;

-- name: web_check_system_summary
-- Server, workers, partitions, schedules, without the counts that the other checks have.
select c.status, c.summary, c.details from packhorse.health_system_summary(p_limit => 0) c;

-- name: web_check_circuit_breakers
-- Breakers and services.
select c.status, c.summary, c.details from packhorse.health_circuit_breakers() c;

-- name: web_check_error_rate
-- Dead letters among all ends of the last hour, the only one that is judged.
select c.status, c.summary, c.details
from packhorse.health_error_rate(p_hours => 1, p_blocks => %(blocks)s, p_limit => %(limit)s) c;

-- name: web_check_processing_latency
-- How long handlers took in the last hour.
select c.status, c.summary, c.details
from packhorse.health_processing_latency(p_hours => 1, p_blocks => %(blocks)s) c;

-- name: web_check_stale_locks
-- Leases that are over.
select c.status, c.summary, c.details from packhorse.health_stale_locks(p_limit => %(limit)s) c;

-- name: web_worker_starts
-- When processes that live were started, within the last hour.
select floor(extract(epoch from clock_timestamp() - w.started_at) / 60)::integer as minutes_ago, w.version,
  count(*) as processes
from packhorse.workers w where w.started_at > clock_timestamp() - interval '1 hour' group by 1, 2
order by 1 desc limit 100;

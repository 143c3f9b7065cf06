-- name: web_recent_ends
-- What was done in the last hour, from the newest 1000 blocks of each day: over all (queue null) and by queue.
with ends as materialized (
  select e.queue, e.wait, e.run, e.finished_at, e.whole, extract(epoch from clock_timestamp() - e.finished_at)::float8 as age
  from packhorse.recent_ends(clock_timestamp() - interval '1 hour', 1000) e
), span as (
  select case when bool_and(e.whole) then 3600 else max(e.age) end as seconds, bool_and(e.whole) as whole from ends e
), minutes as (
  select jsonb_agg(jsonb_build_array(m.ago, m.done) order by m.ago) as minutes
  from (select least(floor(e.age / 60), 59)::integer as ago, count(*) as done from ends e group by 1) m
)
select e.queue, count(*) as done, s.seconds, s.whole, percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.wait) as wait,
  percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run, count(*) filter (where e.age < 300) as done_lately,
  least(300, s.seconds) as lately_seconds, case when e.queue is null then m.minutes end as minutes
from ends e cross join span s cross join minutes m
group by grouping sets ((), (e.queue)), s.seconds, s.whole, m.minutes
order by e.queue nulls first limit 1001;

-- name: web_worker_starts
-- When processes that live were started, within the last hour.
select floor(extract(epoch from clock_timestamp() - w.started_at) / 60)::integer as minutes_ago, w.version, count(*) as processes
from packhorse.workers w where w.started_at > clock_timestamp() - interval '1 hour' group by 1, 2 order by 1 desc limit 100;

-- name: top_queues
-- Live messages by queue and state, bounded per queue and for all together; ages by the database's clock.
-- Queues that nobody has declared, too. estimates: the states whose number is the planner's.
with bound as (select packhorse.count_bound('message_queue', %(limit)s, %(total)s) as of_each),
counted as (
  select c.* from bound b cross join packhorse.count_queue_messages(clock_timestamp(), b.of_each) c
  union all
  select u.* from bound b cross join packhorse.count_undeclared_states(clock_timestamp(), b.of_each) u
)
select c.queue, q.paused_at is not null as paused,
  coalesce(max(c.messages) filter (where c.state = 'pending'), 0) as due,
  coalesce(max(c.messages) filter (where c.state = 'delayed'), 0) as delayed,
  coalesce(max(c.messages) filter (where c.state = 'running'), 0) as running,
  coalesce(max(c.messages) filter (where c.state = 'blocked'), 0) as blocked,
  extract(epoch from clock_timestamp() - min(c.oldest_due))::float8 as oldest_due_seconds,
  bool_or(c.estimated) as estimated,
  coalesce(array_agg(c.state order by c.state) filter (where c.estimated), '{}') as estimates,
  q.name is not null as declared
from counted c left join packhorse.queues q on q.name = c.queue group by c.queue, q.name
order by 3 desc, 1;

-- name: top_workers
-- Live workers as of their last heartbeats: what they run, what they have done since they started, and the
-- rates between the oldest and the newest of the counts that are kept (four heartbeats).
select w.hostname, w.pid, w.state, clock_timestamp() - w.last_seen_at > w.lease_duration as silent, w.threads,
  w.running, w.done_total, w.failed_total,
  packhorse.worker_problems(w) as problems,
  extract(epoch from clock_timestamp() - w.last_seen_at)::float8 as age_seconds,
  c.seconds, (w.recent_counts[2] - w.recent_counts[c.oldest + 1]) / c.seconds as done_per_second,
  (w.recent_counts[3] - w.recent_counts[c.oldest + 2]) / c.seconds as failed_per_second
from packhorse.workers w cross join lateral (
  select o.oldest, nullif(w.recent_counts[1] - w.recent_counts[o.oldest], 0::float8) as seconds
  from (select cardinality(w.recent_counts) - 2 as oldest) o) c
order by clock_timestamp() - w.last_seen_at > w.lease_duration desc, cardinality(w.problems) desc,
  w.running desc, w.id limit 10000;

-- name: top_conversations
-- Conversations that wait, longest first, from the health check's bounded look.
select c.details -> 'oldest' as oldest, (c.details ->> 'waiting')::bigint as waiting,
  (c.details ->> 'waiting_is_limit')::boolean as is_limit
from packhorse.health_conversation_state() c;

-- name: top_oldest
-- The oldest due message of each queue and priority, oldest first.
select m.id, q.name::text as queue, m.message_type, m.attempt,
  extract(epoch from clock_timestamp() - m.run_at)::float8 as late_seconds
from packhorse.queues q cross join generate_series(1, 10) as level (priority) cross join lateral (
  select o.id, o.message_type::text, o.attempt, o.run_at from packhorse.message_queue o
  where o.queue = q.name and o.state = 'pending' and o.crashes < 2 and o.priority = level.priority
    and o.run_at <= clock_timestamp()
  order by o.run_at limit 3) m
order by m.run_at limit 5;

-- name: top_dead
-- Dead letters of the last hour by cause, bounded.
select c.details -> 'causes' as causes, (c.details ->> 'recent')::bigint as recent,
  (c.details ->> 'kept')::bigint as kept,
  (c.details ->> 'recent_is_limit')::boolean as recent_is_limit,
  (c.details ->> 'kept_is_limit')::boolean as kept_is_limit
from packhorse.health_dead_letters() c;

-- name: top_maintenance
-- Unfinished maintenance runs and the gate that holds each.
select r.task, r.state, r.gate, r.rows_done,
  extract(epoch from clock_timestamp() - r.started_at)::float8 as age_seconds
from packhorse.maintenance_runs r where r.state in ('running', 'paused') order by r.id limit 20;

-- name: queue_health
-- One row per queue: depth by state, ages in seconds.
select queue, paused, pending, delayed, blocked, running, dead, oldest_due_seconds, oldest_running_seconds
from packhorse.message_queue_health order by queue;

-- name: queue_settings
-- The settings of a queue; intervals as text, so that each value can be given to set_queue again.
select name, paused_at, paused_by, max_concurrency, max_concurrency_per_key, rate_limit, rate_interval::text, rate_burst,
  keep_done::text, max_attempts, crash_limit, backoff_initial::text, backoff_multiplier, backoff_max::text, backoff_jitter,
  on_dead, failure_breaker, created_at, updated_at
from packhorse.queues where name = %s;

-- name: require_queue
-- PH002 with a near miss unless the queue exists.
select packhorse.require_queue(%s);

-- name: pause_queue
-- Stop claims; false when it was paused already.
select packhorse.pause_queue(%s, %s);

-- name: resume_queue
-- Claims go on; false when it was not paused.
select packhorse.resume_queue(%s, %s);

-- name: set_queue
-- Change settings.
select (packhorse.set_queue(%s, %s::jsonb, %s)).name;

-- name: list_messages
-- Messages by filter, newest first.
select id, queue, message_type, state, priority, attempt, conversation_key, run_at, created_at, finished_at, error_class, error_code
from packhorse.all_messages
where (%(queue)s::text is null or queue = %(queue)s) and (%(state)s::text is null or state = %(state)s)
  and (%(message_type)s::text is null or message_type = %(message_type)s)
  and (%(conversation_key)s::text is null or conversation_key = %(conversation_key)s)
order by id desc limit %(limit)s;

-- name: show_message
-- One message, whole; of its steps so many characters of each value.
select a.id, a.queue, a.message_type, a.state, a.reason, a.priority, a.attempt, a.max_attempts, a.crashes, a.conversation_key,
  coalesce(m.concurrency_key::text, d.concurrency_key) as concurrency_key, m.dedup_key::text, a.correlation_id, a.run_at, a.created_at, m.expires_at,
  a.claimed_at, m.cancel_requested_at, a.finished_at, a.lease_holder, a.lease_expires_at, a.error_class, a.error_code, a.error_message, a.error_details,
  a.payload, a.options, a.history, packhorse.describe_steps(a.steps, %(characters)s) as steps
from packhorse.all_messages a
left join packhorse.message_queue m on m.id = a.id and m.state = a.state
left join packhorse.dead_letters d on d.id = a.id and a.state = 'dead'
where a.id = %(id)s;

-- name: message_state
-- Where a message is; no row when nothing has this id.
select state from packhorse.all_messages where id = %s limit 1;

-- name: bound_lock_waits
-- This transaction waits for the rows of others as long as the verbs of a worker do.
select set_config('lock_timeout', '500ms', true);

-- name: retry_message_now
-- A waiting message is due at once; one that was due already keeps its place in the line; one whose completion is refused runs
-- again. Recorded, its queue woken. No row when it does not wait.
with due as (
  update packhorse.message_queue set run_at = least(run_at, clock_timestamp()), completion_refused_at = null,
    state = case when state = 'blocked' then state else 'pending' end, lease_holder = null, lease_token = null, lease_expires_at = null
  where id = %(id)s and (state in ('pending', 'blocked') or completion_refused_at is not null) returning id, queue, state
), recorded as (
  insert into packhorse.operator_actions (action, operator, reason, message_id)
  select 'retry_now', %(operator)s, %(reason)s, id from due
)
select state, packhorse.wake_queue(queue) from due;

-- name: known_types
-- Types that some worker registered.
select name from packhorse.message_types order by name;

-- name: list_all_workers
-- Worker processes, newest first; silent when the lease they promised to renew is over; problems: what they cannot do.
select id, hostname, pid, version, state, queues, message_types, threads, running, done_total, failed_total, started_at,
  last_seen_at, clock_timestamp() - last_seen_at > lease_duration as silent, packhorse.worker_problems(w) as problems
from packhorse.workers w order by started_at desc, id;

-- name: blocked_conversations
-- Conversations that wait, and for whom; longest first.
select conversation_key, waiting, since, holder_kind, holder_id from packhorse.blocked_conversations order by since limit %s;

-- name: finished_last_hour
-- Messages that ended in the last hour, by queue and end; seconds from enqueue to end.
select queue, state, count(*) as count,
  extract(epoch from percentile_cont(0.5) within group (order by finished_at - created_at))::float8 as p50_seconds,
  extract(epoch from percentile_cont(0.99) within group (order by finished_at - created_at))::float8 as p99_seconds
from (
  select queue, state, created_at, finished_at from packhorse.message_archive where finished_at > clock_timestamp() - interval '1 hour'
  union all
  select queue, 'dead', created_at, dead_at from packhorse.dead_letters where dead_at > clock_timestamp() - interval '1 hour') ended
group by queue, state order by queue, state;

-- name: dead_by_code
-- Dead letters of the last hour by the code of their error, most frequent first; those without a code are not here.
select queue, error_code, count(*) as count, max(dead_at) as last_dead_at from packhorse.dead_letters
where dead_at > clock_timestamp() - interval '1 hour' and error_code is not null
group by queue, error_code order by count desc, queue, error_code limit 50;

-- name: worker_totals
-- Live worker processes and what they say they did.
select count(*) as processes, coalesce(sum(threads), 0)::bigint as threads, coalesce(sum(running), 0)::bigint as running,
  coalesce(sum(done_total), 0)::bigint as done_total, coalesce(sum(failed_total), 0)::bigint as failed_total
from packhorse.workers where clock_timestamp() - last_seen_at <= lease_duration;

-- name: flush_queue
-- Cancel every message of a queue that does not run.
select cardinality(packhorse.finish_cancelled(array(select id from packhorse.message_queue where queue = %s and state <> 'running'), null, 'flushed'));

-- name: queue_has_messages
-- Is anything alive on the queue?
select exists (select from packhorse.message_queue where queue = %s);

-- name: queue_health
-- One row per queue, by name: depth by state, ages in seconds; the queues of dead letters and of rows that
-- nobody has declared, too. Counted up to a bound of each queue, beyond it the planner's: estimates names
-- those.
with live as (
  select c.queue, c.state, c.messages, c.estimated, c.oldest_due
  from packhorse.count_queue_messages(
    clock_timestamp(), packhorse.count_bound('message_queue', %(each)s, %(together)s)) c
  union all
  select u.queue, u.state, u.messages, u.estimated, u.oldest_due
  from packhorse.count_undeclared_states(
    clock_timestamp(), packhorse.count_bound('message_queue', %(each)s, %(together)s)) u
  union all
  select d.queue, 'dead', d.messages, d.estimated, null
  from packhorse.count_dead_letters(packhorse.count_bound('dead_letters', %(each)s, %(together)s)) d
), running as (
  select m.queue::text as queue, min(m.claimed_at) as since from packhorse.message_queue m
  where m.state = 'running' and m.lease_token is not null group by 1
)
select l.queue, coalesce(bool_or(q.paused_at is not null), false) as paused,
  coalesce(max(l.messages) filter (where l.state = 'pending'), 0) as pending,
  coalesce(max(l.messages) filter (where l.state = 'delayed'), 0) as delayed,
  coalesce(max(l.messages) filter (where l.state = 'blocked'), 0) as blocked,
  coalesce(max(l.messages) filter (where l.state = 'running'), 0) as running,
  coalesce(max(l.messages) filter (where l.state = 'dead'), 0) as dead,
  coalesce(extract(epoch from clock_timestamp() - min(l.oldest_due)), 0)::float8 as oldest_due_seconds,
  coalesce(extract(epoch from clock_timestamp() - min(r.since)), 0)::float8 as oldest_running_seconds,
  coalesce(array_agg(l.state order by l.state) filter (where l.estimated), '{}') as estimates
from live l left join packhorse.queues q on q.name = l.queue left join running r on r.queue = l.queue
group by l.queue order by l.queue;

-- name: queue_settings
-- The settings of a queue; intervals as text, so that each value can be given to set_queue again.
select name, paused_at, paused_by, fair_share, max_concurrency, max_concurrency_per_key,
  rate_limit_per_key, rate_interval_per_key::text, rate_burst_per_key, rate_limit, rate_interval::text,
  rate_burst,
  keep_done::text, max_attempts, crash_limit, backoff_initial::text, backoff_multiplier, backoff_max::text,
  backoff_jitter, on_dead, failure_breaker, forward, created_at, updated_at
from packhorse.queues where name = %s;

-- name: retry_span
-- Attempts of a queue, how long an outage they outlast at least (seconds), and whether a failure breaker
-- counts.
select max_attempts as attempts, failure_breaker is not null as breaker,
  extract(epoch from packhorse.retry_span(max_attempts, backoff_initial, backoff_multiplier, backoff_max,
    backoff_jitter))::float8 as seconds
from packhorse.queues where name = %s;

-- name: require_queue
-- PH002 with a near miss unless the queue exists.
select packhorse.require_queue(%s);

-- name: pause_queue
-- Stop claims; false when it was paused already.
select packhorse.pause_queue(%s, %s, %s);

-- name: resume_queue
-- Claims go on; false when it was not paused.
select packhorse.resume_queue(%s, %s, %s);

-- name: pause_all_queues
-- Pause what is not paused; which.
select packhorse.pause_all_queues(%s, %s);

-- name: resume_all_queues
-- Resume what was paused with all others; which.
select packhorse.resume_all_queues(%s, %s);

-- name: delete_queue
-- Remove a queue that nothing uses.
select packhorse.delete_queue(%s, %s, %s);

-- name: set_queue
-- Change settings.
select (packhorse.set_queue(%s, %s::jsonb, %s, %s)).name;

-- name: show_message
-- One message, whole; of its steps so many characters of each value.
select a.id, a.queue, a.message_type, a.state, a.reason, a.priority, a.attempt, a.max_attempts, a.crashes,
  a.conversation_key,
  coalesce(m.concurrency_key::text, d.concurrency_key) as concurrency_key,
  coalesce(m.fairness_key::text, d.fairness_key) as fairness_key, m.dedup_key::text,
  m.pending_key::text, m.gathers_until,
  a.correlation_id, a.run_at, a.created_at, m.expires_at,
  a.claimed_at, m.cancel_requested_at, a.finished_at, a.lease_holder, a.lease_expires_at, a.error_class,
  a.error_code, a.error_message, a.error_details,
  a.payload, a.options, a.history, packhorse.describe_steps(a.steps, %(characters)s) as steps
from packhorse.all_messages a
left join packhorse.message_queue m on m.id = a.id and m.state = a.state
left join packhorse.dead_letters d on d.id = a.id and a.state = 'dead'
where a.id = %(id)s;

-- name: message_state
-- Where a message is; no row when nothing has this id.
select state from packhorse.all_messages where id = %s limit 1;

-- name: last_traceback
-- That of the last failed attempt of a message; null when none is kept.
select h.entry ->> 'traceback'
from packhorse.all_messages a
cross join lateral jsonb_array_elements(case when jsonb_typeof(a.history) = 'array' then a.history
  else '[]' end) with ordinality as h (entry, place)
where a.id = %s and h.entry ->> 'traceback' is not null order by h.place desc limit 1;

-- name: known_types
-- Types that some worker registered.
select name from packhorse.message_types order by name;

-- name: list_all_workers
-- Worker processes, newest first; silent when the lease they promised to renew is over; problems: what they
-- cannot do.
select id, hostname, pid, version, state, queues, message_types, threads, running, done_total, failed_total,
  started_at, last_seen_at, clock_timestamp() - last_seen_at > lease_duration as silent,
  packhorse.worker_problems(w) as problems, daemon,
  packhorse.asked_of_worker(id) as asked
from packhorse.workers w order by started_at desc, id;

-- name: blocked_conversations
-- Conversations that wait, and for whom; longest first.
select conversation_key, waiting, since, holder_kind, holder_id from packhorse.blocked_conversations
order by since limit %s;

-- name: conversation_messages
-- The messages of a conversation in its order: live and dead ones, and those that ended within so many
-- seconds; the last ones when there are more.
select c.* from (
  select u.* from (
    (select m.id, m.queue::text as queue, m.message_type::text as message_type, m.state::text as state,
      null as reason, m.attempt, m.created_at, m.run_at,
       m.claimed_at, null::timestamptz as finished_at, m.lease_holder, m.error ->> 'class' as error_class
     from ( -- state by state, for each has an index of its own
       (select r.* from packhorse.message_queue r where r.conversation_key = %(key)s and r.state = 'running')
       union all (select p.* from packhorse.message_queue p
         where p.conversation_key = %(key)s and p.state = 'pending' order by p.id desc limit %(limit)s)
       union all (select b.* from packhorse.message_queue b
         where b.conversation_key = %(key)s and b.state = 'blocked' order by b.id desc limit %(limit)s)) m)
    union all
    (select d.id, d.queue, d.message_type, 'dead', d.reason, d.attempt, d.created_at, null, null, d.dead_at,
      d.lease_holder, d.error_class
     from packhorse.dead_letters d where d.conversation_key = %(key)s order by d.id desc limit %(limit)s)
    union all -- of the archive only the partitions of that time are read
    (select a.id, a.queue, a.message_type, a.state, a.reason, a.attempt, a.created_at, null, a.claimed_at,
      a.finished_at, a.lease_holder, a.error ->> 'class'
     from packhorse.message_archive a
     where %(recent)s > 0::float8 and a.conversation_key = %(key)s
       and a.finished_at > statement_timestamp() - make_interval(secs => %(recent)s)
     order by a.id desc limit %(limit)s)) u
  order by u.id desc limit %(limit)s) c
order by c.id;

-- name: conversation_head
-- What holds a conversation: the message that runs, the dead letter that blocks it, or the first one that
-- waits; and how many wait.
select (select h.holder_kind from packhorse.conversation_holders(%(key)s, 9223372036854775807) h
    order by h.holder_kind = 'running' desc, h.holder_kind = 'dead' desc, h.holder_id limit 1) as kind,
  (select h.holder_id from packhorse.conversation_holders(%(key)s, 9223372036854775807) h
    order by h.holder_kind = 'running' desc, h.holder_kind = 'dead' desc, h.holder_id limit 1) as id,
  (select count(*) from packhorse.message_queue m where m.conversation_key = %(key)s and m.state = 'pending')
    + (select count(*) from packhorse.message_queue m
      where m.conversation_key = %(key)s and m.state = 'blocked') as waiting;

-- name: message_holder
-- The worker that runs a message, for people.
select coalesce((select w.hostname || ':' || w.pid from packhorse.workers w where w.id = m.lease_holder),
  m.lease_holder::text)
from packhorse.message_queue m where m.id = %s and m.state = 'running';

-- name: finished_last_hour
-- Messages that ended in the last hour, by queue and end; seconds from enqueue to end.
select queue, state, count(*) as count,
  extract(epoch from percentile_cont(0.5) within group (order by finished_at
    - created_at))::float8 as p50_seconds,
  extract(epoch from percentile_cont(0.99) within group (order by finished_at
    - created_at))::float8 as p99_seconds
from (
  select queue, state, created_at, finished_at from packhorse.message_archive
  where finished_at > clock_timestamp() - interval '1 hour'
  union all
  select queue, 'dead', created_at, dead_at from packhorse.dead_letters
  where dead_at > clock_timestamp() - interval '1 hour') ended
group by queue, state order by queue, state;

-- name: dead_by_code
-- Dead letters of the last hour by the code of their error, most frequent first; those without a code are not
-- here.
select queue, error_code, count(*) as count, max(dead_at) as last_dead_at from packhorse.dead_letters
where dead_at > clock_timestamp() - interval '1 hour' and error_code is not null
group by queue, error_code order by count desc, queue, error_code limit 50;

-- name: worker_totals
-- Live worker processes and what they say they did.
select count(*) as processes, coalesce(sum(threads), 0)::bigint as threads,
  coalesce(sum(running), 0)::bigint as running,
  coalesce(sum(done_total), 0)::bigint as done_total, coalesce(sum(failed_total), 0)::bigint as failed_total
from packhorse.workers where clock_timestamp() - last_seen_at <= lease_duration;

-- name: flush_queue
-- Cancel every message of a queue that does not run.
select cardinality(packhorse.finish_cancelled(array(select id from packhorse.message_queue
  where queue = %s and state <> 'running'), null, 'flushed'));

-- name: queue_has_messages
-- Is anything alive on the queue?
select exists (select from packhorse.message_queue where queue = %s);

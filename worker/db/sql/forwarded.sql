-- name: note_forwarded_attempt
-- A relayed message waits where it is for its next attempt.
select packhorse.note_forwarded_attempt(%s, %s, make_interval(secs => %s), %s::jsonb);

-- name: note_forwarded_done
-- Relayed messages are done and could not be acknowledged.
select packhorse.note_forwarded_done(%s);

-- name: note_forwarded_crashes
-- Relayed messages ran in a process that died; how many.
select packhorse.note_forwarded_crashes(%s, %s);

-- name: note_forwarded_overdue
-- The attempt of a relayed message that only the end of its process has ended.
select packhorse.note_forwarded_overdue(%s, %s);

-- name: forwarded_notes
-- What is known of relayed messages that come again.
select id, attempt, crashes, is_over, wait_seconds, history from packhorse.forwarded_notes(%s);

-- name: bury_forwarded
-- A relayed message becomes a dead letter.
select packhorse.bury_forwarded_message(%s, %s::jsonb, %s, %s, %s, %s, %s, %s::jsonb, %s);

-- name: forwarded_policies
-- What queues say of retries, and whether they are forwarded; seconds.
select q.name, q.max_attempts, q.crash_limit, extract(epoch from q.backoff_initial)::float8 as initial,
  q.backoff_multiplier::float8 as multiplier, extract(epoch from q.backoff_max)::float8 as longest,
  q.backoff_jitter::float8 as jitter, q.forward, q.failure_breaker is not null as breaker
from packhorse.queues q where q.name = any (%s);

-- name: park_forwarded_scope
-- What a relayed message calls asked for a pause; the scope when this has parked it.
select packhorse.park_forwarded_scope(%s, %s, make_interval(secs => %s), %s, %s);

-- name: forwarded_resting
-- Scopes that rest: seconds left, and whether one message at a time may start after them. breaker: a failure
-- breaker has parked it.
select s.name, s.queue, s.message_types,
  greatest(extract(epoch from s.parked_until - clock_timestamp())::float8, 0), s.probing,
  s.next_park is not null
from packhorse.scopes s where s.ends_at > clock_timestamp();

-- name: forwarded_counting
-- Scopes whose failures are counted by a breaker, and whether one was there within the last minute.
select s.name, s.last_failed_at > clock_timestamp() - interval '1 minute'
from packhorse.scopes s where s.failures > 0 and s.next_park is null;

-- name: count_forwarded_failure
-- An attempt of a relayed message failed: null, it fails as usual; else parked or snooze, and for how long.
select outcome, wait_seconds from packhorse.count_forwarded_failure(%s, %s, %s, %s, %s, %s, %s);

-- name: note_forwarded_success
-- A relayed message is done: failures of these scopes are counted from none.
select packhorse.note_forwarded_success(%s);

-- name: lift_forwarded_scope
-- A message of it has succeeded, and its failure breaker had parked it.
select packhorse.lift_scope(s.name) from packhorse.scopes s
where s.name = %s and s.next_park is not null and s.parked_until <= clock_timestamp();

-- name: register_worker
-- A worker process starts.
select packhorse.register_worker(%s, %s, %s, %s, %s, %s, %s, make_interval(secs => %s), %s, %s::jsonb,
  %s::text[], %s, %s::text);

-- name: asked_of_worker
-- What operators have asked of its daemon.
select packhorse.asked_of_worker(%s);

-- name: ask_worker
-- Ask the daemon of a worker process for something.
select packhorse.ask_worker(%s, %s, %s, %s);

-- name: beat_worker
-- Extend every held lease; rows need attention, lease_held is null in a row that is for none. And in each row
-- what operators have asked of its daemon, how many processes could do its work now, and the one before it.
select b.id, b.lease_held, b.renewed, b.cancel_requested, f.request, f.peers, f.before
from (select packhorse.asked_of_worker(%(id)s) as request, p.peers, p.before
  from packhorse.peers_of_worker(%(id)s) p) f
left join packhorse.beat_worker(%(id)s, %(ids)s, %(tokens)s, make_interval(secs => %(lease)s), %(state)s,
  %(done)s, %(failed)s, %(problems)s::text[], %(running)s) b on true;

-- name: withdraw_crashes
-- Leases of a process that lives were over: that was no crash.
select packhorse.withdraw_crashes(%s, %s, %s);

-- name: deregister_worker
-- A worker process ended in good order.
select packhorse.deregister_worker(%s);

-- name: rescue
-- Return messages whose lease is over.
select packhorse.rescue_expired_messages(%s);

-- name: expire
-- Cancel those that are not worth doing any more.
select packhorse.expire_messages();

-- name: recover_worker
-- Return what an ended child held.
select packhorse.recover_worker(%s, %s, %s, %s, %s, %s);

-- name: upkeep_partitions
-- Slow upkeep: the archive's partitions of the next days.
select packhorse.ensure_message_archive_partitions();

-- name: upkeep_messages
-- Slow upkeep: the months of the platform's messages, where there is a platform.
select packhorse.keep_messages_partitions();

-- name: upkeep_unknown_types
-- Slow upkeep: messages of types without any worker.
select packhorse.bury_unknown_types(make_interval(secs => %s));

-- name: upkeep_workers
-- Slow upkeep: rows of workers that are gone; so many at most.
select packhorse.forget_dead_workers(p_limit => %s);

-- name: upkeep_conversations
-- Slow upkeep: conversations whose first message was deleted by hand.
select packhorse.promote_stranded_conversations();

-- name: upkeep_windows
-- Slow upkeep: dedup windows, results, rate limiters whose own time is over; so many of each at most. What
-- ages by policy is the scheduler's.
select packhorse.cleanup_expired_windows(%s);

-- name: upkeep_archive
-- Slow upkeep: the archive's old partitions.
select packhorse.drop_expired_archive_partitions();

-- name: see_probe
-- Does this role see the row it just wrote? The caller rolls back.
select id from packhorse.message_queue where id = %s;

-- name: change_probe
-- May it change that row, as a claim does?
update packhorse.message_queue set run_at = run_at where id = %s;

-- name: remove_probe
-- May it remove that row, as every ending does?
delete from packhorse.message_queue where id = %s;

-- name: list_workers
-- Live workers, newest first.
select id, hostname, pid, version, state, queues, message_types, threads, running, done_total, failed_total,
  started_at, last_seen_at, clock_timestamp() - last_seen_at > lease_duration as silent
from packhorse.workers order by started_at desc;

-- name: forwarded_queues
-- The queues that go to this place.
select coalesce(array_agg(q.name::text order by q.name), '{{}}') from packhorse.queues q where q.forward = %s;

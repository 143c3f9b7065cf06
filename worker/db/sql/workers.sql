-- name: register_worker
-- A worker process starts.
select register_worker(%s, %s, %s, %s, %s, %s, %s, make_interval(secs => %s));

-- name: beat_worker
-- Extend every held lease; rows need attention.
select id, lease_held, renewed, cancel_requested from beat_worker(%s, %s, %s, make_interval(secs => %s), %s, %s, %s);

-- name: deregister_worker
-- A worker process ended in good order.
select deregister_worker(%s);

-- name: rescue
-- Return messages whose lease is over, and cancel expired ones.
select rescue_expired_messages(), expire_messages();

-- name: recover_worker
-- Return what a dead child held.
select recover_worker(%s, %s, %s);

-- name: upkeep
-- Slow upkeep: archive partitions, types without worker, dead workers' rows, expired windows.
select ensure_message_archive_partitions(), bury_unknown_types(make_interval(secs => %s)), forget_dead_workers(),
  cleanup_old_messages(), drop_expired_archive_partitions();

-- name: see_probe
-- Does this role see the row it just wrote? The caller rolls back.
select id from message_queue where id = %s;

-- name: change_probe
-- May it change that row, as a claim does?
update message_queue set run_at = run_at where id = %s;

-- name: remove_probe
-- May it remove that row, as every ending does?
delete from message_queue where id = %s;

-- name: list_workers
-- Live workers, newest first.
select id, hostname, pid, version, state, queues, message_types, threads, running, done_total, failed_total, started_at,
  last_seen_at, clock_timestamp() - last_seen_at > lease_duration as silent
from workers order by started_at desc;

-- Workers: registration and heartbeat (SPEC W1b, W5).

create or replace function packhorse.bounded_problems(p_problems text[]) returns text[]
language sql immutable as $$
-- What a process says about itself, cut to 20 texts of 200 characters.
  select array(select left(p.problem, 200) from unnest(p_problems[:20]) with ordinality as p (problem, place)
    where p.problem is not null order by p.place);
$$;
comment on function packhorse.bounded_problems(text[]) is
  'Used by register_worker and beat_worker: problems cut to 20 texts of 200 characters.';

create or replace function packhorse.worker_problems(p_worker packhorse.workers) returns text[]
language sql stable as $$
-- What a worker process cannot do: what it said with its last heartbeat, and that there was none for longer
-- than it should be, three quarters of its lease (a heartbeat comes three times per lease, at least).
  select case when clock_timestamp() - p_worker.last_seen_at > p_worker.lease_duration * 0.75::float8
      then array[format('silent for %s s',
        floor(extract(epoch from clock_timestamp() - p_worker.last_seen_at)))] else '{}'::text[] end
    || p_worker.problems;
$$;
comment on function packhorse.worker_problems(packhorse.workers) is
  'What a worker process said that it cannot do, and how long it has been silent.';

create or replace function packhorse.register_worker(
  p_id uuid, p_hostname text, p_pid integer, p_version text, p_queues text[], p_types text[],
  p_threads integer, p_lease interval, p_isolation boolean default false, p_policies jsonb default '{}',
  p_problems text[] default '{}', p_daemon uuid default null, p_forward text default null
) returns void
language plpgsql as $$
-- A worker process starts: remember it and the types it handles, or patterns of them (names_type). Declares
-- its queues. p_isolation: it runs only messages that were there when two processes died. p_policies: by type
-- an object with `queue`, and with what its code says of retries (max_attempts, max_retries, min_backoff and
-- max_backoff in milliseconds, on_retry_exhausted): see failure_policy; services: see scope_types,
-- failure_breaker. p_problems: as in beat_worker(). p_daemon: the parent of the process, which
-- asked_of_worker() and ask_worker() go by; null: it has none. p_forward: where it takes the messages of
-- queues that are forwarded, of whatever type; null: it runs them. Raises PH006 in a restored copy that
-- nobody has accepted.
begin
  perform packhorse.refuse_copy();
  perform packhorse.declare_queue(q) from unnest(p_queues) q;
  insert into packhorse.workers (id, hostname, pid, version, queues, message_types, threads, lease_duration,
    isolation, problems, daemon, forward)
  values (p_id, p_hostname, p_pid, p_version, p_queues, packhorse.patterns_first(p_types), p_threads, p_lease,
    p_isolation, packhorse.bounded_problems(p_problems), coalesce(p_daemon, p_id), p_forward)
  on conflict (id) do update set last_seen_at = clock_timestamp();
  insert into packhorse.message_types (name, queue, policy)
  select t.name, coalesce(p_policies -> t.name ->> 'queue', p_queues[1], 'default'),
    coalesce(p_policies -> t.name, '{}') - 'queue'::text
  from unnest(p_types) as t (name)
  order by t.name
  on conflict (name) do update
  set last_seen_at = clock_timestamp(), queue = excluded.queue, policy = excluded.policy;
  perform packhorse.join_scopes(), packhorse.lift_removed_breakers();
end
$$;
comment on function packhorse.register_worker(uuid, text, integer, text, text[], text[], integer, interval,
  boolean, jsonb, text[], uuid, text) is 'A worker process starts.';

create or replace function packhorse.beat_worker(
  p_id uuid, p_ids bigint[], p_tokens bigint[], p_lease interval, p_state text default 'running',
  p_done bigint default 0, p_failed bigint default 0, p_problems text[] default '{}',
  p_running integer default null
) returns table (id bigint, lease_held boolean, renewed boolean, cancel_requested boolean)
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- One heartbeat of a process: every held lease goes on until now + p_lease. Returns a row for each message
-- that needs attention: its lease is lost, it was not renewed because somebody has locked its row (the
-- others' leases must not end for that), or somebody asked to cancel it. A row without id: the process itself
-- is not known any more (it was silent for long); it must register again, or its types look abandoned.
-- p_problems: what the process cannot do, for people; 20 texts of 200 characters at most are kept. p_running:
-- handlers that run now; null: as many as p_ids. Raises PH001. Locks: the held rows that nobody else has
-- locked (HOT updates) and the worker's own row.
begin
  perform packhorse.check_lease(p_lease);
  return query
  with held as (
    update packhorse.message_queue m set lease_expires_at = clock_timestamp() + p_lease
    where m.id = any (array(
        select l.id from packhorse.message_queue l
        where l.id = any (p_ids) and l.lease_token = any (p_tokens) and l.state = 'running'
        for no key update skip locked))
      and m.state = 'running'
    returning m.id, m.cancel_requested_at
  )
  select a.id, h.id is not null or q.id is not null, h.id is not null, h.cancel_requested_at is not null
  from unnest(p_ids) as a (id)
  left join held h on h.id = a.id
  left join packhorse.message_queue q
    on q.id = a.id and q.lease_token = any (p_tokens) and q.state = 'running'
  where h.id is null or h.cancel_requested_at is not null;
  update packhorse.workers w
  set last_seen_at = clock_timestamp(), state = p_state, running = coalesce(p_running, cardinality(p_ids)),
    done_total = p_done, failed_total = p_failed, problems = packhorse.bounded_problems(p_problems),
    recent_counts = (array[extract(epoch from clock_timestamp()), p_done, p_failed]::float8[]
      || w.recent_counts)[1:12]
  where w.id = p_id;
  if not found then
    return query select null::bigint, false, false, false;
  end if;
  update packhorse.message_types t set last_seen_at = clock_timestamp()
  from packhorse.workers w
  where w.id = p_id and t.name = any (w.message_types)
    and t.last_seen_at < clock_timestamp() - interval '1 minute';
end
$$;
comment on function packhorse.beat_worker(uuid, bigint[], bigint[], interval, text, bigint, bigint, text[],
  integer)
  is 'Heartbeat: extend every held lease; rows tell lost leases and cancel requests.';

create or replace function packhorse.ask_worker(p_id uuid, p_request text,
  p_operator text default current_user, p_reason text default null) returns text
language plpgsql as $$
-- Ask the daemon of this worker process for something, which all of its processes learn with their next
-- heartbeat: `quiet` (claim nothing more, and live), `drain` (finish, and end), `resume` (claim again).
-- Returns 'asked', 'unchanged', 'draining' (an end cannot be taken back) or 'gone'. It holds for the daemon,
-- whatever becomes of its processes, and ends with it. Raises PH001.
declare
  v_daemon uuid;
  v_now text;
begin
  if p_request is null or p_request not in ('quiet', 'drain', 'resume') then
    perform packhorse.refuse_argument('request', format('%L cannot be asked', left(p_request, 60)),
      'quiet, drain or resume.');
  end if;
  select w.daemon into v_daemon from packhorse.workers w where w.id = p_id;
  if not found then
    return 'gone';
  end if;
  select r.request into v_now from packhorse.daemon_requests r where r.daemon = v_daemon for update;
  if v_now = 'drain' and p_request <> 'drain' then
    return 'draining';
  elsif coalesce(v_now, 'resume') = p_request then
    return 'unchanged';
  elsif p_request = 'resume' then
    delete from packhorse.daemon_requests r where r.daemon = v_daemon;
  else
    insert into packhorse.daemon_requests (daemon, request, requested_by)
    values (v_daemon, p_request, p_operator)
    on conflict (daemon) do update
    set request = excluded.request, requested_by = excluded.requested_by, requested_at = clock_timestamp();
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values (p_request || '_worker', p_operator, p_reason,
    jsonb_build_object('worker', p_id, 'daemon', v_daemon));
  return 'asked';
end
$$;
comment on function packhorse.ask_worker(uuid, text, text, text) is
  'Ask the daemon of a worker process to be quiet, to drain, or to claim again.';

create or replace function packhorse.asked_of_worker(p_id uuid) returns text
language sql stable as $$
-- quiet, drain or null.
  select r.request from packhorse.workers w join packhorse.daemon_requests r on r.daemon = w.daemon
  where w.id = p_id;
$$;
comment on function packhorse.asked_of_worker(uuid) is
  'What operators have asked of the daemon of this worker process; null: nothing.';

create or replace function packhorse.peers_of_worker(p_id uuid, out peers integer, out before uuid)
language sql stable as $$
-- How many worker processes live that run the same types on the same queues and have a thread free, as far as
-- the last heartbeats say: this one, and those that look for the same messages. What idle processes do by the
-- clock, each does more seldom when they are many. before: the one before this one on the ring of their ids;
-- null: there is no other. Of a message that all hear of, the next one on the ring is to look.
  select count(*)::integer,
    coalesce((array_agg(o.id order by o.id desc) filter (where o.id < p_id))[1],
      (array_agg(o.id order by o.id desc) filter (where o.id > p_id))[1])
  from packhorse.workers w join packhorse.workers o on o.queues = w.queues
    and o.message_types = w.message_types
  where w.id = p_id and not o.isolation and o.state = 'running' and o.running < o.threads
    and o.last_seen_at > clock_timestamp() - o.lease_duration;
$$;
comment on function packhorse.peers_of_worker(uuid) is
  'How many processes live that could do the work of this one now, itself among them, and the one before it.';

create or replace function packhorse.deregister_worker(p_id uuid) returns boolean
language sql volatile as $$
  delete from packhorse.workers where id = p_id returning true;
$$;
comment on function packhorse.deregister_worker(uuid) is 'A worker process ended in good order.';

create or replace function packhorse.forget_dead_workers(p_after interval default '10 minutes',
  p_limit integer default 5000) returns integer
language plpgsql as $$
-- Remove up to p_limit (1..100000) workers that have been silent for p_after (0 to 1000 years), and as many
-- requests to daemons that have no worker left. A row that somebody has locked (a beat, say) is passed over.
-- Returns how many workers went: p_limit when there may be more. Raises PH001.
declare
  v_count integer;
begin
  perform packhorse.check_age('after', p_after);
  perform packhorse.check_batch(p_limit);
  delete from packhorse.workers where id in (
    select w.id from packhorse.workers w where w.last_seen_at < clock_timestamp() - p_after limit p_limit
    for update skip locked);
  get diagnostics v_count = row_count;
  delete from packhorse.daemon_requests where daemon in (
    select r.daemon from packhorse.daemon_requests r
    where r.requested_at < clock_timestamp() - p_after
      and not exists (select from packhorse.workers w where w.daemon = r.daemon)
    limit p_limit for update skip locked);
  return v_count;
end
$$;
comment on function packhorse.forget_dead_workers(interval, integer) is
  'Remove workers that have not been seen; one that lives registers again with its next beat.';

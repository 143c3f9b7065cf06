-- Workers, heartbeats and rescue (SPEC P2, P5, P6, W1b, W5).
--
-- A lease is data in the message's row; any worker may rescue it once it is over, without knowing who
-- held it. Rescue never reads the table `workers`; what depends on it is which types count as served.
-- Lock and duration: new objects only, milliseconds.

create function register_worker(
  p_id uuid, p_hostname text, p_pid integer, p_version text, p_queues text[], p_types text[], p_threads integer, p_lease interval
) returns void
language plpgsql set search_path from current as $$
-- A worker process starts: remember it and the types it handles. Declares its queues.
begin
  perform declare_queue(q) from unnest(p_queues) q;
  insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration)
  values (p_id, p_hostname, p_pid, p_version, p_queues, p_types, p_threads, p_lease)
  on conflict (id) do update set last_seen_at = clock_timestamp();
  insert into message_types (name, queue)
  select t.name, coalesce(p_queues[1], 'default') from unnest(p_types) as t (name)
  order by t.name
  on conflict (name) do update set last_seen_at = clock_timestamp();
end
$$;
comment on function register_worker(uuid, text, integer, text, text[], text[], integer, interval) is 'A worker process starts.';

create function beat_worker(
  p_id uuid, p_ids bigint[], p_tokens bigint[], p_lease interval, p_state text default 'running',
  p_done bigint default 0, p_failed bigint default 0
) returns table (id bigint, lease_held boolean, renewed boolean, cancel_requested boolean)
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- One heartbeat of a process: every held lease goes on until now + p_lease. Returns a row for each
-- message that needs attention: its lease is lost, it was not renewed because somebody has locked its row (the
-- others' leases must not end for that), or somebody asked to cancel it. A row without id: the process itself is
-- not known any more (it was silent for long); it must register again, or its types look abandoned. Raises PH001.
-- Locks: the held rows that nobody else has locked (HOT updates) and the worker's own row.
begin
  perform check_lease(p_lease);
  return query
  with held as (
    update message_queue m set lease_expires_at = clock_timestamp() + p_lease
    where m.id = any (array(
        select l.id from message_queue l
        where l.id = any (p_ids) and l.lease_token = any (p_tokens) and l.state = 'running'
        for no key update skip locked))
      and m.state = 'running'
    returning m.id, m.cancel_requested_at
  )
  select a.id, h.id is not null or q.id is not null, h.id is not null, h.cancel_requested_at is not null
  from unnest(p_ids) as a (id)
  left join held h on h.id = a.id
  left join message_queue q on q.id = a.id and q.lease_token = any (p_tokens) and q.state = 'running'
  where h.id is null or h.cancel_requested_at is not null;
  update workers w set last_seen_at = clock_timestamp(), state = p_state, running = cardinality(p_ids),
    done_total = p_done, failed_total = p_failed
  where w.id = p_id;
  if not found then
    return query select null::bigint, false, false, false;
  end if;
  update message_types t set last_seen_at = clock_timestamp()
  from workers w
  where w.id = p_id and t.name = any (w.message_types) and t.last_seen_at < clock_timestamp() - interval '1 minute';
end
$$;
comment on function beat_worker(uuid, bigint[], bigint[], interval, text, bigint, bigint)
  is 'Heartbeat: extend every held lease; rows tell lost leases and cancel requests.';

create function deregister_worker(p_id uuid) returns boolean
language sql volatile set search_path from current as $$
  delete from workers where id = p_id returning true;
$$;
comment on function deregister_worker(uuid) is 'A worker process ended in good order.';

create function return_crashed_messages(p_ids bigint[], p_suspects bigint[], p_holder uuid, p_detail text) returns integer
language plpgsql set search_path from current as $$
-- Messages whose process is gone, locked by the caller: none loses an attempt. Those in p_suspects had
-- started, or may have: their crash counter grows, they wait for a backoff and run alone, and at the queue's
-- crash_limit they are dead-lettered as `quarantined` (SPEC P5). Those whose cancellation was requested end
-- there. Returns how many were returned, buried or cancelled.
declare
  v_row record;
  v_count integer := 0;
  v_queues text[] := '{}';
begin
  for v_row in
    select m.id, m.lease_token, m.cancel_requested_at, m.crashes, q.crash_limit, q.backoff_initial, q.backoff_multiplier, q.backoff_max, m.attempt,
      m.queue::text as queue, m.id = any (p_suspects) as suspect
    from message_queue m join queues q on q.name = m.queue
    where m.id = any (p_ids) and m.state = 'running' order by m.id
  loop
    if v_row.cancel_requested_at is not null then
      perform finish_cancelled(array[v_row.id], array[v_row.lease_token], 'cancel requested');
    elsif v_row.suspect and v_row.crashes + 1 >= v_row.crash_limit then
      update message_queue m set crashes = m.crashes + 1, attempt = m.attempt - 1 where m.id = v_row.id;
      perform move_to_dead_letters(array[v_row.id], array[v_row.lease_token], 'quarantined', 'WorkerLost',
        format('the process died %s times while this message ran%s', v_row.crashes + 1, coalesce(': ' || p_detail, '')), null, null);
    else
      update message_queue m
      set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null, attempt = m.attempt - 1,
          crashes = m.crashes + (case when v_row.suspect then 1 else 0 end),
          run_at = case when v_row.suspect then clock_timestamp() + message_backoff(v_row.crashes + 1, v_row.backoff_initial,
            v_row.backoff_multiplier, v_row.backoff_max) else m.run_at end,
          history = append_history(m.history, m.attempt, case when v_row.suspect then 'crash' else 'release' end,
            case when v_row.suspect then 'WorkerLost' end, p_detail, p_holder)
      where m.id = v_row.id;
    end if;
    v_count := v_count + 1;
    v_queues := v_queues || v_row.queue;
  end loop;
  perform wake_queue(q.name) from (select distinct unnest(v_queues)) as q (name);
  return v_count;
end
$$;
comment on function return_crashed_messages(bigint[], bigint[], uuid, text) is 'Used by rescue and recover: return the messages of a dead process.';

create function rescue_expired_messages(p_limit integer default 500) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Return messages whose lease is over; at most p_limit (paged by expiry, nothing hides behind a skipped
-- row). What had started is not known here, so all are suspects. Returns how many. In the first seconds
-- after a restart of the server nothing is rescued: live workers get the chance to hand back or renew.
-- A message that cannot be returned (a dead letter has its id already, say, or the next one of its conversation is
-- locked by somebody) stays as it is, with a warning in the server's log; the others are returned, one by one.
declare
  v_holder uuid;
  v_ids bigint[];
  v_id bigint;
  v_count integer := 0;
begin
  perform check_batch(p_limit);
  for v_holder, v_ids in
    select e.lease_holder, array_agg(e.id) from (
      select m.id, m.lease_holder from message_queue m
      where m.state = 'running' and m.lease_token is not null and m.lease_expires_at < clock_timestamp()
        and clock_timestamp() > pg_postmaster_start_time() + interval '5 seconds'
      order by m.lease_expires_at limit p_limit for no key update skip locked) e
    group by e.lease_holder
  loop
    begin
      v_count := v_count + return_crashed_messages(v_ids, v_ids, v_holder, 'lease expired');
    exception when others then
      foreach v_id in array v_ids loop
        begin
          v_count := v_count + return_crashed_messages(array[v_id], array[v_id], v_holder, 'lease expired');
        exception when others then
          raise warning using errcode = sqlstate, message = format('message %s cannot be rescued: %s', v_id, sqlerrm);
          if sqlstate = '55P03' then
            -- waited once for all of them: whoever locks one row of the queue may have locked hundreds
            perform set_config('lock_timeout', '1ms', true);
          end if;
        end;
      end loop;
    end;
  end loop;
  return v_count;
end
$$;
comment on function rescue_expired_messages(integer) is 'Return messages whose lease is over; returns how many.';

create function recover_worker(p_id uuid, p_started bigint[], p_detail text default null) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- A parent saw its child die: return what the child held at once. p_started: the messages that ran.
-- Safe to repeat; a lease that moved on in the meantime is not touched. Returns how many.
-- The caller does not come again, so a row that somebody has locked for an instant must not be passed over:
-- claims lock running rows, to block messages behind them or because they saw them pending. Looks again
-- for up to a second; what is locked longer (the child's own transaction) waits for its lease to end.
declare
  v_ids bigint[];
  v_count integer := 0;
begin
  for v_look in 1..20 loop
    v_ids := array(select m.id from message_queue m where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id for no key update skip locked);
    v_count := v_count + return_crashed_messages(v_ids, p_started, p_id, p_detail);
    exit when not exists (select from message_queue m where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id);
    perform pg_sleep(0.05);
  end loop;
  delete from workers where id = p_id;
  return v_count;
end
$$;
comment on function recover_worker(uuid, bigint[], text) is 'A parent returns what its dead child held; returns how many.';

create function bury_unknown_types(p_after interval default '1 hour', p_limit integer default 100) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off set enable_sort = on set enable_bitmapscan = on
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Messages due for p_after whose type no worker has registered for p_after become dead letters; at most p_limit.
-- No index leads to them. One call looks at 20000 messages from a place found by chance on, and as many from the
-- start: all of them where there are no more, some others each time in a backlog of millions.
declare
  v_from bigint;
  v_ids bigint[];
begin
  perform check_age('after', p_after);
  perform check_batch(p_limit);
  -- in the order of the index: for a table without statistics the planner would read all of it, and sort
  perform set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true);
  -- not min() and max(): planned while the table was empty they read all of it
  select l.id + floor(random() * (h.id - l.id + 1))::bigint into v_from
  from (select m.id from message_queue m order by m.id limit 1) l, (select m.id from message_queue m order by m.id desc limit 1) h;
  v_ids := array(
    select l.id from (
      (select m.id, m.state, m.run_at, m.message_type from message_queue m where m.id >= v_from order by m.id limit 20000)
      union all
      (select m.id, m.state, m.run_at, m.message_type from message_queue m where m.id < v_from order by m.id limit 20000)) l
    where l.state = 'pending' and l.run_at < clock_timestamp() - p_after
      and not exists (select from message_types t where t.name = l.message_type and t.last_seen_at > clock_timestamp() - p_after)
    limit p_limit);
  perform set_config('enable_sort', 'on', true), set_config('enable_bitmapscan', 'on', true);
  return cardinality(move_to_dead_letters(array(
    select m.id from message_queue m where m.id = any (v_ids) and m.state = 'pending' for update skip locked),
    null, 'unknown_type', 'UnknownMessageType', format('no worker has registered this type for %s', p_after), null, null));
end
$$;
comment on function bury_unknown_types(interval, integer) is 'Dead-letter messages of types without any worker; returns how many.';

create function promote_stranded_conversations() returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Conversations in which messages are blocked and none is left that they could wait behind: somebody deleted it by
-- hand, and who goes that way promotes nobody. The first one becomes pending. Looks at 5000 conversations from a place
-- found by chance on, then at the first ones; returns how many went on.
declare
  v_none constant bigint := 9223372036854775807;
  v_start text;
  v_key text;
  v_keys text[] := '{}';
begin
  select m.conversation_key into v_start from (
    select b.conversation_key, b.state from message_queue b
    where b.id >= (
      select l.id + floor(random() * (h.id - l.id + 1))::bigint
      from (select r.id from message_queue r order by r.id limit 1) l, (select r.id from message_queue r order by r.id desc limit 1) h)
    order by b.id limit 1000) m
  where m.state = 'blocked' limit 1;
  v_key := coalesce(v_start, '');
  for v_look in 1..5000 loop
    select m.conversation_key into v_key from message_queue m
    where m.state = 'blocked' and m.conversation_key > v_key order by m.conversation_key limit 1;
    if not found then
      exit when v_start is null; -- the second time at the end
      v_start := null;
      v_key := '';
    elsif not exists (select from conversation_holders(v_key, v_none)) then
      v_keys := v_keys || v_key;
    end if;
  end loop;
  return cardinality(promote_conversations(v_keys));
end
$$;
comment on function promote_stranded_conversations() is 'Let conversations go on whose first message was deleted by hand; returns how many.';

create function forget_dead_workers(p_after interval default '10 minutes') returns integer
language plpgsql set search_path from current as $$
-- Raises PH001 unless p_after is between 0 and 1000 years.
declare
  v_count integer;
begin
  perform check_age('after', p_after);
  delete from workers where last_seen_at < clock_timestamp() - p_after;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function forget_dead_workers(interval) is 'Remove workers that have not been seen; one that lives registers again with its next beat.';

create function cleanup_stale_message_locks(p_limit integer default 500) returns integer
language sql volatile set search_path from current as $$
  select rescue_expired_messages(p_limit);
$$;
comment on function cleanup_stale_message_locks(integer) is 'Known name of rescue_expired_messages.';

-- Workers, heartbeats and rescue (SPEC P2, P5, P6, W1b, W5).
--
-- A lease is data in the message's row; any worker may rescue it once it is over, without knowing who held it. A crash
-- is the end of a process. Its parent sees it end (recover_worker); nobody else knows, so an expired lease counts as
-- one until its holder turns out to live (withdraw_crashes).
-- Lock and duration: new objects only, milliseconds.

create function bounded_problems(p_problems text[]) returns text[]
language sql immutable set search_path from current as $$
-- What a process says about itself, cut to 20 texts of 200 characters.
  select array(select left(p.problem, 200) from unnest(p_problems[:20]) with ordinality as p (problem, place)
    where p.problem is not null order by p.place);
$$;
comment on function bounded_problems(text[]) is 'Used by register_worker and beat_worker: problems cut to 20 texts of 200 characters.';

create function worker_problems(p_worker workers) returns text[]
language sql stable set search_path from current as $$
-- What a worker process cannot do: what it said with its last heartbeat, and that there was none for longer than it should
-- be, three quarters of its lease (a heartbeat comes three times per lease, at least).
  select case when clock_timestamp() - p_worker.last_seen_at > p_worker.lease_duration * 0.75
      then array[format('silent for %s s', floor(extract(epoch from clock_timestamp() - p_worker.last_seen_at)))] else '{}'::text[] end
    || p_worker.problems;
$$;
comment on function worker_problems(workers) is 'What a worker process said that it cannot do, and how long it has been silent.';

create function register_worker(
  p_id uuid, p_hostname text, p_pid integer, p_version text, p_queues text[], p_types text[], p_threads integer, p_lease interval,
  p_isolation boolean default false, p_policies jsonb default '{}', p_problems text[] default '{}'
) returns void
language plpgsql set search_path from current as $$
-- A worker process starts: remember it and the types it handles. Declares its queues. p_isolation: it runs only messages
-- that were there when two processes died. p_policies: by type an object with `queue`, and with what its code says of
-- retries (max_attempts, max_retries, min_backoff and max_backoff in milliseconds, on_retry_exhausted): see failure_policy.
-- p_problems: as in beat_worker().
begin
  perform declare_queue(q) from unnest(p_queues) q;
  insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration, isolation, problems)
  values (p_id, p_hostname, p_pid, p_version, p_queues, p_types, p_threads, p_lease, p_isolation, bounded_problems(p_problems))
  on conflict (id) do update set last_seen_at = clock_timestamp();
  insert into message_types (name, queue, policy)
  select t.name, coalesce(p_policies -> t.name ->> 'queue', p_queues[1], 'default'), coalesce(p_policies -> t.name, '{}') - 'queue'
  from unnest(p_types) as t (name)
  order by t.name
  on conflict (name) do update set last_seen_at = clock_timestamp(), queue = excluded.queue, policy = excluded.policy;
end
$$;
comment on function register_worker(uuid, text, integer, text, text[], text[], integer, interval, boolean, jsonb, text[]) is 'A worker process starts.';

create function beat_worker(
  p_id uuid, p_ids bigint[], p_tokens bigint[], p_lease interval, p_state text default 'running',
  p_done bigint default 0, p_failed bigint default 0, p_problems text[] default '{}'
) returns table (id bigint, lease_held boolean, renewed boolean, cancel_requested boolean)
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- One heartbeat of a process: every held lease goes on until now + p_lease. Returns a row for each
-- message that needs attention: its lease is lost, it was not renewed because somebody has locked its row (the
-- others' leases must not end for that), or somebody asked to cancel it. A row without id: the process itself is
-- not known any more (it was silent for long); it must register again, or its types look abandoned. p_problems: what the
-- process cannot do, for people; 20 texts of 200 characters at most are kept. Raises PH001.
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
    done_total = p_done, failed_total = p_failed, problems = bounded_problems(p_problems)
  where w.id = p_id;
  if not found then
    return query select null::bigint, false, false, false;
  end if;
  update message_types t set last_seen_at = clock_timestamp()
  from workers w
  where w.id = p_id and t.name = any (w.message_types) and t.last_seen_at < clock_timestamp() - interval '1 minute';
end
$$;
comment on function beat_worker(uuid, bigint[], bigint[], interval, text, bigint, bigint, text[])
  is 'Heartbeat: extend every held lease; rows tell lost leases and cancel requests.';

create function deregister_worker(p_id uuid) returns boolean
language sql volatile set search_path from current as $$
  delete from workers where id = p_id returning true;
$$;
comment on function deregister_worker(uuid) is 'A worker process ended in good order.';

create function withdraw_crashes(p_ids bigint[], p_holder uuid, p_detail text) returns integer
language sql volatile set search_path from current as $$
-- The leases that p_holder had on these messages were over and each counted as a crash, but the process lives, or has
-- ended in good order: none was one. The start stays in the history. Not for a message that loses its lease ten times in
-- a row: then the message itself may be what stalls its processes. Returns how many.
  with withdrawn as (
    update message_queue m
    set crashes = m.crashes - 1,
        history = append_history(m.history, m.attempt, 'crash_withdrawn', null, p_detail, p_holder)
    where m.id = any (p_ids) and m.crashes > 0
      and m.history @> jsonb_build_array(jsonb_build_object('event', 'lease_expired', 'holder', p_holder))
      and not m.history @> jsonb_build_array(jsonb_build_object('event', 'crash_withdrawn', 'holder', p_holder))
      and jsonb_array_length(jsonb_path_query_array(m.history, '$[*] ? (@.event == "lease_expired")')) < 10
    returning 1
  )
  select count(*)::integer from withdrawn;
$$;
comment on function withdraw_crashes(bigint[], uuid, text) is 'Expired leases of a process that lives were no crashes; returns how many.';

create function send_exhausted(p_ids bigint[]) returns integer
language plpgsql set search_path from current as $$
-- These dead letters have used up what they had: enqueue a message for the actor that on_retry_exhausted names, with what
-- dramatiq gives it: the message, and its retries. For deaths that no code of the actor sees (a crash, a hard limit).
-- Returns how many were sent; an actor that no worker has registered is left out with a warning.
declare
  v_row record;
  v_queue text;
  v_count integer := 0;
begin
  for v_row in
    select d.*, p.on_exhausted, coalesce(d.max_attempts, p.max_attempts, q.max_attempts) as allowed
    from dead_letters d cross join lateral failure_policy(d.message_type, d.options) p left join queues q on q.name = d.queue
    where d.id = any (p_ids) and p.on_exhausted is not null
  loop
    select t.queue into v_queue from message_types t where t.name = v_row.on_exhausted;
    if not found then
      raise warning 'on_retry_exhausted of message %: no worker has registered the actor %', v_row.id, left(v_row.on_exhausted, 100);
      continue;
    end if;
    perform enqueue_message(v_queue, v_row.on_exhausted, '{}',
      jsonb_build_object('args', jsonb_build_array(
        jsonb_build_object('queue_name', v_row.queue, 'actor_name', v_row.message_type,
          'args', coalesce(v_row.options -> 'args', '[]'), 'kwargs', v_row.payload, 'options', v_row.options - 'args' - 'message_id',
          'message_id', coalesce(v_row.options ->> 'message_id', v_row.id::text),
          'message_timestamp', floor(extract(epoch from v_row.created_at) * 1000)::bigint),
        jsonb_build_object('retries', greatest(v_row.attempt - 1, 0), 'max_retries', coalesce(v_row.allowed, 1) - 1))),
      p_correlation_id => v_row.correlation_id);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function send_exhausted(bigint[]) is 'Tell the actors named by on_retry_exhausted of these dead letters; returns how many.';

create function fail_overdue_message(p_id bigint, p_token bigint, p_error_message text) returns text
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A handler ignored its time limit until its process was ended: the attempt has failed, by the policy that decides about
-- every other failure (failure_policy). Returns what fail_message returns.
declare
  v_answer text;
begin
  if exists (select from message_queue m where m.id = p_id and m.lease_token = p_token and m.completion_refused_at is not null) then
    return 'lost'; -- it has succeeded after all, and waits for that to be written
  end if;
  v_answer := fail_message(p_id, p_token, 'HardTimeLimitExceeded', p_error_message);
  if v_answer = 'dead' then
    perform send_exhausted(array[p_id]);
  end if;
  return v_answer;
end
$$;
comment on function fail_overdue_message(bigint, bigint, text) is 'The attempt of a handler that ignored its hard time limit has failed.';

create function return_lost_message(p_message message_queue, p_event text, p_detail text) returns void
language plpgsql set search_path from current as $$
-- A running message whose process is gone, locked by the caller: back to pending, its attempt given back (SPEC P5).
-- p_event, how it stands in its history: 'crash', 'lease_expired' count as a crash, at the queue's crash_limit it is
-- dead-lettered as `quarantined`; 'release' does not; null: it had not started, there is nothing to tell.
-- After its first crash it comes back within a second, at a time found by chance: what ran beside a message that kills
-- processes should not all run beside it again. After that it waits for its backoff. One whose cancellation was requested ends.
declare
  v_queue queues;
  v_policy record;
  v_crashes constant integer := least(p_message.crashes + 1, 32767);
  v_counts constant boolean := coalesce(p_event in ('crash', 'lease_expired'), false);
begin
  select * into v_queue from queues q where q.name = p_message.queue;
  if p_message.cancel_requested_at is not null then
    perform finish_cancelled(array[p_message.id], array[p_message.lease_token], 'cancel requested');
  elsif v_counts and v_crashes >= coalesce(v_queue.crash_limit, 3) then -- a row may name a queue that nobody has declared
    update message_queue m set crashes = v_crashes, attempt = m.attempt - 1 where m.id = p_message.id;
    perform send_exhausted(move_to_dead_letters(array[p_message.id], array[p_message.lease_token], 'quarantined', 'WorkerLost',
      format('the process died %s times while this message ran%s', v_crashes, coalesce(': ' || p_detail, '')), null, null));
  else
    select * into v_policy from failure_policy(p_message.message_type, p_message.options);
    update message_queue m
    set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null, attempt = m.attempt - 1,
        crashes = case when v_counts then v_crashes else m.crashes end,
        run_at = case when not v_counts then m.run_at
          when v_crashes = 1 then clock_timestamp() + random() * interval '1 second'
          else clock_timestamp() + message_backoff(v_crashes - 1, coalesce(v_policy.backoff_initial, v_queue.backoff_initial, '1 second'),
            coalesce(v_queue.backoff_multiplier, 2),
            greatest(coalesce(v_policy.backoff_max, v_queue.backoff_max, '30 seconds'), v_policy.backoff_initial)) end,
        history = case when p_event is null then m.history
          else append_history(m.history, m.attempt, p_event, case when v_counts then 'WorkerLost' end, p_detail, m.lease_holder) end
    where m.id = p_message.id;
  end if;
end
$$;
comment on function return_lost_message(message_queue, text, text) is 'Used by rescue and recover: what becomes of a message whose process is gone.';

create function return_lost_messages(p_ids bigint[], p_started bigint[], p_event text, p_detail text) returns integer
language plpgsql set search_path from current as $$
-- return_lost_message for running messages that the caller has locked; p_event is that of those in p_started. One that
-- cannot be returned (a dead letter has its id already, say, or the next one of its conversation is locked by somebody)
-- stays as it is, with a warning in the server's log; the others are returned. Returns how many.
declare
  v_message message_queue;
  v_count integer := 0;
begin
  begin
    for v_message in select m.* from message_queue m where m.id = any (p_ids) and m.state = 'running' order by m.id loop
      perform return_lost_message(v_message, case when v_message.id = any (p_started) then p_event end, p_detail);
      v_count := v_count + 1;
    end loop;
  exception when others then
    v_count := 0;
    for v_message in select m.* from message_queue m where m.id = any (p_ids) and m.state = 'running' order by m.id loop
      begin
        perform return_lost_message(v_message, case when v_message.id = any (p_started) then p_event end, p_detail);
        v_count := v_count + 1;
      exception when others then
        raise warning using errcode = sqlstate, message = format('message %s cannot be rescued: %s', v_message.id, sqlerrm);
        if sqlstate = '55P03' then
          -- waited once for all of them: whoever locks one row of the queue may have locked hundreds
          perform set_config('lock_timeout', '1ms', true);
        end if;
      end;
    end loop;
  end;
  perform wake_queue(q.name) from (select distinct m.queue::text from message_queue m where m.id = any (p_ids)) as q (name);
  return v_count;
end
$$;
comment on function return_lost_messages(bigint[], bigint[], text, text) is 'Used by rescue and recover: return the messages of a process that is gone.';

create function rescue_expired_messages(p_limit integer default 500) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Return messages whose lease is over; at most p_limit (paged by expiry, nothing hides behind a skipped row). What had
-- started is not known here, so each counts a crash, until its holder turns out to live. So the crash that would be the
-- last is not counted while its holder may still come back: the message stays as it is until that process has been
-- silent for three leases, or a minute. Returns how many. In the first seconds after a restart of the server nothing is
-- rescued: live workers get the chance to hand back or renew.
declare
  v_ids bigint[];
begin
  perform check_batch(p_limit);
  v_ids := array(
    select m.id from message_queue m
    where m.state = 'running' and m.lease_token is not null and coalesce(m.lease_expires_at, '-infinity') < clock_timestamp()
      and m.completion_refused_at is null
      and clock_timestamp() > pg_postmaster_start_time() + interval '5 seconds'
      and not exists (
        select from workers w join queues q on q.name = m.queue
        where w.id = m.lease_holder and m.crashes + 1 >= q.crash_limit
          and w.last_seen_at > clock_timestamp() - greatest(3 * w.lease_duration, interval '1 minute'))
    order by m.lease_expires_at limit p_limit for no key update of m skip locked);
  return case when cardinality(v_ids) = 0 then 0 else return_lost_messages(v_ids, v_ids, 'lease_expired', 'its lease was over') end;
end
$$;
comment on function rescue_expired_messages(integer) is 'Return messages whose lease is over; returns how many.';

create function recover_worker(
  p_id uuid, p_started bigint[], p_detail text default null, p_crashed boolean default true, p_refused bigint[] default '{}',
  p_keep bigint[] default '{}'
) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A parent saw its child end: return what the child held at once. p_started: the messages whose handlers had started and
-- whose outcome is not written. p_crashed: nobody had ordered that end, each of them counts a crash; else none does, and
-- those counted when their leases were over are withdrawn. p_refused: messages whose handlers were done and whose
-- completion the database refused: these are marked, see mark_completion_refused. p_keep: left as they are, for a later call.
-- Safe to repeat; a lease that moved on in the meantime is not touched. Returns how many.
-- The caller does not come again, so a row that somebody has locked for an instant must not be passed over:
-- claims lock running rows, to block messages behind them or because they saw them pending. Looks again
-- for up to a second; what is locked longer (the child's own transaction) waits for its lease to end.
declare
  v_ids bigint[];
  v_count integer := 0;
begin
  perform mark_completion_refused(array_agg(m.id), array_agg(m.lease_token), p_detail) from message_queue m
  where m.id = any (p_refused) and m.lease_holder = p_id and m.state = 'running' and m.completion_refused_at is null
  having count(*) > 0;
  for v_look in 1..20 loop
    v_ids := array(
      select m.id from message_queue m
      where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id and m.completion_refused_at is null
        and m.id <> all (p_keep)
      for no key update skip locked);
    v_count := v_count + return_lost_messages(v_ids, p_started, case when p_crashed then 'crash' else 'release' end, p_detail);
    exit when not exists (
      select from message_queue m
      where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id and m.completion_refused_at is null
        and m.id <> all (p_keep));
    perform pg_sleep(0.05);
  end loop;
  if not p_crashed then
    perform withdraw_crashes(p_started, p_id, p_detail);
  end if;
  delete from workers where id = p_id;
  return v_count;
end
$$;
comment on function recover_worker(uuid, bigint[], text, boolean, bigint[], bigint[]) is 'A parent returns what its ended child held; returns how many.';

create function mark_completion_refused(p_ids bigint[], p_tokens bigint[], p_detail text) returns integer
language sql volatile set search_path from current set lock_timeout = '500ms' as $$
-- The handlers of these messages are done, the database refuses to write that, and their process has to stop. They must
-- not run again, so their leases do not end: each stays `running`, and holds its conversation, until its completion works
-- (complete_refused_messages) or an operator decides: release_message runs it again, bury_message and cancel_message end
-- it. Returns how many were still held by these leases.
  with marked as (
    update message_queue m
    set completion_refused_at = clock_timestamp(), lease_expires_at = 'infinity',
        error = jsonb_build_object('class', 'CompletionRefused', 'message', bounded_text(p_detail, 2000), 'at', clock_timestamp()),
        history = append_history(m.history, m.attempt, 'completion_refused', 'CompletionRefused', p_detail, m.lease_holder)
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning 1
  )
  select count(*)::integer from marked;
$$;
comment on function mark_completion_refused(bigint[], bigint[], text)
  is 'Messages whose handlers are done and whose completion is refused: not to be run again; returns how many.';

create function complete_refused_messages(p_limit integer default 100) returns integer
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Complete messages that were marked by mark_completion_refused, one by one; at most p_limit. Stops when three are still
-- refused, and looks from a place found by chance on: one that is refused for ever hides no other. Returns how many were
-- completed.
declare
  v_refused integer := 0;
  v_row record;
  v_from bigint;
  v_count integer := 0;
begin
  perform check_batch(p_limit);
  if not exists (select from message_queue m where m.completion_refused_at is not null) then
    return 0;
  end if;
  select m.id into v_from from message_queue m where m.completion_refused_at is not null order by random() limit 1;
  for v_row in
    select m.id, m.lease_token from message_queue m
    where m.completion_refused_at is not null and m.state = 'running'
    order by m.id < v_from, m.id limit p_limit for update skip locked
  loop
    begin
      perform settle_done(array[v_row.id], array[v_row.lease_token]);
      v_count := v_count + 1;
    exception when others then
      v_refused := v_refused + 1;
      exit when v_refused = 3;
    end;
  end loop;
  return v_count;
end
$$;
comment on function complete_refused_messages(integer) is 'Complete messages whose completion was refused before; returns how many.';

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

create function promote_after_delete() returns trigger
language plpgsql security definer set search_path from current set lock_timeout = '500ms' as $$
-- Somebody deleted a message by hand: its conversation goes on. The functions of this schema, which promote by
-- themselves, say so in packhorse.promotes and pay for this trigger with one comparison. Under a snapshot that lasts for
-- the whole transaction it would not see what waits: promote_stranded_conversations finds that later.
begin
  if current_setting('transaction_isolation') = 'read committed' then
    perform promote_conversations(array[old.conversation_key::text]);
  end if;
  return null;
exception when lock_not_available then
  return null; -- somebody has locked the next message: promote_stranded_conversations finds it later
end
$$;
comment on function promote_after_delete() is 'Used by a trigger: the conversation of a message that was deleted by hand goes on.';

create trigger message_queue_deleted after delete on message_queue for each row
  -- one that is blocked holds up no other: a long conversation that is deleted whole costs one look
  when (old.conversation_key is not null and old.state <> 'blocked' and current_setting('packhorse.promotes', true) is distinct from 'on')
  execute function promote_after_delete();

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

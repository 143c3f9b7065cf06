-- Rescue: messages whose holder is gone (SPEC P2, P5, P6, W5).
--
-- A lease is data in the message's row; any worker may rescue it once it is over, without knowing who held
-- it. A crash is the end of a process. Its parent sees it end (recover_worker); nobody else knows, so an
-- expired lease counts as one until its holder turns out to live (withdraw_crashes).

create or replace function packhorse.withdraw_crashes(p_ids bigint[], p_holder uuid, p_detail text)
returns integer
language sql volatile as $$
-- The leases that p_holder had on these messages were over and each counted as a crash, but the process
-- lives, or has ended in good order: none was one. The start stays in the history. Not for a message that
-- loses its lease ten times in a row: then the message itself may be what stalls its processes. Returns how
-- many.
  with withdrawn as (
    update packhorse.message_queue m
    set crashes = m.crashes - 1,
        history = packhorse.append_history(m.history, m.attempt, 'crash_withdrawn', null, p_detail, p_holder)
    where m.id = any (p_ids) and m.crashes > 0
      and m.history @> jsonb_build_array(jsonb_build_object('event', 'lease_expired', 'holder', p_holder))
      and
        not m.history @> jsonb_build_array(jsonb_build_object('event', 'crash_withdrawn', 'holder', p_holder))
      and jsonb_array_length(jsonb_path_query_array(m.history, '$[*] ? (@.event == "lease_expired")')) < 10
    returning 1
  )
  select count(*)::integer from withdrawn;
$$;
comment on function packhorse.withdraw_crashes(bigint[], uuid, text) is
  'Expired leases of a process that lives were no crashes; returns how many.';

create or replace function packhorse.return_lost_message(p_message packhorse.message_queue, p_event text,
  p_detail text, p_counted boolean) returns void
language plpgsql as $$
-- A running message whose process is gone, locked by the caller: back to pending, its attempt given back
-- (SPEC P5); with p_counted the attempt stays counted, but never so that none is left. p_event, how it
-- stands in its history: 'crash', 'lease_expired' count as a crash, at the queue's crash_limit it is dead-
-- lettered as `quarantined`; 'release' does not; null: it had not started, there is nothing to tell. After
-- its first crash it comes back within a second, at a time found by chance: what ran beside a message that
-- kills processes should not all run beside it again. After that it waits for its backoff. One whose
-- cancellation was requested ends.
declare
  v_queue packhorse.queues;
  v_policy record;
  v_crashes constant integer := least(p_message.crashes + 1, 32767);
  v_counts constant boolean := coalesce(p_event in ('crash', 'lease_expired'), false);
  v_attempt constant integer := case when p_counted
    then least(p_message.attempt, p_message.max_attempts - 1) else p_message.attempt - 1 end;
begin
  select * into v_queue from packhorse.queues q where q.name = p_message.queue;
  if p_message.cancel_requested_at is not null then
    perform packhorse.finish_cancelled(array[p_message.id], array[p_message.lease_token], 'cancel requested');
  -- a row may name a queue that nobody has declared
  elsif v_counts and v_crashes >= coalesce(v_queue.crash_limit, 3) then
    update packhorse.message_queue m set crashes = v_crashes, attempt = v_attempt
    where m.id = p_message.id;
    perform packhorse.send_exhausted(packhorse.move_to_dead_letters(array[p_message.id],
      array[p_message.lease_token], 'quarantined', 'WorkerLost',
      format('the process died %s times while this message ran%s', v_crashes, coalesce(': ' || p_detail, '')),
      null, null));
  else
    select * into v_policy from packhorse.failure_policy(p_message.message_type, p_message.options);
    update packhorse.message_queue m
    set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null,
      attempt = v_attempt,
        crashes = case when v_counts then v_crashes else m.crashes end,
        run_at = case when not v_counts then m.run_at
          when v_crashes = 1 then clock_timestamp() + random() * interval '1 second'
          else clock_timestamp()
            + packhorse.message_backoff(v_crashes - 1,
              coalesce(v_policy.backoff_initial, v_queue.backoff_initial, '1 second'),
            coalesce(v_queue.backoff_multiplier, 2),
            coalesce(v_policy.backoff_max, greatest(v_queue.backoff_max, v_policy.backoff_initial),
              '30 seconds')) end,
        history = case when p_event is null then m.history
          else packhorse.append_history(m.history, m.attempt, p_event,
            case when v_counts then 'WorkerLost' end, p_detail, m.lease_holder) end
    where m.id = p_message.id;
  end if;
end
$$;
comment on function packhorse.return_lost_message(packhorse.message_queue, text, text, boolean) is
  'Used by rescue and recover: what becomes of a message whose process is gone.';

create or replace function packhorse.return_lost_messages(p_ids bigint[], p_started bigint[], p_event text,
  p_detail text, p_counted bigint[] default '{}') returns integer
language plpgsql as $$
-- return_lost_message for running messages that the caller has locked; p_event is that of those in p_started;
-- of those in p_counted the attempt stays counted.
-- One that cannot be returned (a dead letter has its id already, say, or the next one of its conversation is
-- locked by somebody) stays as it is, with a warning in the server's log; the others are returned. Returns
-- how many.
declare
  v_message packhorse.message_queue;
  v_count integer := 0;
begin
  begin
    for v_message in select m.* from packhorse.message_queue m
    where m.id = any (p_ids) and m.state = 'running' order by m.id loop
      perform packhorse.return_lost_message(v_message,
        case when v_message.id = any (p_started) then p_event end, p_detail,
          v_message.id = any (p_counted));
      v_count := v_count + 1;
    end loop;
  exception when others then
    v_count := 0;
    for v_message in select m.* from packhorse.message_queue m
    where m.id = any (p_ids) and m.state = 'running' order by m.id loop
      begin
        perform packhorse.return_lost_message(v_message,
          case when v_message.id = any (p_started) then p_event end, p_detail,
          v_message.id = any (p_counted));
        v_count := v_count + 1;
      exception when others then
        raise warning using errcode = sqlstate,
          message = format('message %s cannot be rescued: %s', v_message.id, sqlerrm);
        if sqlstate = '55P03' then
          -- waited once for all of them: whoever locks one row of the queue may have locked hundreds
          perform set_config('lock_timeout', '1ms', true);
        end if;
      end;
    end loop;
  end;
  perform packhorse.wake_queue(q.name)
  from (select distinct m.queue::text from packhorse.message_queue m where m.id = any (p_ids)) as q (name);
  return v_count;
end
$$;
comment on function packhorse.return_lost_messages(bigint[], bigint[], text, text, bigint[]) is
  'Used by rescue and recover: return the messages of a process that is gone.';

create or replace function packhorse.rescue_expired_messages(p_limit integer default 500,
  p_counted boolean default false) returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Return messages whose lease is over; at most p_limit (paged by expiry, nothing hides behind a skipped row).
-- What had started is not known here, so each counts a crash, until its holder turns out to live. So the
-- crash that would be the last is not counted while its holder may still come back: the message stays as it
-- is until that process has been silent for three leases, or a minute. What a relay held ran nowhere, and
-- counts none. p_counted: the attempt of a holder that is no worker stays counted. Returns how many. In the
-- first seconds after a restart of the server nothing is rescued: live workers get the chance to hand back
-- or renew.
declare
  v_ids bigint[];
begin
  perform packhorse.check_batch(p_limit);
  v_ids := array(
    select m.id from packhorse.message_queue m
    where m.state = 'running' and m.lease_token is not null
      and coalesce(m.lease_expires_at, '-infinity') < clock_timestamp()
      and m.completion_refused_at is null
      and clock_timestamp() > pg_postmaster_start_time() + interval '5 seconds'
      and not exists (
        select from packhorse.workers w join packhorse.queues q on q.name = m.queue
        where w.id = m.lease_holder and m.crashes + 1 >= q.crash_limit and w.forward is null
          and w.last_seen_at > clock_timestamp()
            - greatest(3::float8 * w.lease_duration, interval '1 minute'))
    order by m.lease_expires_at limit p_limit for no key update of m skip locked);
  return case when cardinality(v_ids) = 0 then 0
    else packhorse.return_lost_messages(v_ids, array(
      select h.id from packhorse.message_queue h
      where h.id = any (v_ids) and not exists (
        select from packhorse.workers w where w.id = h.lease_holder and w.forward is not null)),
      'lease_expired', 'its lease was over', array(
      select h.id from packhorse.message_queue h
      where p_counted and h.id = any (v_ids) and not exists (
        select from packhorse.workers w where w.id = h.lease_holder))) end;
end
$$;
comment on function packhorse.rescue_expired_messages(integer, boolean) is
  'Return messages whose lease is over; returns how many.';

create or replace function packhorse.recover_worker(
  p_id uuid, p_started bigint[], p_detail text default null, p_crashed boolean default true,
  p_refused bigint[] default '{}', p_keep bigint[] default '{}'
) returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- A parent saw its child end: return what the child held at once. p_started: the messages whose handlers had
-- started and whose outcome is not written. p_crashed: nobody had ordered that end, each of them counts a
-- crash; else none does, and those counted when their leases were over are withdrawn. p_refused: messages
-- whose handlers were done and whose completion the database refused: these are marked, see
-- mark_completion_refused. p_keep: left as they are, for a later call. Safe to repeat; a lease that moved on
-- in the meantime is not touched. Returns how many. The caller does not come again, so a row that somebody
-- has locked for an instant must not be passed over: claims lock running rows, to block messages behind them
-- or because they saw them pending. Looks again for up to a second; what is locked longer (the child's own
-- transaction) waits for its lease to end.
declare
  v_ids bigint[];
  v_count integer := 0;
begin
  perform packhorse.mark_completion_refused(array_agg(m.id), array_agg(m.lease_token), p_detail)
  from packhorse.message_queue m
  where m.id = any (p_refused) and m.lease_holder = p_id and m.state = 'running'
    and m.completion_refused_at is null
  having count(*) > 0;
  for v_look in 1..20 loop
    v_ids := array(
      select m.id from packhorse.message_queue m
      where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id
        and m.completion_refused_at is null
        and m.id <> all (p_keep)
      for no key update skip locked);
    v_count := v_count + packhorse.return_lost_messages(v_ids, p_started,
      case when p_crashed then 'crash' else 'release' end, p_detail);
    exit when not exists (
      select from packhorse.message_queue m
      where m.state = 'running' and m.lease_token is not null and m.lease_holder = p_id
        and m.completion_refused_at is null
        and m.id <> all (p_keep));
    perform pg_sleep(0.05);
  end loop;
  if not p_crashed then
    perform packhorse.withdraw_crashes(p_started, p_id, p_detail);
  end if;
  delete from packhorse.workers where id = p_id;
  return v_count;
end
$$;
comment on function packhorse.recover_worker(uuid, bigint[], text, boolean, bigint[], bigint[]) is
  'A parent returns what its ended child held; returns how many.';

create or replace function packhorse.bury_unknown_types(p_after interval default '1 hour',
  p_limit integer default 100) returns integer
language plpgsql set enable_seqscan = off set jit = off set enable_sort = on set enable_bitmapscan = on
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Messages due for p_after whose type no worker has registered for p_after become dead letters; at most
-- p_limit. No index leads to them. One call looks at 20000 messages from a place found by chance on, and as
-- many from the start: all of them where there are no more, some others each time in a backlog of millions.
declare
  v_from bigint;
  v_ids bigint[];
begin
  perform packhorse.check_age('after', p_after);
  perform packhorse.check_batch(p_limit);
  -- in the order of the index: for a table without statistics the planner would read all of it, and sort
  perform set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true);
  -- not min() and max(): planned while the table was empty they read all of it
  select l.id + floor(random() * (h.id - l.id + 1)::float8)::bigint into v_from
  from (select m.id from packhorse.message_queue m order by m.id limit 1) l,
    (select m.id from packhorse.message_queue m order by m.id desc limit 1) h;
  v_ids := array(
    select l.id from (
      (select m.id, m.state, m.run_at, m.message_type, m.queue from packhorse.message_queue m
        where m.id >= v_from order by m.id limit 20000)
      union all
      (select m.id, m.state, m.run_at, m.message_type, m.queue from packhorse.message_queue m
        where m.id < v_from order by m.id limit 20000)) l
    where l.state = 'pending' and l.run_at < clock_timestamp() - p_after
      and not exists (select from packhorse.message_types t
        where t.name = l.message_type and t.last_seen_at > clock_timestamp() - p_after)
      and not exists (select from packhorse.message_types t
        where right(t.name, 1) = '*' and packhorse.stands_for(t.name, l.message_type)
          and t.last_seen_at > clock_timestamp() - p_after)
      -- who runs it elsewhere is registered elsewhere
      and not exists (select from packhorse.queues q
        where q.name = l.queue and not packhorse.queue_goes_to(q, null))
    limit p_limit);
  perform set_config('enable_sort', 'on', true), set_config('enable_bitmapscan', 'on', true);
  return cardinality(packhorse.move_to_dead_letters(array(
    select m.id from packhorse.message_queue m where m.id = any (v_ids) and m.state = 'pending'
    for update skip locked), null, 'unknown_type', 'UnknownMessageType',
    format('no worker has registered this type for %s', p_after), null, null));
end
$$;
comment on function packhorse.bury_unknown_types(interval, integer) is
  'Dead-letter messages of types without any worker; returns how many.';

create or replace function packhorse.cleanup_stale_message_locks(p_limit integer default 500) returns integer
language sql volatile as $$
-- rescue_expired_messages for clients that only speak SQL (PLATFORM 6): who takes a message and is silent
-- until its lock is over has used up a try. What a worker held gets its attempt back.
  select packhorse.rescue_expired_messages(p_limit, p_counted => true);
$$;
comment on function packhorse.cleanup_stale_message_locks(integer) is
  'Known name of rescue_expired_messages; the attempt of a holder that is no worker stays counted.';

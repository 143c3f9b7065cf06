-- The names that existing callers know, over the same rules (SPEC Q2, Q6), for workers that speak only SQL.
-- They never beat, so their leases are five minutes long by default (SPEC W5).
--
-- Lock and duration: new objects only, milliseconds.

create function get_next_queue_message(p_queue text, p_holder uuid default gen_random_uuid(), p_lease interval default '5 minutes')
returns setof claimed_message
language sql volatile set search_path from current as $$
-- The next due message of a queue, leased; no row when there is none.
  select c.* from claim_messages(p_holder, array[p_queue], 1, p_lease) c;
$$;
comment on function get_next_queue_message(text, uuid, interval) is 'The next due message of a queue, leased for five minutes.';

create function acquire_message_lock(p_id bigint, p_holder uuid, p_lease interval default '5 minutes') returns bigint
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- Claim one given message if it may start now, limits of its queue included; returns its lease token, null
-- when it may not. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_queue text;
  v_key text;
  v_token bigint;
begin
  if p_holder is null then
    perform refuse_argument('holder', 'must not be null', 'A uuid that is fresh for every process start.');
  end if;
  perform check_lease(p_lease);
  select m.queue, m.concurrency_key into v_queue, v_key from message_queue m
  where m.id = p_id and m.state = 'pending' and m.run_at <= v_now and (m.expires_at is null or m.expires_at > v_now)
    and (m.conversation_key is null or not exists (select from conversation_holders(m.conversation_key, m.id)))
  for update of m skip locked;
  if not found or queue_allowance((select q from queues q where q.name = v_queue), 1, v_now) < 1 then
    return null;
  elsif v_key is not null and exists (select from queues q where q.name = v_queue and q.max_concurrency_per_key <= (
      select count(*) from message_queue r where r.queue = v_queue and r.concurrency_key = v_key and r.state = 'running')) then
    return null;
  end if;
  update queues q set rate_tokens = rate_tokens_at(q, v_now) - 1, rate_refilled_at = v_now
  where q.name = v_queue and q.rate_limit is not null;
  update message_queue m
  set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
      lease_token = nextval('message_lease_token_seq'), lease_expires_at = v_now + p_lease, claimed_at = v_now
  where m.id = p_id returning m.lease_token into v_token;
  return v_token;
exception when unique_violation then
  return null; -- another message of the conversation started in the same instant
end
$$;
comment on function acquire_message_lock(bigint, uuid, interval) is 'Claim one given message; its lease token, or null.';

create function release_message_lock(p_id bigint, p_token bigint) returns boolean
language sql volatile set search_path from current as $$
  select release_message(p_id, p_token);
$$;
comment on function release_message_lock(bigint, bigint) is 'Known name of release_message.';

create function acquire_conversation_lock(p_conversation_key text, p_holder text, p_lease interval default '5 minutes') returns boolean
language plpgsql set search_path from current as $$
-- Lock a conversation for work outside the queue; true when it is (still or newly) ours, null when another
-- holds it. Ends by time. Raises PH001.
begin
  if p_conversation_key is null or length(p_conversation_key) not between 1 and 500 then
    perform refuse_argument('conversation_key', 'must have 1 to 500 characters');
  elsif p_holder is null or length(p_holder) not between 1 and 500 then
    perform refuse_argument('holder', 'must have 1 to 500 characters');
  end if;
  perform check_lease(p_lease);
  insert into conversation_locks as l (conversation_key, holder, expires_at)
  values (p_conversation_key, p_holder, clock_timestamp() + p_lease)
  on conflict (conversation_key) do update
    set holder = excluded.holder, expires_at = excluded.expires_at,
        acquired_at = clock_timestamp()
    where l.expires_at <= clock_timestamp() or l.holder = excluded.holder;
  return case when found then true end;
end
$$;
comment on function acquire_conversation_lock(text, text, interval) is 'Lock a conversation for work outside the queue; true when held, null when another holds it.';

create function release_conversation_lock(p_conversation_key text, p_holder text) returns boolean
language sql volatile set search_path from current as $$
  delete from conversation_locks where conversation_key = p_conversation_key and holder = p_holder returning true;
$$;
comment on function release_conversation_lock(text, text) is 'Release a conversation lock of this holder; null when it was not ours.';

create function cleanup_stuck_webhook_conversations(p_after interval default '5 minutes') returns integer
language plpgsql set search_path from current as $$
-- Remove conversation locks whose own time is over, and those without an end that nobody has renewed for p_after (0 to 1000 years).
-- A lock that is still valid is never taken. A row that somebody has locked (its holder's transaction, left open) is left for the next call
-- and holds up no other. Returns how many. Raises PH001.
declare
  v_count integer;
begin
  perform check_age('after', p_after);
  with stuck as materialized (
    select l.conversation_key from conversation_locks l
    where l.expires_at <= clock_timestamp() or (coalesce(l.expires_at, 'infinity') = 'infinity' and l.acquired_at <= clock_timestamp() - p_after)
    for update skip locked
  )
  delete from conversation_locks l using stuck s where l.conversation_key = s.conversation_key;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function cleanup_stuck_webhook_conversations(interval) is 'Remove conversation locks whose time is over; returns how many.';

create function is_new_message(p_external_id text, p_reclaim_after interval default '5 minutes') returns boolean
language plpgsql set search_path from current as $$
-- True for exactly one caller per external id: call it in the transaction that enqueues. A caller that
-- said true and was never marked processed is forgotten after p_reclaim_after (0 to 1000 years), so a crash loses nothing. Raises PH001.
begin
  if p_external_id is null or length(p_external_id) not between 1 and 500 then
    perform refuse_argument('external_id', 'must have 1 to 500 characters');
  elsif p_reclaim_after is null or p_reclaim_after not between interval '0' and interval '1000 years' then
    perform refuse_argument('reclaim_after', 'must be between 0 and 1000 years');
  end if;
  insert into processed_messages as p (external_id) values (p_external_id)
  on conflict (external_id) do update set first_seen_at = clock_timestamp()
    where p.processed_at is null and p.first_seen_at < clock_timestamp() - p_reclaim_after;
  return found;
end
$$;
comment on function is_new_message(text, interval) is 'True for the first caller with this external id.';

create function mark_message_processed(p_external_id text, p_correlation_id text default null, p_processing_ms integer default null)
returns void
language plpgsql set search_path from current as $$
-- Remember that this webhook was processed: the first time stays, what was missing is filled in. Raises PH001.
begin
  if p_external_id is null or length(p_external_id) not between 1 and 500 then
    perform refuse_argument('external_id', 'must have 1 to 500 characters');
  elsif p_processing_ms < 0 then
    perform refuse_argument('processing_ms', 'must not be negative');
  end if;
  insert into processed_messages as p (external_id, correlation_id, processed_at, processing_ms)
  values (p_external_id, p_correlation_id, clock_timestamp(), p_processing_ms)
  on conflict (external_id) do update
    set processed_at = coalesce(p.processed_at, excluded.processed_at),
        correlation_id = coalesce(excluded.correlation_id, p.correlation_id),
        processing_ms = coalesce(excluded.processing_ms, p.processing_ms);
end
$$;
comment on function mark_message_processed(text, text, integer) is 'The webhook with this external id was processed.';

create function cleanup_expired_windows(p_limit integer default 5000) returns integer
language plpgsql set search_path from current set lock_timeout = '500ms' as $$
-- The upkeep that every worker does: delete up to p_limit (1..100000) each of dedup windows, results and rate limiters whose own time is over,
-- later or never where configuration says so (retention_keep). What ages by policy is not touched. Returns how many rows went. Raises PH001.
declare
  v_windows constant timestamptz := clock_timestamp() - retention_keep('message_dedup', interval '0');
  v_results constant timestamptz := clock_timestamp() - retention_keep('message_results', interval '0');
  v_count integer := 0;
  v_some integer;
begin
  perform check_batch(p_limit);
  delete from message_dedup where (queue, dedup_key) in (
    select d.queue, d.dedup_key from message_dedup d where d.expires_at < v_windows limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from message_results where result_key in (
    select r.result_key from message_results r where r.expires_at < v_results limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from rate_limiters where limiter_key in (
    select r.limiter_key from rate_limiters r where r.expires_at < clock_timestamp() limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  return v_count;
end
$$;
comment on function cleanup_expired_windows(integer) is 'Delete dedup windows, results and rate limiters whose time is over; returns how many.';

create function cleanup_old_messages(p_limit integer default 5000) returns integer
language plpgsql set search_path from current set lock_timeout = '500ms' as $$
-- Known name, for callers who have a cron of their own: what cleanup_expired_windows() deletes, and by the policies of retention webhook ids
-- that were finished with, and dead letters; up to p_limit (1..100000) of each. The policies are those that the scheduler last read from
-- configuration; where none ever ran, 7 and 30 days. One that is switched off, or narrowed by SQL of its own, is left alone here.
-- A dead letter that blocks its conversation stays until somebody acts. Safe to repeat and to run anywhere. Returns how many rows went.
-- Raises PH001.
declare
  v_seen constant timestamptz := clock_timestamp() - retention_keep('processed_messages', interval '7 days');
  v_dead constant interval := retention_keep('dead_letters', interval '30 days');
  v_ids bigint[];
  v_count integer;
  v_some integer;
begin
  v_count := cleanup_expired_windows(p_limit);
  delete from processed_messages where external_id in (
    select p.external_id from processed_messages p
    where p.first_seen_at < v_seen and (p.processed_at is null or p.processed_at < v_seen) limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  v_ids := array(select d.id from dead_letters d where d.dead_at < clock_timestamp() - v_dead and not d.blocks_conversation order by d.id limit p_limit);
  if cardinality(v_ids) > 0 then
    begin
      v_count := v_count + cardinality(purge_dead_letters(v_ids, p_older_than => v_dead, p_limit => p_limit,
        p_operator => 'retention', p_reason => format('older than %s', v_dead)));
    exception when lock_not_available then
      null; -- somebody works on one of them: next time
    end;
  end if;
  return v_count;
end
$$;
comment on function cleanup_old_messages(integer) is 'Delete windows that ended, and old webhook ids and dead letters by the policies of retention.';

create function drop_expired_archive_partitions() returns integer
language plpgsql security definer set search_path from current set lock_timeout = '200ms' as $$
-- Retention of the archive: drop daily partitions whose every message is older than the longest keep_done
-- of all queues, and than configuration keeps it: where partitions.message_archive is switched off, or exports, or rests for longer, none
-- is dropped here. What it cannot have now it drops next time.
-- A drop needs the whole archive for an instant, and while it waits for that every completion waits behind it. So it
-- is not even tried while a transaction that lasts (a dump, a report) uses the archive.
declare
  v_users text[];
  v_policy constant jsonb := (select t.policy from maintenance_tasks t where t.task = 'partitions.message_archive.drop');
  v_keep constant interval := case when v_policy is null then '0' else make_interval(days => (v_policy ->> 'keep_days')::integer) end;
  v_oldest timestamptz := (select date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC'
    - greatest(coalesce(max(keep_done), interval '7 days'), v_keep) - interval '1 day' from queues);
  v_name text;
  v_dropped integer := 0;
begin
  if v_keep is null or not pg_try_advisory_xact_lock(hashtext('packhorse.message_archive')) then
    return 0; -- another one is at it
  end if;
  for v_name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'message_archive'::regclass and c.relname ~ '^message_archive_[0-9]{8}(_[0-9]+)?$'
      and to_date(substr(c.relname, 17, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' < v_oldest
    order by c.relname limit 10
  loop
    for v_look in 1..2 loop
      v_users := array(
        select l.virtualtransaction from pg_locks l
        where l.relation in ('message_archive'::regclass, v_name::regclass) and l.granted and l.pid is distinct from pg_backend_pid()
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and (v_look = 1 or l.virtualtransaction = any (v_users)));
      exit when v_look = 2 or cardinality(v_users) = 0;
      perform pg_sleep(0.1);
    end loop;
    exit when cardinality(v_users) > 0;
    begin
      execute format('drop table %I', v_name);
      v_dropped := v_dropped + 1;
    exception when lock_not_available then
      exit;
    end;
  end loop;
  return v_dropped;
end
$$;
comment on function drop_expired_archive_partitions() is 'Drop archive partitions past their retention; returns how many.';

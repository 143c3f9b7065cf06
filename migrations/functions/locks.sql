-- Locks by hand, for workers that speak only SQL (SPEC Q2). They never beat, so their leases are five minutes
-- long by default (SPEC W5).

create or replace function packhorse.get_next_queue_message(p_queue text,
  p_holder uuid default gen_random_uuid(), p_lease interval default '5 minutes')
returns setof packhorse.claimed_message
language sql volatile as $$
-- The next due message of a queue, leased; no row when there is none.
  select c.* from packhorse.claim_messages(p_holder, array[p_queue], 1, p_lease) c;
$$;
comment on function packhorse.get_next_queue_message(text, uuid, interval) is
  'The next due message of a queue, leased for five minutes.';

create or replace function packhorse.acquire_message_lock(p_id bigint, p_holder uuid,
  p_lease interval default '5 minutes') returns bigint
language plpgsql set enable_seqscan = off set jit = off
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
    perform packhorse.refuse_argument('holder', 'must not be null',
      'A uuid that is fresh for every process start.');
  end if;
  perform packhorse.check_lease(p_lease);
  perform packhorse.refuse_copy();
  select m.queue, m.concurrency_key into v_queue, v_key from packhorse.message_queue m
  where m.id = p_id and m.state = 'pending' and packhorse.is_due(m.run_at, v_now)
    and packhorse.is_worth_doing(m.expires_at, v_now)
    and (m.conversation_key is null
      or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)))
  for update of m skip locked;
  if not found or exists (
      select from packhorse.queues q where q.name = v_queue and not packhorse.queue_goes_to(q, null))
    or packhorse.queue_allowance((select q from packhorse.queues q where q.name = v_queue), 1,
    v_now) < 1 then
    return null;
  elsif exists (
      select from packhorse.queues q cross join packhorse.key_allowance(q, v_key, v_now) k
      where q.name = v_queue and k.room <= 0) then
    return null;
  elsif exists (select from packhorse.scopes s where s.ends_at > v_now)
    and not packhorse.enter_scopes(p_id, v_now) then
    return null;
  end if;
  perform packhorse.count_starts(q, array[p_id], v_now) from packhorse.queues q where q.name = v_queue;
  update packhorse.message_queue m
  set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
      lease_token = nextval('packhorse.message_lease_token_seq'), lease_expires_at = v_now + p_lease,
      claimed_at = v_now
  where m.id = p_id returning m.lease_token into v_token;
  return v_token;
exception when unique_violation then
  return null; -- another message of the conversation started in the same instant
end
$$;
comment on function packhorse.acquire_message_lock(bigint, uuid, interval) is
  'Claim one given message; its lease token, or null.';

create or replace function packhorse.release_message_lock(p_id bigint, p_token bigint) returns boolean
language sql volatile as $$
  select packhorse.release_message(p_id, p_token);
$$;
comment on function packhorse.release_message_lock(bigint, bigint) is 'Known name of release_message.';

create or replace function packhorse.acquire_conversation_lock(p_conversation_key text, p_holder text,
  p_lease interval default '5 minutes') returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Lock a conversation for work outside the queue; true when it is (still or newly) ours, false when another
-- holds it. Ends by time. Raises PH001.
begin
  if p_conversation_key is null or length(p_conversation_key) not between 1 and 500 then
    perform packhorse.refuse_argument('conversation_key', 'must have 1 to 500 characters');
  elsif p_holder is null or length(p_holder) not between 1 and 500 then
    perform packhorse.refuse_argument('holder', 'must have 1 to 500 characters');
  end if;
  perform packhorse.check_lease(p_lease);
  insert into packhorse.conversation_locks as l (conversation_key, holder, expires_at)
  values (p_conversation_key, p_holder, clock_timestamp() + p_lease)
  on conflict (conversation_key) do update
    set holder = excluded.holder, expires_at = excluded.expires_at,
        acquired_at = clock_timestamp()
    where l.expires_at <= clock_timestamp() or l.holder = excluded.holder;
  return found;
end
$$;
comment on function packhorse.acquire_conversation_lock(text, text, interval) is
  'Lock a conversation for work outside the queue; true when held, false when another holds it.';

create or replace function packhorse.release_conversation_lock(p_conversation_key text, p_holder text)
returns boolean
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- Give the lock back: true when it was ours, else false.
  with released as (
    delete from packhorse.conversation_locks where conversation_key = p_conversation_key and holder = p_holder
    returning 1
  )
  select exists (select from released);
$$;
comment on function packhorse.release_conversation_lock(text, text) is
  'Release a conversation lock of this holder; false when it was not ours.';

create or replace function packhorse.cleanup_stuck_webhook_conversations(
  p_after interval default '5 minutes', p_limit integer default 5000) returns integer
language plpgsql as $$
-- Remove up to p_limit (1..100000) conversation locks whose own time is over, or that have no end and that
-- nobody has renewed for p_after (0 to 1000 years). A lock that is still valid is never taken. A row that
-- somebody has locked (its holder's transaction, left open) is left for the next call and holds up no other.
-- Returns how many: p_limit when there may be more. Raises PH001.
declare
  v_count integer;
begin
  perform packhorse.check_age('after', p_after);
  perform packhorse.check_batch(p_limit);
  with stuck as materialized (
    select l.conversation_key from packhorse.conversation_locks l
    where l.expires_at <= clock_timestamp()
      or (coalesce(l.expires_at, 'infinity') = 'infinity' and l.acquired_at <= clock_timestamp() - p_after)
    limit p_limit for update skip locked
  )
  delete from packhorse.conversation_locks l using stuck s where l.conversation_key = s.conversation_key;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function packhorse.cleanup_stuck_webhook_conversations(interval, integer) is
  'Remove conversation locks whose time is over; returns how many.';

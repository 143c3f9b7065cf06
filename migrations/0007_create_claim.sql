-- Claim: take due messages and lease them, in one statement per batch (SPEC P2, P4, P5, Q8, Q10).
--
-- Order of a conversation. Everybody enqueues `pending`. A pending message of a conversation may start
-- when no message of it runs and no pending one has a smaller id. The claim that meets one which may
-- not turns it to `blocked`, which takes it out of the claim index: a million messages on one
-- conversation cost others nothing. When a message leaves its conversation, the first blocked one
-- becomes `pending` again (promote_conversations, 0008).
-- Why no wake-up is lost: to block a message the claim must hold FOR KEY SHARE on the one it waits
-- behind, and that one can only leave by DELETE, which waits for the lock; the promotion that follows
-- is a later statement and sees the blocked row. A message is only blocked behind smaller ids: so the
-- first of a conversation is never blocked, and one that comes back (retry, snooze, release) still holds it.
--
-- Claim cursor. Under an old snapshot every claimed row leaves a dead entry at the left end of the
-- index. A worker therefore passes where it was (p_cursor) and starts there; now and then, and
-- whenever it finds less than it asked for, it looks from the start, in slices (p_until) when that is
-- far: late commits and released messages are found then.
--
-- Plans. A worker that starts on an empty queue caches plans made for an empty table, where reading all of
-- it is the cheapest, and keeps them while a million rows arrive. So the functions that callers call set
-- enable_seqscan = off (for all that runs inside them), and jit = off: what no index serves, like the
-- few rows of `queues`, would look expensive enough to compile. plan_cache_mode = force_generic_plan: with
-- the cost of forbidden scans in them custom plans never look dearer than the generic one, and half of an
-- empty claim was planning.
-- Lock and duration: new objects only, milliseconds.

create type claimed_message as (
  outcome          text,        -- 'claimed'; 'lost', 'promoted', 'next', 'isolated': see complete_and_claim_messages
  id               bigint,
  lease_token      bigint,
  queue            text,
  message_type     text,
  payload          jsonb,
  options          jsonb,
  priority         integer,
  attempt          integer,
  max_attempts     integer,
  crashes          integer,
  conversation_key text,
  correlation_id   text,
  trace_context    text,
  run_at           timestamptz,
  created_at       timestamptz,
  lease_expires_at timestamptz
);

create function conversation_holders(p_conversation_key text, p_id bigint)
returns table (holder_kind text, holder_id bigint)
language sql stable
-- Who keeps message p_id of this conversation from starting: the running one, earlier pending ones, a
-- dead letter that blocks it. Empty: it may start. The one predicate of claim and explain; a body
-- without SET, so that the planner folds it into the claim query.
begin atomic
  select 'running', h.id from message_queue h
  where h.conversation_key = p_conversation_key and h.state = 'running' and h.id <> p_id
  union all
  select 'earlier', h.id from message_queue h
  where h.conversation_key = p_conversation_key and h.state = 'pending' and h.id < p_id
  union all
  select 'dead', d.id from dead_letters d
  where d.conversation_key = p_conversation_key and d.blocks_conversation and d.id <> p_id;
end;
comment on function conversation_holders(text, bigint) is 'What keeps a message of a conversation from starting; empty when it may start.';

create function block_waiting_messages(p_ids bigint[]) returns integer
language plpgsql set search_path from current as $$
-- Turn pending messages (locked by the caller) to blocked behind the holder of their conversation.
-- Locks each holder FOR KEY SHARE, skipping holders that are about to leave. Returns how many.
declare
  v_running bigint[];
  v_count integer;
begin
  v_running := array(
    select h.id from message_queue h
    where h.state = 'running' and h.id = any (array(
      select r.id from (select distinct m.conversation_key from message_queue m where m.id = any (p_ids)) k
      cross join lateral (
        select c.id from message_queue c where c.conversation_key = k.conversation_key and c.state = 'running' limit 1) r))
    for key share skip locked);
  with waiting as (
    select m.id, m.conversation_key from message_queue m where m.id = any (p_ids) and m.state = 'pending'
  ), earlier as (
    select k.conversation_key, h.id
    from (select distinct w.conversation_key from waiting w) k
    cross join lateral (
      select p.id from message_queue p
      where p.conversation_key = k.conversation_key and p.state = 'pending' order by p.id limit 1) h
  ), earlier_locked as (
    select h.id, h.conversation_key from message_queue h
    where h.id in (select e.id from earlier e) and h.id <> all (p_ids) and h.state = 'pending'
    for key share skip locked
  ), dead as (
    select l.conversation_key from (select distinct w.conversation_key from waiting w) k
    cross join lateral (
      select d.conversation_key from dead_letters d
      where d.conversation_key = k.conversation_key and d.blocks_conversation limit 1 for key share skip locked) l
  ), blocked as (
    update message_queue m set state = 'blocked'
    where m.id = any (p_ids) and m.state = 'pending'
      -- only behind smaller ids: a running message with a greater one (this one committed late) may come back to
      -- pending, behind this one, and then nobody would wake it before its successors
      and (exists (select from message_queue r where r.id = any (v_running)
                   and r.conversation_key = m.conversation_key and r.state = 'running' and r.id < m.id)
        or exists (select from earlier_locked e where e.conversation_key = m.conversation_key and e.id < m.id)
        -- the first one in the same batch, which this transaction itself holds
        or exists (select from earlier e where e.conversation_key = m.conversation_key and e.id = any (p_ids)
                   and e.id < m.id)
        or exists (select from dead d where d.conversation_key = m.conversation_key))
    returning 1
  )
  select count(*) into v_count from blocked;
  return v_count;
end
$$;
comment on function block_waiting_messages(bigint[]) is 'Used by the claim: pending messages that wait behind another of their conversation become blocked.';

create function waiting_behind(p_ids bigint[], p_limit integer) returns bigint[]
language sql volatile set search_path from current as $$
-- Lock and return up to p_limit further pending messages behind these ones in their conversations: whatever
-- keeps an earlier message of a conversation from starting keeps a later one, too.
  select array(
    select b.id
    from (select m.conversation_key, max(m.id) as id from message_queue m where m.id = any (p_ids) group by m.conversation_key) w
    cross join lateral (
      select m.id from message_queue m
      where m.conversation_key = w.conversation_key and m.state = 'pending' and m.id > w.id
      order by m.id limit p_limit for update of m skip locked) b
    limit p_limit);
$$;
comment on function waiting_behind(bigint[], integer) is 'Used by the claim: more pending messages behind these in their conversations.';

create function waiting_in_front(
  p_queue text, p_types text[], p_since timestamptz[], p_until timestamptz[], p_passed text[], p_now timestamptz
) returns bigint[]
language sql volatile set search_path from current as $$
-- Lock and return those of the next hundred messages of the queue that wait behind their conversation; those of
-- conversations in p_passed are passed over. Locks no message that may start: others want it.
  select array(
    select m.id from message_queue m
    where m.state = 'pending' and m.id = any (array(
      select w.id from (
        select c.id, c.free, bool_or(c.free) over (partition by c.conversation_key) as goes_on from (
          select f.id, f.conversation_key,
            f.conversation_key is null or not exists (select from conversation_holders(f.conversation_key, f.id)) as free
          from (
            select n.id, n.conversation_key from generate_series(1, 10) as level (priority)
            cross join lateral (
              select m.id, m.conversation_key from message_queue m
              where m.queue = p_queue and m.state = 'pending' and m.crashes < 2
                and m.priority = level.priority
                and m.run_at <= p_now
                and m.run_at >= coalesce(p_since[level.priority], '-infinity')
                and m.run_at < coalesce(p_until[level.priority], 'infinity')
                and (p_types is null or m.message_type = any (p_types))
                and (m.conversation_key is null or m.conversation_key <> all (p_passed))
              order by m.run_at, m.id limit 100) n
            limit 100) f) c) w
      where not w.free and not w.goes_on))
    for update of m skip locked);
$$;
comment on function waiting_in_front(text, text[], timestamptz[], timestamptz[], text[], timestamptz)
  is 'Used by the claim: those of the next hundred messages that wait behind their conversation.';

create function queue_allowance(p_queue queues, p_limit integer, p_now timestamptz, p_wait boolean default true) returns integer
language plpgsql set search_path from current as $$
-- How many messages of the queue may start now: pause, fleet-wide concurrency and rate limit (SPEC Q8). p_queue: its row.
-- Locks and reads the row again when the queue has a limit: claims of a limited queue come one by one. When somebody
-- keeps the row (an open transaction with set_queue) for longer than the caller's lock_timeout: none; the messages
-- of other queues, which the same claim looks at, must not wait for that.
-- p_wait false, for who has such a row already: null when another claim has this one. Claims look at queues in different
-- orders, and two that waited for each other would do so for the whole lock_timeout.
declare
  v_queue queues;
begin
  if p_queue.paused_at is not null then
    return 0;
  elsif p_queue.max_concurrency is null and p_queue.rate_limit is null and p_queue.max_concurrency_per_key is null then
    return p_limit;
  end if;
  select * into v_queue from queues where name = p_queue.name for update skip locked;
  if not found and not p_wait then
    return null;
  elsif not found then
    -- apart from the usual case: the lock of a subtransaction makes the update of the tokens a multixact
    begin
      select * into v_queue from queues where name = p_queue.name for update;
    exception when lock_not_available then
      return 0;
    end;
  end if;
  if v_queue.max_concurrency is not null then
    p_limit := least(p_limit, v_queue.max_concurrency
      - (select count(*) from message_queue where queue = p_queue.name and state = 'running' and lease_token is not null)::integer);
  end if;
  if v_queue.rate_limit is not null then
    p_limit := least(p_limit, floor(rate_tokens_at(v_queue, p_now))::integer);
  end if;
  return greatest(p_limit, 0);
end
$$;
comment on function queue_allowance(queues, integer, timestamptz, boolean) is 'How many messages of a queue may start now.';

create function rate_tokens_at(p_queue queues, p_now timestamptz) returns double precision
language sql immutable as $$
-- Tokens in the bucket of a rate-limited queue: refilled continuously, at most rate_burst.
  select least(
    coalesce(p_queue.rate_burst, p_queue.rate_limit)::double precision,
    p_queue.rate_tokens + greatest(extract(epoch from p_now - p_queue.rate_refilled_at), 0)
      * p_queue.rate_limit / extract(epoch from p_queue.rate_interval));
$$;
comment on function rate_tokens_at(queues, timestamptz) is 'Starts that the rate limit of a queue allows at this moment.';

create function next_start_at(p_queue text, p_now timestamptz) returns timestamptz
language sql stable set search_path from current as $$
-- When the rate limit of the queue allows the next start; null when it allows one now, or has none, or the queue is paused.
-- Never sooner than in 10 ms: who waits for a fast bucket is not to ask for every single token.
  select p_now + greatest(interval '10 milliseconds', (1 - rate_tokens_at(q, p_now)) / q.rate_limit * q.rate_interval)
  from queues q where q.name = p_queue and q.rate_limit is not null and q.paused_at is null and rate_tokens_at(q, p_now) < 1;
$$;
comment on function next_start_at(text, timestamptz) is 'When the rate limit of a queue allows the next start; null when it does not stand in the way.';

create function pick_promoted_messages(p_ids bigint[], p_queue text, p_limit integer, p_types text[], p_now timestamptz)
returns bigint[]
language plpgsql set search_path from current as $$
-- Choose and lock those of these messages that may start. A conversation that goes on has an older message
-- than what its worker's cursor looks at; it is found by its id instead of by walking back to it. Queues
-- with limits are left to pick_due_messages.
begin
  return array(
    select m.id from message_queue m
    -- crashes + 0: not the claim index, which a plan made on an empty table takes, and then walks the whole queue
    where m.id = any (p_ids) and m.state = 'pending' and m.crashes + 0 < 2 and m.run_at <= p_now
      and (m.expires_at is null or m.expires_at > p_now)
      and m.queue = p_queue and (p_types is null or m.message_type = any (p_types))
      and not exists (select from conversation_holders(m.conversation_key, m.id))
    order by m.priority, m.run_at, m.id limit p_limit
    for update of m skip locked);
end
$$;
comment on function pick_promoted_messages(bigint[], text, integer, text[], timestamptz)
  is 'Used by the claim: choose and lock messages whose conversation just went on.';

create function next_of_conversations(p_keys text[]) returns bigint[]
language sql stable set search_path from current set enable_seqscan = off as $$
-- The first pending message of each of these conversations, to be passed as p_first: for who ended messages by
-- another call than complete_and_claim_messages, whose answer names them. At most 1000.
  select array(
    select n.id from unnest(p_keys) as k (key)
    cross join lateral (
      select m.id from message_queue m
      where m.conversation_key = k.key and m.state = 'pending' order by m.id limit 1) n
    limit 1000);
$$;
comment on function next_of_conversations(text[]) is 'The first pending message of each conversation, for p_first of complete_and_claim_messages.';

create function pick_due_messages(
  p_queue text, p_limit integer, p_key_limit integer, p_types text[], p_since timestamptz[], p_until timestamptz[], p_isolated boolean,
  p_now timestamptz
) returns bigint[]
language plpgsql set search_path from current as $$
-- Choose and lock up to p_limit messages that may start, by (priority, run_at, id); skips rows that
-- others hold. Messages met on the way that wait behind their conversation become blocked. Null: there
-- were so many of these that what is behind them has not been looked at; now that they are blocked it can be.
-- p_since, p_until: ten times each, where to start and to end looking in each priority; null: not bounded.
-- p_key_limit: how many of one concurrency key may run (queues.max_concurrency_per_key).
-- p_isolated: those that were there when two processes died, and no others (SPEC P5).
declare
  v_picked bigint[] := '{}';
  v_found bigint[];
  v_waiting bigint[];
  v_seen integer;
  v_stuck_keys text[] := '{}';
  v_blocked integer := 0;
  v_behind integer := 2000; -- so many rows one claim blocks at most, beyond those it met itself
  v_want integer := p_limit;
  v_full_keys text[] := '{}';
begin
  if p_key_limit is not null then
    v_full_keys := array(
      select r.concurrency_key from message_queue r
      where r.queue = p_queue and r.state = 'running' and r.concurrency_key is not null
      group by r.concurrency_key having count(*) >= p_key_limit);
  end if;
  if p_isolated then
    return array(
      select m.id from message_queue m
      where m.queue = p_queue and m.state = 'pending' and m.crashes >= 2 and m.run_at <= p_now
        and (m.expires_at is null or m.expires_at > p_now)
        and (p_types is null or m.message_type = any (p_types))
        and (m.concurrency_key is null or m.concurrency_key <> all (v_full_keys))
        and (m.conversation_key is null
             or not exists (select from conversation_holders(m.conversation_key, m.id)))
      order by m.run_at, m.id
      limit case when p_key_limit is null then p_limit else 1 end -- two of one key may be one too many
      for update of m skip locked);
  end if;
  -- ten rounds bound the work of one claim that meets nothing but waiting conversations
  for v_round in 1..10 loop
    with due as (
      select c.id, c.free, c.concurrency_key, c.priority, c.run_at
      from generate_series(1, 10) as level (priority)
      cross join lateral (
        select m.id, m.concurrency_key, m.priority, m.run_at,
          m.conversation_key is null
            or not exists (select from conversation_holders(m.conversation_key, m.id)) as free
        from message_queue m
        where m.queue = p_queue and m.state = 'pending' and m.crashes < 2
          and m.priority = level.priority
          and m.run_at <= p_now
          and m.run_at >= coalesce(p_since[level.priority], '-infinity')
          and m.run_at < coalesce(p_until[level.priority], 'infinity')
          and (m.expires_at is null or m.expires_at > p_now)
          and (p_types is null or m.message_type = any (p_types))
          and (m.concurrency_key is null or m.concurrency_key <> all (v_full_keys))
          and (m.conversation_key is null or m.conversation_key <> all (v_stuck_keys))
          and m.id <> all (v_picked)
        order by m.run_at, m.id
        limit v_want
        for update of m skip locked
      ) c
      limit v_want
    )
    select array_agg(d.id) filter (where d.free), array_agg(d.id) filter (where not d.free), count(*)
    into v_found, v_waiting, v_seen from due d;
    if v_found is not null and p_key_limit is not null then
      v_found := array(
        select f.id from (
          select m.id, m.concurrency_key,
            row_number() over (partition by m.concurrency_key order by m.priority, m.run_at, m.id)
            + (select count(*) from message_queue r where r.queue = p_queue and r.state = 'running'
               and r.concurrency_key = m.concurrency_key) as place
          from message_queue m where m.id = any (v_found)) f
        where f.concurrency_key is null or f.place <= p_key_limit);
      v_full_keys := v_full_keys || array(
        select distinct m.concurrency_key::text from message_queue m
        where m.id = any (v_found) and m.concurrency_key is not null);
    end if;
    v_picked := v_picked || coalesce(v_found, '{}');
    if v_waiting is not null then
      if v_found is null and v_round > 1 and v_seen = v_want and v_want < 100 then
        -- two rounds met nothing else; so few at a time, ten of them would hide all that stands behind them
        v_waiting := v_waiting || waiting_in_front(p_queue, p_types, p_since, p_until, v_stuck_keys, p_now);
      end if;
      -- pass over these conversations from here on. What waits further behind in them is blocked in bulk;
      -- what could not be blocked (the message in front is about to leave in somebody's open transaction)
      -- must not hold up its whole queue
      v_stuck_keys := v_stuck_keys || array(
        select distinct m.conversation_key::text from message_queue m where m.id = any (v_waiting));
      if v_behind > 0 then
        v_waiting := v_waiting || waiting_behind(v_waiting, v_behind);
        v_behind := v_behind - cardinality(v_waiting);
      end if;
      v_blocked := v_blocked + block_waiting_messages(v_waiting);
    end if;
    if v_seen < v_want then -- there is nothing more behind them
      return v_picked;
    end if;
    v_want := p_limit - cardinality(v_picked);
    exit when v_want <= 0;
  end loop;
  return case when v_blocked = 0 then v_picked else nullif(v_picked, '{}') end;
end
$$;
comment on function pick_due_messages(text, integer, integer, text[], timestamptz[], timestamptz[], boolean, timestamptz)
  is 'Used by the claim: choose and lock the messages of one queue that may start.';

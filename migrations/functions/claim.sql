-- Claim: take due messages and lease them, in one statement per batch (SPEC P2, P4, P5, Q8, Q10).
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

create or replace function packhorse.pick_promoted_messages(
  p_ids bigint[], p_queue text, p_limit integer, p_types text[], p_held text[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock those of these messages that may start. A conversation that goes on has an older message
-- than what its worker's cursor looks at; it is found by its id instead of by walking back to it. Queues
-- with limits are left to pick_due_messages.
begin
  return array(
    select m.id from packhorse.message_queue m
    -- crashes + 0: not the claim index, which a plan made on an empty table takes, and then walks the whole queue
    where m.id = any (p_ids) and m.state = 'pending' and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
      and packhorse.is_worth_doing(m.expires_at, p_now)
      and m.queue = p_queue and packhorse.is_wanted(m.message_type, p_types, p_held)
      and not exists (select from packhorse.conversation_holders(m.conversation_key, m.id))
    order by m.priority, m.run_at, m.id limit p_limit
    for update of m skip locked);
end
$$;
comment on function packhorse.pick_promoted_messages(bigint[], text, integer, text[], text[], timestamptz)
  is 'Used by the claim: choose and lock messages whose conversation just went on.';

create or replace function packhorse.pick_isolated_messages(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages that were there when two processes died, and no others (SPEC P5), by (run_at, id).
declare
  v_full_keys constant text[] := packhorse.full_concurrency_keys(p_queue);
begin
  return array(
    select m.id from packhorse.message_queue m
    where m.queue = p_queue.name and m.state = 'pending' and packhorse.runs_apart(m.crashes) and packhorse.is_due(m.run_at, p_now)
      and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, p_held)
      and (m.concurrency_key is null or m.concurrency_key <> all (v_full_keys))
      and (m.conversation_key is null
           or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)))
    order by m.run_at, m.id
    limit case when p_queue.max_concurrency_per_key is null then p_limit else 1 end -- two of one key may be one too many
    for update of m skip locked);
end
$$;
comment on function packhorse.pick_isolated_messages(packhorse.queues, integer, text[], text[], timestamptz)
  is 'Used by the claim: choose and lock messages that run apart from all others.';

create or replace function packhorse.within_key_room(p_ids bigint[], p_queue packhorse.queues) returns bigint[]
language plpgsql as $$
-- Those of these messages that may start beside what runs with their concurrency keys, and beside each other.
begin
  return array(
    select f.id from (
      select m.id, m.concurrency_key,
        row_number() over (partition by m.concurrency_key order by m.priority, m.run_at, m.id) as place
      from packhorse.message_queue m where m.id = any (p_ids)) f
    where f.concurrency_key is null or f.place <= packhorse.key_room(p_queue, f.concurrency_key));
end
$$;
comment on function packhorse.within_key_room(bigint[], packhorse.queues) is 'Used by the claim: what max_concurrency_per_key lets start of these.';

create or replace function packhorse.pick_due_messages(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[], p_until timestamptz[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages that may start, by (priority, run_at, id); skips rows that
-- others hold. Messages met on the way that wait behind their conversation become blocked. Null: there
-- were so many of these that what is behind them has not been looked at; now that they are blocked it can be.
-- p_since, p_until: ten times each, where to start and to end looking in each priority; null: not bounded. p_held: types that rest.
declare
  v_picked bigint[] := '{}';
  v_found bigint[];
  v_waiting bigint[];
  v_seen integer;
  v_stuck_keys text[] := '{}';
  v_blocked integer := 0;
  v_behind integer := 2000; -- so many rows one claim blocks at most, beyond those it met itself
  v_want integer := p_limit;
  v_full_keys text[] := packhorse.full_concurrency_keys(p_queue);
begin
  -- ten rounds bound the work of one claim that meets nothing but waiting conversations
  for v_round in 1..10 loop
    with due as (
      select c.id, c.free, c.concurrency_key, c.priority, c.run_at
      from generate_series(1, 10) as level (priority)
      cross join lateral (
        select m.id, m.concurrency_key, m.priority, m.run_at,
          m.conversation_key is null
            or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
        from packhorse.message_queue m
        where m.queue = p_queue.name and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
          and m.priority = level.priority
          and packhorse.is_due(m.run_at, p_now)
          and m.run_at >= coalesce(p_since[level.priority], '-infinity')
          and m.run_at < coalesce(p_until[level.priority], 'infinity')
          and packhorse.is_worth_doing(m.expires_at, p_now)
          and packhorse.is_wanted(m.message_type, p_types, p_held)
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
    if v_found is not null and p_queue.max_concurrency_per_key is not null then
      v_found := packhorse.within_key_room(v_found, p_queue);
      v_full_keys := v_full_keys || array(
        select distinct m.concurrency_key::text from packhorse.message_queue m
        where m.id = any (v_found) and m.concurrency_key is not null);
    end if;
    v_picked := v_picked || coalesce(v_found, '{}');
    if v_waiting is not null then
      if v_found is null and v_round > 1 and v_seen = v_want and v_want < 100 then
        -- two rounds met nothing else; so few at a time, ten of them would hide all that stands behind them
        v_waiting := v_waiting || packhorse.waiting_in_front(p_queue.name, p_types, p_since, p_until, v_stuck_keys, p_now);
      end if;
      -- pass over these conversations from here on. What waits further behind in them is blocked in bulk;
      -- what could not be blocked (the message in front is about to leave in somebody's open transaction)
      -- must not hold up its whole queue
      v_stuck_keys := v_stuck_keys || array(
        select distinct m.conversation_key::text from packhorse.message_queue m where m.id = any (v_waiting));
      if v_behind > 0 then
        v_waiting := v_waiting || packhorse.waiting_behind(v_waiting, v_behind);
        v_behind := v_behind - cardinality(v_waiting);
      end if;
      v_blocked := v_blocked + packhorse.block_waiting_messages(v_waiting);
    end if;
    if v_seen < v_want then -- there is nothing more behind them
      return v_picked;
    end if;
    v_want := p_limit - cardinality(v_picked);
    exit when v_want <= 0;
  end loop;
  return case when v_blocked = 0 then v_picked when cardinality(v_picked) > 0 then v_picked end;
end
$$;
comment on function packhorse.pick_due_messages(packhorse.queues, integer, text[], text[], timestamptz[], timestamptz[], timestamptz)
  is 'Used by the claim: choose and lock the messages of one queue that may start.';

create or replace function packhorse.pick_with_promoted(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[], p_until timestamptz[], p_first bigint[],
  p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- The same as pick_due_messages, with those of p_first that may start among the others: served first, conversations that go on and on would
-- starve all else, and the caller's cursor would go past messages that nobody has looked at. Only for a queue without limits.
declare
  v_promoted constant bigint[] := packhorse.pick_promoted_messages(p_first, p_queue.name, p_limit, p_types, p_held, p_now);
  v_until timestamptz[] := p_until;
  v_due bigint[];
begin
  if cardinality(v_promoted) = p_limit then -- of the others, only what comes before the last of these matters
    select array_agg(case when l.priority < w.priority then v_until[l.priority]
      when l.priority = w.priority then least(v_until[l.priority], w.run_at) else '-infinity' end order by l.priority)
    into v_until from generate_series(1, 10) as l (priority), packhorse.message_queue w where w.id = v_promoted[p_limit];
  end if;
  v_due := packhorse.pick_due_messages(p_queue, p_limit, p_types, p_held, p_since, v_until, p_now);
  if cardinality(v_promoted) = 0 then
    return v_due;
  end if;
  return array(
    select m.id from packhorse.message_queue m where m.id = any (v_due || v_promoted) order by m.priority, m.run_at, m.id limit p_limit);
end
$$;
comment on function packhorse.pick_with_promoted(packhorse.queues, integer, text[], text[], timestamptz[], timestamptz[], bigint[], timestamptz)
  is 'Used by the claim: pick_due_messages, with messages whose conversation just went on in their places.';

create or replace function packhorse.pick_from_queue(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[], p_until timestamptz[], p_isolated boolean,
  p_first bigint[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages of one queue; null as in pick_due_messages.
begin
  if p_isolated then
    return packhorse.pick_isolated_messages(p_queue, p_limit, p_types, p_held, p_now);
  elsif cardinality(p_first) > 0
      and p_queue.max_concurrency is null and p_queue.max_concurrency_per_key is null and p_queue.rate_limit is null then
    return packhorse.pick_with_promoted(p_queue, p_limit, p_types, p_held, p_since, p_until, p_first, p_now);
  end if;
  return packhorse.pick_due_messages(p_queue, p_limit, p_types, p_held, p_since, p_until, p_now);
end
$$;
comment on function packhorse.pick_from_queue(packhorse.queues, integer, text[], text[], timestamptz[], timestamptz[], boolean, bigint[], timestamptz)
  is 'Used by the claim: choose and lock messages of one queue.';

create or replace function packhorse.pick_from_queues(
  p_queues text[], p_limit integer, p_types text[], p_cursor timestamptz[], p_until timestamptz[], p_isolated boolean, p_first bigint[],
  p_now timestamptz, out ids bigint[], out next_at timestamptz
)
language plpgsql as $$
-- Choose and lock up to p_limit messages of these queues, preferred ones first. next_at: when a look may find what this one did not, now when
-- something was in the way that will not be next time.
declare
  v_queue packhorse.queues;
  v_name text;
  v_some bigint[];
  v_want integer;
  v_locked boolean := false; -- the row of a queue with limits
  v_place integer := 0;
  v_probed boolean;
  v_rest packhorse.resting; -- all null while nothing is parked
begin
  ids := '{}';
  if exists (select from packhorse.scopes s where s.ends_at > p_now) then
    v_rest := packhorse.what_rests(p_now);
    next_at := v_rest.next_at;
  end if;
  foreach v_name in array p_queues loop
    exit when p_limit <= cardinality(ids);
    v_place := v_place + 10;
    select * into v_queue from packhorse.queues q where q.name = v_name;
    if not found then
      perform packhorse.require_queue(v_name);
    end if;
    v_want := packhorse.queue_allowance(v_queue, p_limit - cardinality(ids), p_now, not v_locked);
    if v_want is null then
      next_at := least(next_at, p_now + interval '50 milliseconds'); -- another claim looks at it; this one waits for no second queue
      continue;
    end if;
    v_locked := v_locked or v_queue.max_concurrency is not null or v_queue.max_concurrency_per_key is not null or v_queue.rate_limit is not null;
    if v_want <= 0 then
      if v_queue.rate_limit is not null then
        next_at := least(next_at, packhorse.next_start_at(v_name, p_now)); -- nobody else tells when the next token is there
      end if;
      continue;
    end if;
    if v_rest.held is not null then
      select r.ids, r.probed into v_some, v_probed from packhorse.pick_beside_resting(v_queue, v_want, p_types, v_rest,
        p_cursor[v_place - 9 : v_place], p_until[v_place - 9 : v_place], p_isolated, p_first, p_now) r;
      if v_probed then
        v_rest.probing := '{}';
      end if;
    else
      v_some := packhorse.pick_from_queue(v_queue, v_want, p_types, null, p_cursor[v_place - 9 : v_place], p_until[v_place - 9 : v_place],
        p_isolated, p_first, p_now);
    end if;
    if v_some is null then
      next_at := p_now; -- the next call gets further
    elsif cardinality(v_some) > 0 and v_queue.rate_limit is not null then
      update packhorse.queues q set rate_tokens = packhorse.rate_tokens_at(q, p_now) - cardinality(v_some)::float8, rate_refilled_at = p_now
      where q.name = v_name and q.rate_limit is not null;
    end if;
    ids := ids || v_some;
  end loop;
end
$$;
comment on function packhorse.pick_from_queues(text[], integer, text[], timestamptz[], timestamptz[], boolean, bigint[], timestamptz)
  is 'Used by the claim: choose and lock the messages of all its queues.';

create or replace function packhorse.claim_one_by_one(
  p_ids bigint[], p_holder uuid, p_now timestamptz, p_lease interval, p_sqlstate text, p_error text
) returns setof packhorse.claimed_message
language plpgsql as $$
-- Used by the claim when the database refuses to lease a batch, with p_sqlstate and p_error: each row alone. One whose
-- own values or whose own trigger is the reason (data errors, constraints, RAISE) can never run and becomes a dead
-- letter `rejected`. One that is refused for another reason is left with a warning. When that goes for all of them, it
-- is no row that is at fault: the error is raised.
declare
  v_id bigint;
  v_row packhorse.claimed_message;
  v_ended integer := 0;
begin
  for v_id in select m.id from packhorse.message_queue m where m.id = any (p_ids) order by m.priority, m.run_at, m.id loop
    begin
      update packhorse.message_queue m
      set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
          lease_token = nextval('packhorse.message_lease_token_seq'), lease_expires_at = p_now + p_lease, claimed_at = p_now
      where m.id = v_id and m.state = 'pending'
      returning m.id, m.lease_token, m.queue, m.message_type, m.payload,
        case when m.attempt > 1 then packhorse.retried_options(m.options, m.history) else m.options end as options, m.priority, m.attempt, m.max_attempts,
        m.crashes, m.conversation_key, m.correlation_id, m.trace_context, m.run_at, m.created_at, m.lease_expires_at, m.steps
      into v_row;
      if found then
        v_ended := v_ended + 1;
        return next v_row;
      end if;
    exception
      when unique_violation then
        v_ended := v_ended + 1; -- another message of its conversation has just started
      when others then
        begin
          if left(sqlstate, 2) not in ('22', '23', '44', 'P0') then
            raise;
          end if;
          perform packhorse.move_to_dead_letters(array[v_id], null, 'rejected', 'UnclaimableMessage',
            format('the database refuses to lease it: %s (%s)', sqlerrm, sqlstate), null, null);
          v_ended := v_ended + 1;
        exception when others then
          raise warning using errcode = sqlstate, message = format('message %s cannot be claimed: %s', v_id, sqlerrm);
        end;
    end;
  end loop;
  if v_ended = 0 then
    raise exception using errcode = p_sqlstate, message = p_error;
  end if;
end
$$;
comment on function packhorse.claim_one_by_one(bigint[], uuid, timestamptz, interval, text, text)
  is 'Used by the claim: lease each row of a refused batch alone; one that can never be leased becomes a dead letter.';

create or replace function packhorse.next_due_at(p_queues text[], p_now timestamptz) returns timestamptz
language plpgsql as $$
-- When the next message of these queues is due that is not due now; one look per queue and priority.
declare
  v_due timestamptz;
begin
  select min(d.run_at) into v_due
  from unnest(p_queues) as q (name)
  cross join generate_series(0, 10) as level (priority) -- 0 stands for the isolated ones
  cross join lateral (
    (select m.run_at from packhorse.message_queue m
     where level.priority > 0 and m.queue = q.name and m.state = 'pending' and m.crashes < 2
       and m.priority = level.priority and m.run_at > p_now
     order by m.run_at limit 1)
    union all
    (select m.run_at from packhorse.message_queue m
     where level.priority = 0 and m.queue = q.name and m.state = 'pending' and m.crashes >= 2 and m.run_at > p_now
     order by m.run_at limit 1)) d;
  return v_due;
end
$$;
comment on function packhorse.next_due_at(text[], timestamptz) is 'Used by the claim: when the next message of these queues is due.';

create or replace function packhorse.isolated_could_start(p_queues text[], p_types text[], p_now timestamptz) returns boolean
language plpgsql as $$
-- Could a message that runs apart from all others start now? The gates of pick_isolated_messages, without a lock.
begin
  return exists (
    select from packhorse.message_queue m join packhorse.queues q on q.name = m.queue
    where m.queue = any (p_queues) and m.state = 'pending' and packhorse.runs_apart(m.crashes) and packhorse.is_due(m.run_at, p_now)
      and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, null)
      and not exists (select from packhorse.resting_scopes(m.message_type, m.queue, p_now))
      and packhorse.queue_is_open(q) and (q.rate_limit is null or packhorse.rate_tokens_at(q, p_now) >= 1::float8)
      and (q.max_concurrency is null or packhorse.queue_room(q) > 0)
      and (m.concurrency_key is null or q.max_concurrency_per_key is null or packhorse.key_room(q, m.concurrency_key) > 0)
      and (m.conversation_key is null or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id))));
end
$$;
comment on function packhorse.isolated_could_start(text[], text[], timestamptz) is 'Used by the claim: could a message that runs apart start now?';

create or replace function packhorse.check_claim_arguments(p_holder uuid, p_queues text[], p_limit integer, p_lease interval) returns void
language plpgsql immutable as $$
-- Raise PH001 for the first bad argument of a claim.
begin
  if p_limit is null or p_limit not between 0 and 10000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', p_limit), '0 to 10000.');
  elsif p_holder is null then
    perform packhorse.refuse_argument('holder', 'must not be null', 'A uuid that is fresh for every process start.');
  elsif p_queues is null then
    perform packhorse.refuse_argument('queues', 'must not be null', 'The names of the queues, preferred ones first.');
  end if;
  perform packhorse.check_lease(p_lease);
end
$$;
comment on function packhorse.check_claim_arguments(uuid, text[], integer, interval) is 'Raise PH001 for the first bad argument of a claim.';

create or replace function packhorse.complete_and_claim_messages(
  p_ids      bigint[],
  p_tokens   bigint[],
  p_holder   uuid,
  p_queues   text[],
  p_limit    integer,
  p_lease    interval      default '5 minutes',
  p_types    text[]        default null,
  p_cursor   timestamptz[] default null,
  p_isolated boolean       default false,
  p_first    bigint[]      default '{}',
  p_until    timestamptz[] default null
) returns setof packhorse.claim_answer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Complete these, claim those: one round trip, one commit. A row per message, by (priority, run_at, id), leased to p_holder until
-- lease_expires_at; then at most one row of hints, an object with what there is to say (claim_hints).
-- p_queues in order of preference; p_limit 0..10000; p_types null means every type;
-- p_cursor, p_until: ten timestamps per queue (one per priority), look from there up to, not including, there;
-- null looks from the start and without an end, see the head of this file. p_isolated: messages that were there when two processes died, and no
-- others. p_first: messages to look at wherever they are; those whose conversation goes on with this very call are among them anyway.
declare
  v_now timestamptz;
  v_done record;
  v_lost bigint[];
  v_first bigint[] := p_first;
  v_pick record;
  v_ids bigint[] := '{}';
  v_next timestamptz;
  v_hints jsonb;
begin
  if p_limit between 0 and 10000 and p_lease between interval '1 second' and interval '1 day' and p_holder is not null and p_queues is not null then
    null;
  else
    perform packhorse.check_claim_arguments(p_holder, p_queues, p_limit, p_lease);
  end if;
  if cardinality(p_ids) > 0 then
    select * into v_done from packhorse.finish_done(p_ids, p_tokens);
    if cardinality(v_done.done_ids) < cardinality(p_ids) then
      v_lost := array(select l.id from unnest(p_ids) as l (id) where l.id <> all (v_done.done_ids));
    end if;
    v_first := v_first || v_done.promoted_ids;
  end if;
  v_now := clock_timestamp();
  if p_limit > 0 then
    perform packhorse.refuse_copy();
    select * into v_pick from packhorse.pick_from_queues(p_queues, p_limit, p_types, p_cursor, p_until, p_isolated, v_first, v_now);
    v_ids := v_pick.ids;
    v_next := v_pick.next_at;
  end if;
  if cardinality(v_ids) > 0 then
    begin
      return query
      with claimed as (
        update packhorse.message_queue m
        set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
            lease_token = nextval('packhorse.message_lease_token_seq'), lease_expires_at = v_now + p_lease, claimed_at = v_now
        where m.id = any (v_ids) and m.state = 'pending'
        returning m.id, m.lease_token, m.queue, m.message_type, m.payload,
          case when m.attempt > 1 then packhorse.retried_options(m.options, m.history) else m.options end as options, m.priority, m.attempt, m.max_attempts,
          m.crashes, m.conversation_key, m.correlation_id, m.trace_context, m.run_at, m.created_at, m.lease_expires_at, m.steps
      )
      select null::jsonb, c.id, c.lease_token, c.queue::text, c.message_type::text, c.payload::jsonb, c.options::jsonb,
        c.priority::integer, c.attempt, c.max_attempts::integer, c.crashes::integer, c.conversation_key::text, c.correlation_id::text,
        c.trace_context::text, c.run_at, c.created_at, c.lease_expires_at, c.steps
      from claimed c order by c.priority, c.run_at, c.id;
    exception
      when unique_violation then
        -- two claims started different messages of one conversation in the same instant (a late commit
        -- with a smaller id); the other one won, this batch is still pending and is found by the next claim
        v_ids := '{}';
        v_next := v_now;
      when others then
        -- one row that cannot be leased must not keep the others from it
        return query select null::jsonb, c.* from packhorse.claim_one_by_one(v_ids, p_holder, v_now, p_lease, sqlstate, sqlerrm) c;
        v_next := v_now;
    end;
  end if;
  v_hints := packhorse.claim_hints(v_lost, v_first, v_ids, p_queues, p_types, p_limit, p_isolated, cardinality(p_ids) = 0, v_next, v_now);
  if v_hints is not null then
    return query select v_hints, null::bigint, null::bigint, null::text, null::text, null::jsonb, null::jsonb, null::integer, null::integer,
      null::integer, null::integer, null::text, null::text, null::text, null::timestamptz, null::timestamptz, null::timestamptz, null::jsonb;
  end if;
end
$$;
comment on function packhorse.complete_and_claim_messages(bigint[], bigint[], uuid, text[], integer, interval, text[], timestamptz[], boolean, bigint[],
  timestamptz[]) is 'Complete these, claim those: one round trip and one commit.';

create or replace function packhorse.claim_hints(
  p_lost bigint[], p_first bigint[], p_ids bigint[], p_queues text[], p_types text[], p_limit integer, p_isolated boolean, p_idle boolean,
  p_next timestamptz, p_now timestamptz
) returns jsonb
language plpgsql as $$
-- What a claim has to say besides its messages; null when there is nothing:
--   lost      ids whose completion came too late
--   promoted  ids whose conversation went on and which were not claimed now: pass them in p_first next time
--   next_in   seconds until a look may find something, when nothing was claimed: a message will be due, a rate limit will allow a start, or,
--             when that is 0, something was in the way that will not be next time
--   isolated  messages that were there when two processes died could start: claim them where nothing else runs
declare
  v_promoted bigint[];
  v_next timestamptz := p_next;
  v_isolated boolean;
begin
  if cardinality(p_first) > 0 then
    v_promoted := array(
      select m.id from packhorse.message_queue m
      where m.id = any (p_first) and m.id <> all (p_ids) and m.state = 'pending' and packhorse.is_due(m.run_at, p_now)
        and m.queue = any (p_queues) and (p_types is null or m.message_type = any (p_types)));
  end if;
  if cardinality(p_ids) = 0 and p_limit > 0 and not p_isolated then -- who got something is back before he sleeps
    v_next := least(p_next, packhorse.next_due_at(p_queues, p_now));
    -- one that expired in front of its conversation holds it up, and workers that have nothing to do are the first to mind
    if p_idle and exists (select from packhorse.message_queue m where m.expires_at <= p_now and m.state <> 'running') then
      begin
        perform packhorse.expire_messages(100);
      exception when others then
        null; -- no reason to claim nothing; the heartbeats, which expire all others, say what is wrong
      end;
    end if;
  else
    v_next := null;
  end if;
  -- nearly always there is none; setting up the second look costs more than running it
  if not p_isolated and exists (select from packhorse.message_queue m where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2)
      and packhorse.isolated_could_start(p_queues, p_types, p_now) then
    v_isolated := true;
  end if;
  if p_lost is null and coalesce(cardinality(v_promoted), 0) = 0 and v_next is null and v_isolated is null then
    return null;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('lost', p_lost, 'promoted', nullif(to_jsonb(v_promoted), '[]'::jsonb), 'isolated', v_isolated,
    'next_in', case when v_next is not null then extract(epoch from least(v_next, timestamptz '9999-01-01') - clock_timestamp()) end));
end
$$;
comment on function packhorse.claim_hints(bigint[], bigint[], bigint[], text[], text[], integer, boolean, boolean, timestamptz, timestamptz)
  is 'Used by the claim: what it has to say besides its messages.';

create or replace function packhorse.claim_messages(
  p_holder   uuid,
  p_queues   text[],
  p_limit    integer       default 1,
  p_lease    interval      default '5 minutes',
  p_types    text[]        default null,
  p_cursor   timestamptz[] default null,
  p_isolated boolean       default null
) returns setof packhorse.claimed_message
language plpgsql as $$
-- Take up to p_limit due messages and lease them to p_holder. Never waits for rows that others hold.
-- p_isolated null, for a caller that runs one message at a time: ordinary ones first, then one that was there when two
-- processes died; one of these that has been due for five seconds comes first, so that a backlog does not starve it.
declare
  v_one_by_one constant boolean := p_isolated is null and p_limit > 0;
  v_isolated boolean;
  v_turns boolean[] := array[coalesce(p_isolated, false)];
begin
  if v_one_by_one then
    v_turns := case when exists (
        select from packhorse.message_queue m where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2
          and m.run_at < clock_timestamp() - interval '5 seconds')
      then array[true, false] else array[false, true] end;
  end if;
  foreach v_isolated in array v_turns loop
    return query
    select c.id, c.lease_token, c.queue, c.message_type, c.payload, c.options, c.priority, c.attempt, c.max_attempts, c.crashes,
      c.conversation_key, c.correlation_id, c.trace_context, c.run_at, c.created_at, c.lease_expires_at, c.steps
    from packhorse.complete_and_claim_messages('{}', '{}', p_holder, p_queues, case when v_isolated and v_one_by_one then 1 else p_limit end,
      p_lease, p_types, case when not v_isolated then p_cursor end, v_isolated) c
    where c.hints is null;
    exit when found;
  end loop;
end
$$;
comment on function packhorse.claim_messages(uuid, text[], integer, interval, text[], timestamptz[], boolean)
  is 'Take due messages and lease them; by (priority, run_at, id); empty when nothing is due.';

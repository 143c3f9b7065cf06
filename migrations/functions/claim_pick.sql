-- Pick: which messages a claim takes, and the locks on them (SPEC P4, P5, Q8). claim.sql leases them.
--
-- Claim cursor. Under an old snapshot every claimed row leaves a dead entry at the left end of the
-- index. A worker therefore passes where it was (p_cursor) and starts there; now and then, and
-- whenever it finds less than it asked for, it looks from the start, in slices (p_until) when that is
-- far: late commits and released messages are found then. Queues whose keys take turns have no cursor
-- (claim_turns.sql), while there is a key.

create or replace function packhorse.pass_waiting(
  p_ids bigint[], p_behind integer, out keys text[], out behind integer, out blocked integer
)
language plpgsql as $$
-- A claim has met these messages, which wait behind their conversation, and has locked them: they become
-- blocked, and up to p_behind that stand further behind in the same conversations. keys: the conversations,
-- to be passed over from here on. What could not be blocked (the message in front is about to leave in
-- somebody's open transaction) must not hold up its whole queue. behind: what is left of p_behind.
declare
  v_ids bigint[] := p_ids;
begin
  keys := array(
    select distinct m.conversation_key::text from packhorse.message_queue m where m.id = any (v_ids));
  behind := p_behind;
  if p_behind > 0 then
    v_ids := v_ids || packhorse.waiting_behind(v_ids, p_behind);
    behind := p_behind - cardinality(v_ids);
  end if;
  blocked := packhorse.block_waiting_messages(v_ids);
end
$$;
comment on function packhorse.pass_waiting(bigint[], integer)
  is 'Used by the claim: block what waits behind its conversation, and more of the same conversations.';

create or replace function packhorse.pick_due_messages(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_until timestamptz[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages that may start, by (priority, run_at, id); skips rows that others
-- hold. Messages met on the way that wait behind their conversation become blocked. Null: there were so many
-- of these that what is behind them has not been looked at; now that they are blocked it can be.
-- p_since, p_until: ten times each, where to start and to end looking in each priority; null: not bounded.
-- p_held: types that rest.
declare
  v_picked bigint[] := '{}'; v_found bigint[]; v_waiting bigint[];
  v_seen integer; v_blocked integer := 0;
  v_stuck_keys text[] := '{}';
  v_behind integer := 2000; -- so many rows one claim blocks at most, beyond those it met itself
  v_want integer := p_limit; v_passed record;
begin
  -- ten rounds bound the work of one claim that meets nothing but waiting conversations
  for v_round in 1..10 loop
    select array_agg(d.id) filter (where d.free), array_agg(d.id) filter (where not d.free), count(*)
    into v_found, v_waiting, v_seen
    from (
      select c.id, c.free
      from generate_series(1, 10) as level (priority)
      cross join lateral (
        select m.id, m.conversation_key is null
            or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
        from packhorse.message_queue m
        where m.queue = p_queue.name and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
          and m.priority = level.priority
          and packhorse.is_due(m.run_at, p_now) and m.run_at >= coalesce(p_since[level.priority], '-infinity')
          and m.run_at < coalesce(p_until[level.priority], 'infinity')
          and packhorse.is_worth_doing(m.expires_at, p_now)
          and packhorse.is_wanted(m.message_type, p_types, p_held)
          and (m.conversation_key is null or m.conversation_key <> all (v_stuck_keys))
          and m.id <> all (v_picked)
        order by m.run_at, m.id
        limit v_want for update of m skip locked
      ) c
      limit v_want
    ) d;
    v_picked := v_picked || coalesce(v_found, '{}');
    if v_waiting is not null then
      if v_found is null and v_round > 1 and v_seen = v_want and v_want < 100 then
        -- two rounds met nothing else; so few at a time, ten of them would hide all that stands behind them
        v_waiting := v_waiting
          || packhorse.waiting_in_front(p_queue.name, p_types, p_since, p_until, v_stuck_keys, p_now);
      end if;
      select * into v_passed from packhorse.pass_waiting(v_waiting, v_behind);
      v_stuck_keys := v_stuck_keys || v_passed.keys;
      v_behind := v_passed.behind;
      v_blocked := v_blocked + v_passed.blocked;
    end if;
    if v_seen < v_want then -- nothing more is behind them; a conversation's first message may be
      return case when v_picked <> '{}' or v_stuck_keys = '{}' or p_until is not null then v_picked
        else packhorse.pick_promoted_messages(
          packhorse.next_of_conversations(v_stuck_keys), p_queue.name, p_limit, p_types, p_held, p_now) end;
    end if;
    v_want := p_limit - cardinality(v_picked);
    exit when v_want <= 0;
  end loop;
  return case when v_blocked = 0 then v_picked when cardinality(v_picked) > 0 then v_picked end;
end
$$;
comment on function packhorse.pick_due_messages(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz[], timestamptz)
  is 'Used by the claim: choose and lock the messages of one queue that may start.';

create or replace function packhorse.pick_promoted_messages(
  p_ids bigint[], p_queue text, p_limit integer, p_types text[], p_held text[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock those of these messages that may start. A conversation that goes on has an older message
-- than what its worker's cursor looks at; it is found by its id instead of by walking back to it.
begin
  return array(
    select m.id from packhorse.message_queue m
    where m.id = any (p_ids) and m.state = 'pending'
      -- crashes + 0: not the claim index, which a plan made on an empty table takes, and then walks the queue
      and not packhorse.runs_apart((m.crashes + 0)::smallint)
      and packhorse.is_due(m.run_at, p_now) and packhorse.is_worth_doing(m.expires_at, p_now)
      and m.queue = p_queue and packhorse.is_wanted(m.message_type, p_types, p_held)
      and not exists (select from packhorse.conversation_holders(m.conversation_key, m.id))
    order by m.priority, m.run_at, m.id limit p_limit
    for update of m skip locked);
end
$$;
comment on function packhorse.pick_promoted_messages(bigint[], text, integer, text[], text[], timestamptz)
  is 'Used by the claim: choose and lock messages whose conversation just went on.';

create or replace function packhorse.pick_with_promoted(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_until timestamptz[], p_first bigint[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- The same as pick_due_messages, with those of p_first that may start among the others: served first,
-- conversations that go on and on would starve all else, and the caller's cursor would go past messages that
-- nobody has looked at. Only for a queue without limits.
declare
  v_promoted constant bigint[]
    := packhorse.pick_promoted_messages(p_first, p_queue.name, p_limit, p_types, p_held, p_now);
  v_until timestamptz[] := p_until;
  v_due bigint[];
begin
  if cardinality(v_promoted) = p_limit then -- of the others, only what comes before the last of these matters
    select array_agg(case when l.priority < w.priority then v_until[l.priority]
      when l.priority = w.priority then least(v_until[l.priority], w.run_at)
      else '-infinity' end order by l.priority)
    into v_until
    from generate_series(1, 10) as l (priority), packhorse.message_queue w where w.id = v_promoted[p_limit];
  end if;
  v_due := packhorse.pick_due_messages(p_queue, p_limit, p_types, p_held, p_since, v_until, p_now);
  if cardinality(v_promoted) = 0 then
    return v_due;
  end if;
  return array(
    select m.id from packhorse.message_queue m
    where m.id = any (v_due || v_promoted) order by m.priority, m.run_at, m.id limit p_limit);
end
$$;
comment on function packhorse.pick_with_promoted(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz[], bigint[], timestamptz)
  is 'Used by the claim: pick_due_messages, with messages whose conversation just went on in their places.';

create or replace function packhorse.pick_isolated_messages(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages that were there when two processes died, and no others (SPEC P5),
-- by (run_at, id).
begin
  return array(
    select m.id from packhorse.message_queue m
    where m.queue = p_queue.name and m.state = 'pending' and packhorse.runs_apart(m.crashes)
      and packhorse.is_due(m.run_at, p_now) and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, p_held)
      and exists (select from packhorse.key_allowance(p_queue, m.concurrency_key, p_now) k
                  where coalesce(k.room, 1) > 0)
      and (m.conversation_key is null
           or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)))
    order by m.run_at, m.id
    -- two of one key may be one too many
    limit case when packhorse.has_key_limit(p_queue) then 1 else p_limit end
    for update of m skip locked);
end
$$;
comment on function packhorse.pick_isolated_messages(packhorse.queues, integer, text[], text[], timestamptz)
  is 'Used by the claim: choose and lock messages that run apart from all others.';

create or replace function packhorse.pick_from_queue(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_until timestamptz[], p_isolated boolean, p_first bigint[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages of one queue; null as in pick_due_messages.
begin
  if p_isolated then
    return packhorse.pick_isolated_messages(p_queue, p_limit, p_types, p_held, p_now);
  elsif packhorse.takes_turns(p_queue) then
    return packhorse.pick_by_turns(p_queue, p_limit, p_types, p_held, p_since, p_now);
  elsif cardinality(p_first) > 0 and not packhorse.is_limited(p_queue) then
    return packhorse.pick_with_promoted(p_queue, p_limit, p_types, p_held, p_since, p_until, p_first, p_now);
  end if;
  return packhorse.pick_due_messages(p_queue, p_limit, p_types, p_held, p_since, p_until, p_now);
end
$$;
comment on function packhorse.pick_from_queue(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz[], boolean, bigint[], timestamptz)
  is 'Used by the claim: choose and lock messages of one queue.';

create or replace function packhorse.pick_from_queues(
  p_queues text[], p_limit integer, p_types text[], p_cursor timestamptz[], p_until timestamptz[],
  p_isolated boolean, p_first bigint[], p_forward text, p_now timestamptz, out ids bigint[],
  out next_at timestamptz
)
language plpgsql as $$
-- Choose and lock up to p_limit messages of these queues, preferred ones first. next_at: when a look may find
-- what this one did not, now when something was in the way that will not be next time.
declare
  v_queue packhorse.queues; v_name text; v_place integer := 0; v_locked boolean := false; -- one with limits
  v_some bigint[]; v_want integer; v_since timestamptz[]; v_rest packhorse.resting; -- null: nothing rests
begin
  ids := '{}';
  if exists (select from packhorse.scopes s where s.ends_at > p_now) then
    v_rest := case when p_forward is null then packhorse.what_rests(p_now)
      else packhorse.what_relays_leave(p_now) end;
    next_at := v_rest.next_at;
  end if;
  foreach v_name in array p_queues loop
    exit when p_limit <= cardinality(ids);
    v_place := v_place + 10;
    select * into v_queue from packhorse.queues q where q.name = v_name;
    if not found then
      perform packhorse.require_queue(v_name);
    end if;
    -- nobody to share with: an ordinary queue; a key that comes now has its turn the next time
    if v_queue.fair_share and packhorse.ring_is_empty(v_name, p_now) then v_queue.fair_share := false; end if;
    -- the keys of a ring have no cursor, and no place in a sweep
    continue when packhorse.takes_turns(v_queue) and p_until is not null and not p_isolated
      or not packhorse.queue_goes_to(v_queue, p_forward);
    v_since := case when not packhorse.takes_turns(v_queue) then p_cursor[v_place - 9 : v_place] end;
    v_want := packhorse.queue_allowance(v_queue, p_limit - cardinality(ids), p_now, not v_locked);
    if v_want is null then -- another claim looks at it; this one waits for no second queue
      next_at := least(next_at, p_now + interval '50 milliseconds');
      continue;
    end if;
    v_locked := v_locked or packhorse.is_limited(v_queue);
    if v_want <= 0 then
      if v_queue.rate_limit is not null then -- nobody else tells when the next token is there
        next_at := least(next_at, packhorse.next_start_at(v_name, p_now));
      end if;
      continue;
    end if;
    if v_rest.held is null then
      v_some := packhorse.pick_from_queue(v_queue, v_want, p_types, null, v_since,
        p_until[v_place - 9 : v_place], p_isolated, p_first, p_now);
    else
      select r.ids, case when not r.probed then v_rest.probing else '{}' end into v_some, v_rest.probing
      from packhorse.pick_beside_resting(v_queue, v_want, p_types, v_rest, v_since,
        p_until[v_place - 9 : v_place], p_isolated, p_first, p_now) r;
    end if;
    if v_some is null then -- the next call gets further; round a large ring of full keys not without a pause
      next_at := least(next_at, p_now + interval '20 milliseconds' * packhorse.takes_turns(v_queue)::integer);
    elsif cardinality(v_some) > 0 then
      if packhorse.is_limited(v_queue) then
        perform packhorse.count_starts(v_queue, v_some, p_now);
      end if;
    elsif v_queue.rate_limit_per_key is not null then
      next_at := least(next_at, packhorse.next_start_of_keys_at(v_queue, p_now));
    end if;
    ids := ids || v_some;
  end loop;
end
$$;
comment on function packhorse.pick_from_queues(text[], integer, text[], timestamptz[], timestamptz[], boolean,
  bigint[], text, timestamptz) is 'Used by the claim: choose and lock the messages of all its queues.';

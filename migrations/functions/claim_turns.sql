-- Turns: a claim of a queue with fair_share, or with a limit per key, takes the first message of each key on
-- the ring (claim_ring.sql), then the second of each, and stops where it has enough. A key that is full, or
-- has only messages for later, costs one step. The caller's cursor means nothing here, and a slice of a sweep
-- (p_until) looks at no ring (SPEC Q8c, Q8).

create or replace function packhorse.within_key_room(
  p_ids bigint[], p_before bigint[], p_queue packhorse.queues, p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Those of p_ids, in their order, that limits per key let start beside what runs, beside p_before (already
-- chosen) and beside each other.
begin
  return array(
    select f.id from (
      select m.id, m.concurrency_key, i.place,
        row_number() over (partition by m.concurrency_key order by i.place) as nth
      from unnest(p_before || p_ids) with ordinality as i (id, place)
      -- one by one: a plan that was made for a small table would join all of it
      cross join lateral (
        select q.id, q.concurrency_key from packhorse.message_queue q where q.id = i.id limit 1) m) f
    left join lateral packhorse.key_allowance(p_queue, f.concurrency_key, p_now) k on true
    where f.place > cardinality(p_before)
      and (f.concurrency_key is null or f.nth <= coalesce(k.room, 2147483647))
    order by f.place);
end
$$;
comment on function packhorse.within_key_room(bigint[], bigint[], packhorse.queues, timestamptz)
  is 'Used by the claim: what limits per key let start of these.';

create or replace function packhorse.take_turns(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_limit integer, p_types text[], p_held text[],
  p_since timestamptz[], p_stuck_keys text[], p_picked bigint[], p_now timestamptz,
  out ids bigint[], out last integer, out waiting bigint[], out turns packhorse.turn[]
)
language plpgsql as $$
-- Lock the first messages of each of these keys, so many of each that they are p_limit together: ids. last:
-- the place in p_turns of the key that had the last turn. waiting: those that wait behind their conversation.
-- turns: where these are fewer, the keys that had their share and may have more.
declare
  v_limits constant boolean := packhorse.has_key_limit(p_queue);
  v_share constant integer := p_limit / cardinality(p_turns);
  v_more constant integer := p_limit % cardinality(p_turns); -- so many, the first ones, have one more
  v_tenants boolean := false;
  v_places bigint[];
begin
  if v_limits then
    v_tenants := exists (select from unnest(p_turns) t where left(t.key, 1) = 't');
  end if;
  -- of a tenant under a limit per key the first message may be one of a full key
  if v_tenants then
    select t.ids, t.places, t.waiting into ids, v_places, waiting from packhorse.take_shares_of_tenants(
      p_queue, p_turns, v_share, v_more, p_types, p_held, p_since, p_stuck_keys, p_picked, p_now) t;
  else
    select t.ids, t.places, t.waiting into ids, v_places, waiting from packhorse.take_shares(
      p_queue, p_turns, v_share, v_more, p_types, p_held, p_since, p_stuck_keys, p_picked, p_now) t;
  end if;
  last := case when v_more > 0 then v_more else cardinality(p_turns) end;
  if coalesce(cardinality(ids), 0) < p_limit then
    turns := packhorse.turns_left(p_turns, v_places, v_share, v_more);
  end if;
  -- the walk knows the room of a key beside what runs; tenants may have messages of the same key, and another
  -- priority of it may have been chosen before
  if v_limits and ids is not null and (v_tenants or cardinality(p_picked) > 0) then
    ids := packhorse.within_key_room(ids, p_picked, p_queue, p_now);
  end if;
end
$$;
comment on function packhorse.take_turns(packhorse.queues, packhorse.turn[], integer, text[], text[],
  timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: lock the first messages of each of these keys.';

create or replace function packhorse.take_shares(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_share integer, p_more integer, p_types text[],
  p_held text[], p_since timestamptz[], p_stuck_keys text[], p_picked bigint[], p_now timestamptz,
  out ids bigint[], out places bigint[], out waiting bigint[]
)
language plpgsql set enable_bitmapscan = off as $$
-- Lock the first p_share messages of each of these keys, one more of each of the first p_more. places: of
-- all, also of those that wait behind their conversation, the place of the key.
begin
  select array_agg(c.id) filter (where c.free), array_agg(t.place), array_agg(c.id) filter (where not c.free)
  into ids, places, waiting
  from unnest(p_turns) with ordinality as t (key, priority, since, room, place)
  cross join lateral (
    select m.id, m.conversation_key is null
        or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
    from packhorse.message_queue m
    where m.queue = p_queue.name and m.state = 'pending' and packhorse.turn_key(m) = t.key collate "C"
      and m.priority = t.priority
      -- crashes + 0: not the claim index, which a plan made on an empty table takes
      and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
      -- not again over what the walk has passed
      and m.run_at >= greatest(to_timestamp(t.since), p_since[t.priority])
      and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, p_held)
      and (m.conversation_key is null or m.conversation_key <> all (p_stuck_keys))
      and m.id <> all (p_picked)
    order by m.run_at, m.id limit greatest(least(p_share + (t.place <= p_more)::integer, t.room), 0)
    for update of m skip locked) c;
end
$$;
comment on function packhorse.take_shares(packhorse.queues, packhorse.turn[], integer, integer, text[],
  text[], timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: lock the first few messages of each of these keys.';

create or replace function packhorse.take_shares_of_tenants(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_share integer, p_more integer, p_types text[],
  p_held text[], p_since timestamptz[], p_stuck_keys text[], p_picked bigint[], p_now timestamptz,
  out ids bigint[], out places bigint[], out waiting bigint[]
)
language plpgsql set enable_bitmapscan = off as $$
-- take_shares where limits per key hold inside a tenant: only the first 300 messages of each are looked at,
-- for some of its own keys may be full.
begin
  select array_agg(c.id) filter (where c.free), array_agg(t.place), array_agg(c.id) filter (where not c.free)
  into ids, places, waiting
  from unnest(p_turns) with ordinality as t (key, priority, since, room, place)
  left join lateral (
    select b.run_at, b.id from packhorse.message_queue b
    where t.key >= 't' and b.queue = p_queue.name and b.state = 'pending'
      and b.priority = t.priority and packhorse.turn_key(b) = t.key collate "C"
      and packhorse.is_due(b.run_at, p_now)
    order by b.run_at, b.id offset 300 limit 1) e on true
  cross join lateral (
    select m.id, m.conversation_key is null
        or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
    from packhorse.message_queue m
    where m.queue = p_queue.name and m.state = 'pending' and packhorse.turn_key(m) = t.key collate "C"
      and m.priority = t.priority
      and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
      and m.run_at >= greatest(to_timestamp(t.since), p_since[t.priority])
      and (m.run_at, m.id) < (coalesce(e.run_at, 'infinity'), coalesce(e.id, 9223372036854775807))
      and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, p_held)
      and (t.key < 't' or m.concurrency_key is null or exists (
        select from packhorse.key_allowance(p_queue, m.concurrency_key, p_now) k where k.room > 0))
      and (m.conversation_key is null or m.conversation_key <> all (p_stuck_keys))
      and m.id <> all (p_picked)
    order by m.run_at, m.id limit greatest(least(p_share + (t.place <= p_more)::integer, t.room), 0)
    for update of m skip locked) c;
end
$$;
comment on function packhorse.take_shares_of_tenants(packhorse.queues, packhorse.turn[], integer, integer,
  text[], text[], timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: take_shares of tenants under limits per key.';

create or replace function packhorse.turns_left(
  p_turns packhorse.turn[], p_places bigint[], p_share integer, p_more integer
) returns packhorse.turn[]
language plpgsql immutable as $$
-- Those of these turns that had their whole share: p_places says how many messages each had. Null: none.
begin
  return (
    select array_agg((t.key, t.priority, t.since, t.room - h.had)::packhorse.turn order by t.place)
    from unnest(p_turns) with ordinality as t (key, priority, since, room, place)
    join (select p.place, count(*)::integer as had from unnest(p_places) p (place) group by p.place) h
      on h.place = t.place
    where h.had >= p_share + (t.place <= p_more)::integer and coalesce(t.room - h.had, 1) > 0);
end
$$;
comment on function packhorse.turns_left(packhorse.turn[], bigint[], integer, integer)
  is 'Used by the claim: which keys may have more when each has had its share.';

create or replace function packhorse.next_round(
  p_turns packhorse.turn[], p_further packhorse.turn[], out turns packhorse.turn[],
  out further packhorse.turn[]
)
language plpgsql immutable as $$
-- When all keys have had their shares: the first priority that is left of each, and the others.
begin
  select
    array_agg((l.key, l.priority, l.since, l.room)::packhorse.turn order by l.key) filter (where l.nth = 1),
    array_agg((l.key, l.priority, l.since, l.room)::packhorse.turn order by l.key, l.nth)
      filter (where l.nth > 1)
  into turns, further
  from (select t.*, row_number() over (partition by t.key order by t.priority) as nth
    from unnest(p_turns || p_further) t) l;
end
$$;
comment on function packhorse.next_round(packhorse.turn[], packhorse.turn[])
  is 'Used by the claim: what is left of each key when all have had their shares.';

create or replace function packhorse.pick_first_of_stuck(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_stuck_keys text[],
  p_whole boolean, p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- pick_by_turns where nothing was found but messages that wait behind these conversations: the first of each
-- may start, although a later one was met first. p_whole: the claim has been round; else null for none.
declare
  v_ids bigint[] := '{}';
begin
  if p_stuck_keys <> '{}' then
    v_ids := packhorse.within_key_room(packhorse.pick_promoted_messages(
      packhorse.next_of_conversations(p_stuck_keys), p_queue.name, p_limit, p_types, p_held, p_now),
      '{}', p_queue, p_now);
  end if;
  return case when cardinality(v_ids) > 0 or p_whole then v_ids end;
end
$$;
comment on function packhorse.pick_first_of_stuck(packhorse.queues, integer, text[], text[], text[], boolean,
  timestamptz)
  is 'Used by the claim: the first message of conversations of which only later ones were met.';

create or replace function packhorse.keyless_share(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_want integer, p_types text[], p_held text[],
  p_now timestamptz, out ids bigint[], out pass integer, out looked_at double precision
)
language plpgsql as $$
-- What messages without a key get of p_want, as one share beside those of these keys; see noted_turn.
begin
  select k.ids, k.pass, floor(date_part('epoch', p_now)) into ids, pass, looked_at
  from packhorse.pick_keyless(p_queue,
    ceil(p_want / (least(coalesce(cardinality(p_turns), 0), p_want) + 1.0))::integer,
    p_types, p_held, 1, p_now) k;
end
$$;
comment on function packhorse.keyless_share(packhorse.queues, packhorse.turn[], integer, text[], text[],
  timestamptz) is 'Used by the claim: lock the first messages without a key, as one share.';

create or replace function packhorse.pick_on_walk(
  p_queue packhorse.queues, p_limit integer, p_reach integer, p_types text[], p_held text[],
  p_since timestamptz[], p_picked bigint[], p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- pick_by_turns along a walk, which looks for p_reach keys first; p_picked are chosen already.
declare
  v_ids bigint[] := p_picked; v_want integer := p_limit - cardinality(p_picked);
  v_last record; v_took record; v_keyless record; v_walk packhorse.ring_walk;
  v_turns packhorse.turn[]; v_slice packhorse.turn[]; v_ask integer; -- keys whose turn it is
  v_left packhorse.turn[]; v_further packhorse.turn[]; v_key text; v_taken integer := 0;
  v_stuck_keys text[] := '{}'; v_behind integer := 2000; v_whole boolean := true;
begin
  v_last := packhorse.noted_turn(p_queue.name, p_now);
  for v_round in 1..30 loop
    exit when v_want <= 0;
    if v_turns is null and (v_walk.lap = 2 or v_walk.steps <= 0) then
      exit when v_left is null and v_further is null; -- all have had their shares; these may have more
      select n.turns, n.further, null, null into v_turns, v_further, v_left, v_taken
      from packhorse.next_round(v_left, v_further) n;
    elsif v_turns is null then
      v_walk := case when v_round = 1 then packhorse.first_walk(p_queue, v_last.key, p_reach, p_now)
        else packhorse.walk_ring(p_queue, v_last.key, v_walk, greatest(v_want, 50), p_now) end;
      v_turns := v_walk.turns;
      v_further := v_further || v_walk.further;
      if v_walk.before_end < v_want and v_last.pass <= 0 then
        v_keyless := packhorse.keyless_share(p_queue, v_turns, v_want, p_types, p_held, p_now);
        v_last.looked_at := v_keyless.looked_at;
        v_last.pass := v_keyless.pass;
        v_ids := v_ids || v_keyless.ids;
        v_want := p_limit - cardinality(v_ids);
        v_key := case when v_keyless.ids <> '{}' then '' end;
      end if;
      continue when v_turns is null or v_want <= 0;
    end if;
    -- rounds that met nothing but waiting conversations: so few at a time, they hide what stands behind
    v_ask := case when v_round > 2 and v_ids = '{}' then greatest(v_want, 100) else v_want end;
    v_slice := v_turns[1 : v_ask];
    v_turns := nullif(v_turns[v_ask + 1 :], '{}');
    v_took := packhorse.take_turns( -- while there are others to come, one message of each
      p_queue, v_slice, case when v_walk.lap < 2 then least(v_ask, cardinality(v_slice)) else v_ask end,
      p_types, p_held, p_since, v_stuck_keys, v_ids, p_now);
    v_left := v_left || v_took.turns;
    v_taken := v_taken + v_took.last;
    v_key := v_slice[v_took.last].key;
    v_ids := v_ids || v_took.ids[1 : v_want];
    v_want := p_limit - cardinality(v_ids);
    if v_took.waiting is not null then
      select v_stuck_keys || p.keys, p.behind, v_whole and p.blocked = 0 into v_stuck_keys, v_behind, v_whole
      from packhorse.pass_waiting(v_took.waiting, v_behind) p;
    end if;
  end loop;
  if v_want > 0 then -- the keys had less than their shares
    v_keyless := packhorse.pick_keyless(p_queue, v_want, p_types, p_held, 10, p_now);
    v_ids := v_ids || v_keyless.ids;
    v_whole := v_whole and v_keyless.whole;
  end if;
  perform packhorse.note_turn(p_queue.name, coalesce(v_key, v_walk.key), v_last.noted_at, v_last.looked_at,
    v_last.pass - cardinality(v_ids), case when v_want <= 0 then v_taken end, p_now)
  where v_key is not null or v_walk.lap < 2;
  return case when cardinality(v_ids) > 0 then v_ids else packhorse.pick_first_of_stuck(
    p_queue, p_limit, p_types, p_held, v_stuck_keys, v_whole and v_walk.lap = 2, p_now) end;
end
$$;
comment on function packhorse.pick_on_walk(packhorse.queues, integer, integer, text[], text[], timestamptz[],
  bigint[], timestamptz)
  is 'Used by the claim: pick_by_turns, looking for the keys.';

create or replace function packhorse.pick_by_turns(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages, the keys in turn; p_since: by priority, what is older rests. Null:
-- so much was in the way that the next claim has to go on in this lap.
declare
  v_ids bigint[] := '{}';
  v_last record; v_listed record; v_share record;
  v_key text := ''; v_taken integer;
begin
  v_last := packhorse.noted_turn(p_queue.name, p_now);
  v_taken := v_last.taken;
  v_listed := packhorse.listed_turns(p_queue, v_taken, p_limit, p_now);
  if v_listed.turns is not null then
    if v_listed.keyless and v_last.pass <= 0 and v_last.key <> '' then
      v_share := packhorse.keyless_share(p_queue, v_listed.turns, p_limit, p_types, p_held, p_now);
      v_last.looked_at := v_share.looked_at;
      v_last.pass := v_share.pass;
      v_ids := v_share.ids;
    end if;
    if cardinality(v_ids) < p_limit then
      v_share := packhorse.take_turns(p_queue, v_listed.turns[1 : p_limit - cardinality(v_ids)],
        p_limit - cardinality(v_ids), p_types, p_held, p_since, '{}', v_ids, p_now);
      v_ids := v_ids || v_share.ids;
      v_taken := v_taken + coalesce(v_listed.places[v_share.last], v_share.last);
      v_key := v_listed.turns[v_share.last].key;
    end if;
    if cardinality(v_ids) = p_limit then
      perform packhorse.note_turn(p_queue.name, v_key, v_last.noted_at, v_last.looked_at,
        v_last.pass - p_limit, v_taken, p_now);
      return v_ids;
    end if;
    perform packhorse.drop_list(p_queue.name); -- it has more than there is
  end if;
  return packhorse.pick_on_walk(
    p_queue, p_limit, v_listed.reach, p_types, p_held, p_since, v_ids, p_now);
end
$$;
comment on function packhorse.pick_by_turns(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz)
  is 'Used by the claim: choose and lock messages of a queue, its keys in turn.';

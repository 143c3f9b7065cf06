-- Turns: a claim of a queue with fair_share, or with a limit per key, goes round the keys (SPEC Q8c, Q8).
--
-- What waits lies on a ring, in the order of turn_key: concurrency keys of messages that have no tenant ('c'
-- and the key), then tenants ('t' and the fairness_key), then, as one share, all messages without a key. A
-- claim starts behind the key that this session served last, takes the first message of each key, then the
-- second of each, and stops where it has enough. A key that is full, or has only messages for later, costs
-- one step. The caller's cursor means nothing here, and a slice of a sweep (p_until) looks at no ring.
--
-- The last key is kept in a setting of the session: a row that every claim writes would make claims wait for
-- each other, and under an old snapshot all its dead versions would be walked. queue_turns has it for
-- sessions that have just begun. Whatever it says, a claim is right: it only decides who comes first.
--
-- enable_bitmapscan, enable_sort = off: for the first one of many in the order of an index a bitmap or a sort
-- reads them all, and a plan that was made when there were few does not mind.

create or replace function packhorse.turn_key(p_message packhorse.message_queue) returns text
language sql immutable as $$
-- The same as in message_queue_turn_idx, which has it in the collation "C".
  select coalesce('t' || p_message.fairness_key::text, 'c' || p_message.concurrency_key::text);
$$;
comment on function packhorse.turn_key(packhorse.message_queue)
  is 'The place of a message on the ring of keys; null: it has no key.';

create or replace function packhorse.noted_turn(
  p_queue text, p_now timestamptz, out key text, out noted_at double precision,
  out looked_at double precision, out pass integer
)
language plpgsql as $$
-- The key that this session served last in this queue; in a new session the one that is in queue_turns, and
-- noted_at (seconds since 1970) is null. '': begin with the first key. looked_at: when it last looked for
-- messages without a key. pass: so many of keys may start before it looks again, but once a second it does.
declare
  v_noted constant text
    := current_setting(format('packhorse_queue.turn_%s', hashtext(p_queue) & 2147483647), true);
begin
  if v_noted <> '' then
    key := substr(v_noted, 28);
    noted_at := left(v_noted, 10)::double precision;
    looked_at := substr(v_noted, 12, 10)::double precision;
    pass := case when looked_at = floor(extract(epoch from p_now)) then substr(v_noted, 23, 4)::integer
      else 0 end;
  else
    select t.last_key into key from packhorse.queue_turns t where t.queue = p_queue;
    key := coalesce(key, '');
    pass := 0;
  end if;
end
$$;
comment on function packhorse.noted_turn(text, timestamptz)
  is 'Used by the claim: which key had the last turn in this queue.';

create or replace function packhorse.note_turn(
  p_queue text, p_key text, p_noted_at double precision, p_looked_at double precision, p_pass integer,
  p_now timestamptz
) returns void
language plpgsql as $$
-- The last turn was that of p_key. Written to queue_turns by a session that is new (p_noted_at null) and once
-- a second by others; never waited for.
declare
  v_now constant double precision := floor(extract(epoch from p_now));
begin
  if p_noted_at is null or p_noted_at not between v_now - 1 and v_now then
    update packhorse.queue_turns t set last_key = p_key
    where t.queue = any (array(
      select l.queue from packhorse.queue_turns l where l.queue = p_queue for update skip locked));
    p_noted_at := v_now;
  end if;
  perform set_config(format('packhorse_queue.turn_%s', hashtext(p_queue) & 2147483647),
    format('%s %s %s %s', p_noted_at::bigint, coalesce(p_looked_at::bigint, 1000000000),
      lpad(greatest(p_pass, 0)::text, 4, '0'), p_key), false);
end
$$;
comment on function packhorse.note_turn(text, text, double precision, double precision, integer, timestamptz)
  is 'Used by the claim: remember which key had the last turn.';

create or replace function packhorse.turn_room(p_queue packhorse.queues, p_key text, p_now timestamptz)
returns integer
language plpgsql stable as $$
-- How many more may start of what has this turn_key; null: no limit concerns it. A call, so that a walk
-- without limits does not set up what one with them asks.
begin
  return (select k.room
    -- the walk has its keys in the collation "C", in which the index of what runs is not
    from packhorse.key_allowance(p_queue, substr(p_key, 2) collate "default", p_now) k
    where left(p_key, 1) = 'c');
end
$$;
comment on function packhorse.turn_room(packhorse.queues, text, timestamptz)
  is 'Used by the claim: how many more of a key on the ring may start under limits per key.';

create or replace function packhorse.next_turns(
  p_queue packhorse.queues, p_from text, p_key text, p_priority integer, p_lap integer, p_limit integer,
  p_steps integer, p_now timestamptz, out turns packhorse.turn[], out keyless boolean, out key text,
  out priority integer, out lap integer, out steps integer
)
language plpgsql set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off as $$
-- The next keys of the ring with a message that is due, each priority of a key apart, behind p_priority of
-- p_key; full keys are passed over. As many as it takes to start p_limit messages, in p_steps steps at most.
-- p_from: the key behind which the claim began; p_lap: 0, 1 once the end of the ring is behind it, 2: all has
-- been walked. keyless: it is the turn of the messages without a key. key, priority: where to go on.
declare
  v_key_limit constant boolean := packhorse.has_key_limit(p_queue);
begin
  with recursive walk (place, lap, key, priority, run_at, room, id, found) as (
    select 0, p_lap, p_key collate "C", p_priority, null::timestamptz, null::integer, null::bigint, 0
    union all
    select w.place + 1, case when f.turn_key is null then w.lap + 1
        when w.lap = 1 and f.turn_key > p_from then 2 else w.lap end,
      coalesce(f.turn_key, ''), coalesce(f.priority, 0), f.run_at, a.room, f.id,
      w.found + case when packhorse.is_due(f.run_at, p_now) and coalesce(a.room, 1) > 0 then 1 else 0 end
    from walk w
    left join lateral (
      select packhorse.turn_key(m) collate "C" as turn_key, m.priority::integer as priority, m.run_at, m.id
      from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending'
        and packhorse.turn_key(m) is not null -- so the index says
        and (packhorse.turn_key(m) collate "C", m.priority) > (w.key, w.priority)
      order by packhorse.turn_key(m) collate "C", m.priority, m.run_at limit 1) f on true
    cross join lateral (
      select case when v_key_limit then packhorse.turn_room(p_queue, f.turn_key, p_now) end as room
      offset 0) a -- asked once for each
    where w.place < p_steps and w.found < p_limit and w.lap < 2
  )
  -- in the order of the walk, which no aggregate has to sort
  select array_agg((w.key, w.priority, w.room, w.run_at, w.id)::packhorse.turn)
      filter (where w.lap < 2 and packhorse.is_due(w.run_at, p_now) and coalesce(w.room, 1) > 0),
    coalesce(bool_or(w.place > 0 and w.lap < 2 and w.key = ''), false),
    (array_agg(w.key))[count(*)::integer], (array_agg(w.priority))[count(*)::integer],
    max(w.lap), max(w.place)
  into turns, keyless, key, priority, lap, steps from walk w;
end
$$;
comment on function packhorse.next_turns(packhorse.queues, text, text, integer, integer, integer, integer,
  timestamptz) is 'Used by the claim: the keys whose turn it is.';

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
      -- one by one, as in take_first_of_each
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
  out ids bigint[], out keys text[], out waiting bigint[], out turns packhorse.turn[]
)
language plpgsql as $$
-- Lock the first messages of each of these keys, so many of each that they are p_limit together: ids with
-- their keys, the first of each, then the second. waiting: those that wait behind their conversation. turns:
-- what is left when these are fewer: keys that may have more, and further priorities of a key.
declare
  v_limits constant boolean := packhorse.has_key_limit(p_queue);
  v_tenants boolean := false;
  v_took record;
begin
  if v_limits then
    v_tenants := exists (select from unnest(p_turns) t where left(t.key, 1) = 't');
  end if;
  -- of a tenant under a limit per key the first message may be one of a full key
  if v_tenants then
    v_took := packhorse.take_shares_of_tenants(
      p_queue, p_turns, p_limit, p_types, p_held, p_since, p_stuck_keys, p_picked, p_now);
  elsif cardinality(p_turns) >= p_limit and p_turns[1].id is not null then
    v_took := packhorse.take_first_of_each(p_queue, p_turns, p_types, p_held, p_since, p_now);
  else
    v_took := packhorse.take_shares(
      p_queue, p_turns, p_limit, p_types, p_held, p_since, p_stuck_keys, p_picked, p_now);
  end if;
  ids := v_took.ids;
  keys := v_took.keys;
  waiting := v_took.waiting;
  turns := v_took.turns;
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
  p_queue packhorse.queues, p_turns packhorse.turn[], p_limit integer, p_types text[], p_held text[],
  p_since timestamptz[], p_stuck_keys text[], p_picked bigint[], p_now timestamptz,
  out ids bigint[], out keys text[], out waiting bigint[], out turns packhorse.turn[]
)
language plpgsql set enable_bitmapscan = off as $$
-- take_turns where there are fewer keys than messages are wanted: as many of each.
declare
  v_share constant integer := ceil(p_limit::float8 / (select count(distinct t.key) from unnest(p_turns) t));
  v_full bigint[]; -- places of keys that had as many as their share
begin
  select array_agg(c.id order by c.nth, t.place) filter (where c.free),
    array_agg(t.key order by c.nth, t.place) filter (where c.free),
    array_agg(c.id) filter (where not c.free), array_agg(t.place) filter (where c.nth = v_share)
  into ids, keys, waiting, v_full
  from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
  cross join lateral (
    select d.id, d.free, row_number() over () as nth from (
      select m.id, m.conversation_key is null
          or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
      from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending' and packhorse.turn_key(m) = t.key collate "C"
        and m.priority = t.priority
        -- crashes + 0: not the claim index, which a plan made on an empty table takes
        and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
        and m.run_at >= greatest(t.run_at, p_since[t.priority]) -- not again over what the walk has passed
        and packhorse.is_worth_doing(m.expires_at, p_now)
        and packhorse.is_wanted(m.message_type, p_types, p_held)
        and (m.conversation_key is null or m.conversation_key <> all (p_stuck_keys))
        and m.id <> all (p_picked)
      order by m.run_at, m.id limit greatest(least(v_share, t.room), 0)
      for update of m skip locked) d) c
  where (p_turns[t.place - 1]).key is distinct from t.key; -- its first priority
  if coalesce(cardinality(ids), 0) < p_limit then
    turns := packhorse.turns_left(p_turns, v_full, v_share);
  end if;
end
$$;
comment on function packhorse.take_shares(packhorse.queues, packhorse.turn[], integer, text[], text[],
  timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: lock the first few messages of each of these keys.';

create or replace function packhorse.turns_left(p_turns packhorse.turn[], p_full bigint[], p_share integer)
returns packhorse.turn[]
language plpgsql immutable as $$
-- What is left of these turns once p_share messages of each key have been asked for: those at the places
-- p_full, which had as many, and further priorities. Null: nothing.
begin
  return nullif(array(
    select (t.key, t.priority, t.room - p_share, t.run_at, null)::packhorse.turn
    from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
    where t.place = any (p_full) or (p_turns[t.place - 1]).key = t.key order by t.place), '{}');
end
$$;
comment on function packhorse.turns_left(packhorse.turn[], bigint[], integer)
  is 'Used by the claim: the turns that are left when a part of each has been taken.';

create or replace function packhorse.take_shares_of_tenants(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_limit integer, p_types text[], p_held text[],
  p_since timestamptz[], p_stuck_keys text[], p_picked bigint[], p_now timestamptz,
  out ids bigint[], out keys text[], out waiting bigint[], out turns packhorse.turn[]
)
language plpgsql set enable_bitmapscan = off as $$
-- take_shares where limits per key hold inside a tenant: only the first 300 messages of each are looked at,
-- for some of its own keys may be full.
declare
  v_share constant integer := ceil(p_limit::float8 / (select count(distinct t.key) from unnest(p_turns) t));
  v_full bigint[]; -- places of keys that had as many as their share
begin
  select array_agg(c.id order by c.nth, t.place) filter (where c.free),
    array_agg(t.key order by c.nth, t.place) filter (where c.free),
    array_agg(c.id) filter (where not c.free), array_agg(t.place) filter (where c.nth = v_share)
  into ids, keys, waiting, v_full
  from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
  left join lateral (
    select b.run_at, b.id from packhorse.message_queue b
    where t.key >= 't' and b.queue = p_queue.name and b.state = 'pending'
      and b.priority = t.priority and packhorse.turn_key(b) = t.key collate "C"
      and packhorse.is_due(b.run_at, p_now)
    order by b.run_at, b.id offset 300 limit 1) e on true
  cross join lateral (
    select d.id, d.free, row_number() over () as nth from (
      select m.id, m.conversation_key is null
          or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
      from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending' and packhorse.turn_key(m) = t.key collate "C"
        and m.priority = t.priority
        and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
        and m.run_at >= greatest(t.run_at, p_since[t.priority])
        and (m.run_at, m.id) < (coalesce(e.run_at, 'infinity'), coalesce(e.id, 9223372036854775807))
        and packhorse.is_worth_doing(m.expires_at, p_now)
        and packhorse.is_wanted(m.message_type, p_types, p_held)
        and (t.key < 't' or m.concurrency_key is null or exists (
          select from packhorse.key_allowance(p_queue, m.concurrency_key, p_now) k where k.room > 0))
        and (m.conversation_key is null or m.conversation_key <> all (p_stuck_keys))
        and m.id <> all (p_picked)
      order by m.run_at, m.id limit greatest(least(v_share, t.room), 0)
      for update of m skip locked) d) c
  where (p_turns[t.place - 1]).key is distinct from t.key; -- its first priority
  if coalesce(cardinality(ids), 0) < p_limit then
    turns := packhorse.turns_left(p_turns, v_full, v_share);
  end if;
end
$$;
comment on function packhorse.take_shares_of_tenants(packhorse.queues, packhorse.turn[], integer, text[],
  text[], timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: take_shares of tenants under limits per key.';

create or replace function packhorse.take_first_of_each(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_types text[], p_held text[], p_since timestamptz[],
  p_now timestamptz,
  out ids bigint[], out keys text[], out waiting bigint[], out turns packhorse.turn[]
)
language plpgsql as $$
-- take_turns where there are at least as many keys as messages are wanted: the walk has met the first message
-- of each, and it is locked by its id. turns: keys of which it could not be taken.
begin
  with met as (
    select t.place, t.key, f.id, f.free
    from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
    -- one by one: a plan that was made for a small table would join all of it
    cross join lateral (
      select m.id, m.conversation_key is null
          or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
      from packhorse.message_queue m
      where m.id = t.id and m.queue = p_queue.name and m.state = 'pending'
        and packhorse.is_due(m.run_at, p_now) and not packhorse.runs_apart((m.crashes + 0)::smallint)
        and m.run_at >= coalesce(p_since[t.priority], '-infinity')
        and packhorse.is_worth_doing(m.expires_at, p_now)
        and packhorse.is_wanted(m.message_type, p_types, p_held)
      limit 1 for update of m skip locked) f
    where (p_turns[t.place - 1]).key is distinct from t.key -- its first priority
  )
  select array_agg(m.id order by m.place) filter (where m.free),
    array_agg(m.key order by m.place) filter (where m.free),
    array_agg(m.id) filter (where not m.free)
  into ids, keys, waiting from met m;
  if coalesce(cardinality(ids), 0) < cardinality(p_turns) then
    turns := nullif(array(
      select (t.key, t.priority, t.room, t.run_at, null)::packhorse.turn
      from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
      where t.key <> all (coalesce(keys, '{}')) order by t.place), '{}');
  end if;
end
$$;
comment on function packhorse.take_first_of_each(packhorse.queues, packhorse.turn[], text[], text[],
  timestamptz[], timestamptz)
  is 'Used by the claim: lock the message of each of these keys that the walk has met.';

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

create or replace function packhorse.pick_by_turns(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages, the keys in turn; p_since: by priority, what is older rests. Null:
-- so much was in the way that the next claim has to go on in this lap.
declare
  v_ids bigint[] := '{}';
  v_want integer := p_limit;
  v_last record;
  v_next record; -- turns: keys that are left of this stretch; key, priority, lap: where the next one begins
  v_took record;
  v_keyless record;
  v_steps integer := 2000; -- about 10 ms
  v_key text;
  v_stuck_keys text[] := '{}'; v_behind integer := 2000; v_whole boolean := true;
begin
  v_last := packhorse.noted_turn(p_queue.name, p_now);
  select null::packhorse.turn[] as turns, v_last.key as key, 32767 as priority, 0 as lap into v_next;
  for v_round in 1..30 loop
    exit when v_want <= 0 or v_next.turns is null and (v_next.lap = 2 or v_steps <= 0);
    if v_next.turns is null then -- a longer stretch where there was little to start
      v_next := packhorse.next_turns(p_queue, v_last.key, v_next.key, v_next.priority,
        v_next.lap, case v_round when 1 then v_want else greatest(v_want, 50) end, v_steps, p_now);
      v_steps := v_steps - v_next.steps;
      if v_next.keyless and v_last.pass <= 0 then -- one share for those without
        v_keyless := packhorse.pick_keyless(p_queue,
          ceil(v_want / (coalesce(cardinality(v_next.turns), 0) + 1.0))::integer, p_types, p_held, 1, p_now);
        v_last.looked_at := floor(extract(epoch from p_now));
        v_last.pass := v_keyless.pass;
        v_ids := v_ids || v_keyless.ids;
        v_want := p_limit - cardinality(v_ids);
        v_key := case when cardinality(v_keyless.ids) > 0 then '' end;
      end if;
      continue when v_next.turns is null or v_want <= 0;
    end if;
    v_took := packhorse.take_turns(p_queue, v_next.turns,
      -- rounds that met nothing but waiting conversations: so few at a time, they hide what stands behind
      case when v_round > 2 and v_ids = '{}' then greatest(v_want, 100) else v_want end,
      p_types, p_held, p_since, v_stuck_keys, v_ids, p_now);
    v_next.turns := v_took.turns;
    if v_took.ids is not null then
      v_key := v_took.keys[least(v_want, cardinality(v_took.keys))];
      v_ids := v_ids || v_took.ids[1 : v_want];
      v_want := p_limit - cardinality(v_ids);
    end if;
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
  perform packhorse.note_turn(p_queue.name, coalesce(v_key, v_next.key), v_last.noted_at, v_last.looked_at,
    v_last.pass - cardinality(v_ids), p_now)
  where v_key is not null or v_next.lap < 2;
  return case when cardinality(v_ids) > 0 then v_ids else packhorse.pick_first_of_stuck(
    p_queue, p_limit, p_types, p_held, v_stuck_keys, v_whole and v_next.lap = 2, p_now) end;
end
$$;
comment on function packhorse.pick_by_turns(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz)
  is 'Used by the claim: choose and lock messages of a queue, its keys in turn.';

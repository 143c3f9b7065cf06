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

create or replace function packhorse.last_turn(p_queue text, out key text, out noted_at double precision)
language plpgsql as $$
-- The key that this session served last in this queue; in a new session the one that is in queue_turns, and
-- noted_at (seconds since 1970) is null. '': begin with the first key.
declare
  v_noted constant text
    := current_setting(format('packhorse_queue.turn_%s', hashtext(p_queue) & 2147483647), true);
begin
  if v_noted <> '' then
    key := substr(v_noted, 12);
    noted_at := left(v_noted, 10)::double precision;
  else
    select t.last_key into key from packhorse.queue_turns t where t.queue = p_queue;
    key := coalesce(key, '');
  end if;
end
$$;
comment on function packhorse.last_turn(text)
  is 'Used by the claim: which key had the last turn in this queue.';

create or replace function packhorse.note_turn(
  p_queue text, p_key text, p_noted_at double precision, p_now timestamptz
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
    format('%s %s', p_noted_at::bigint, p_key), false);
end
$$;
comment on function packhorse.note_turn(text, text, double precision, timestamptz)
  is 'Used by the claim: remember which key had the last turn.';

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
begin
  with recursive walk (place, lap, key, priority, run_at, room, id, found) as (
    select 0, p_lap, p_key collate "C", p_priority, null::timestamptz, null::integer, null::bigint, 0
    union all
    select w.place + 1, w.lap + case when f.turn_key is null then 1 else 0 end, coalesce(f.turn_key, ''),
      coalesce(f.priority, 0), f.run_at, a.room, f.id,
      w.found + case when packhorse.is_due(f.run_at, p_now) and coalesce(a.room, 1) > 0 then 1 else 0 end
    from walk w
    left join lateral (
      select packhorse.turn_key(m) collate "C" as turn_key, m.priority::integer as priority, m.run_at, m.id
      from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending'
        and packhorse.turn_key(m) is not null -- so the index says
        and (packhorse.turn_key(m) collate "C", m.priority) > (w.key, w.priority)
      order by packhorse.turn_key(m) collate "C", m.priority, m.run_at limit 1) f on true
    left join lateral (
      select k.room from packhorse.key_allowance(p_queue, substr(f.turn_key, 2) collate "default", p_now) k
      where f.turn_key < 't') a on true
    where w.place < p_steps and w.found < p_limit and w.lap < 2 and not (w.lap = 1 and w.key > p_from)
  ), met as (
    select w.*, w.place > 0 and w.lap < 2 and not (w.lap = 1 and w.key > p_from) as inside from walk w
  )
  select array_agg((w.key, w.priority, w.room, w.run_at, w.id)::packhorse.turn order by w.place)
      filter (where w.inside and packhorse.is_due(w.run_at, p_now) and coalesce(w.room, 1) > 0),
    coalesce(bool_or(w.inside and w.key = ''), false),
    (array_agg(w.key order by w.place desc))[1], (array_agg(w.priority order by w.place desc))[1],
    max(case when w.place > 0 and not w.inside then 2 else w.lap end), max(w.place)
  into turns, keyless, key, priority, lap, steps from met w;
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
language plpgsql set enable_bitmapscan = off as $$
-- Lock the first messages of each of these keys, so many of each that they are p_limit together: ids with
-- their keys, the first of each, then the second. waiting: those that wait behind their conversation. turns:
-- what is left when these are fewer: keys that may have more, and further priorities of a key. Under limits
-- per key only the first 300 messages of a tenant are looked at: some of its own keys may be full.
declare
  v_share constant integer := ceil(p_limit::float8 / (select count(distinct t.key) from unnest(p_turns) t));
  v_key_limit constant boolean := packhorse.has_key_limit(p_queue);
  v_full bigint[]; -- places of keys that had as many as their share
begin
  -- of a tenant under a limit per key the first message may be one of a full key
  if cardinality(p_turns) >= p_limit and p_turns[1].id is not null
      and not (v_key_limit and p_turns[cardinality(p_turns)].key >= 't') then
    select f.* into ids, keys, waiting, turns
    from packhorse.take_first_of_each(p_queue, p_turns, p_types, p_held, p_since, p_picked, p_now) f;
    return;
  end if;
  select array_agg(c.id order by c.nth, t.place) filter (where c.free),
    array_agg(t.key order by c.nth, t.place) filter (where c.free),
    array_agg(c.id) filter (where not c.free), array_agg(t.place) filter (where c.nth = v_share)
  into ids, keys, waiting, v_full
  from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
  left join lateral (
    select b.run_at, b.id from packhorse.message_queue b
    where v_key_limit and t.key >= 't' and b.queue = p_queue.name and b.state = 'pending'
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
        -- crashes + 0: not the claim index, which a plan made on an empty table takes
        and not packhorse.runs_apart((m.crashes + 0)::smallint) and packhorse.is_due(m.run_at, p_now)
        and m.run_at >= greatest(t.run_at, p_since[t.priority]) -- not again over what the walk has passed
        and (m.run_at, m.id) < (coalesce(e.run_at, 'infinity'), coalesce(e.id, 9223372036854775807))
        and packhorse.is_worth_doing(m.expires_at, p_now)
        and packhorse.is_wanted(m.message_type, p_types, p_held)
        and (not v_key_limit or t.key < 't' or m.concurrency_key is null or exists (
          select from packhorse.key_allowance(p_queue, m.concurrency_key, p_now) k where k.room > 0))
        and (m.conversation_key is null or m.conversation_key <> all (p_stuck_keys))
        and m.id <> all (p_picked)
      order by m.run_at, m.id limit greatest(least(v_share, t.room), 0)
      for update of m skip locked) d) c
  where (p_turns[t.place - 1]).key is distinct from t.key; -- its first priority
  if coalesce(cardinality(ids), 0) < p_limit then
    turns := nullif(array(
      select (t.key, t.priority, t.room - v_share, t.run_at, null)::packhorse.turn
      from unnest(p_turns) with ordinality as t (key, priority, room, run_at, id, place)
      where t.place = any (v_full) or (p_turns[t.place - 1]).key = t.key order by t.place), '{}');
  end if;
  if v_key_limit and ids is not null then
    ids := packhorse.within_key_room(ids, p_picked, p_queue, p_now);
  end if;
end
$$;
comment on function packhorse.take_turns(packhorse.queues, packhorse.turn[], integer, text[], text[],
  timestamptz[], text[], bigint[], timestamptz)
  is 'Used by the claim: lock the first messages of each of these keys.';

create or replace function packhorse.take_first_of_each(
  p_queue packhorse.queues, p_turns packhorse.turn[], p_types text[], p_held text[], p_since timestamptz[],
  p_picked bigint[], p_now timestamptz,
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
  if packhorse.has_key_limit(p_queue) and ids is not null then
    ids := packhorse.within_key_room(ids, p_picked, p_queue, p_now);
  end if;
end
$$;
comment on function packhorse.take_first_of_each(packhorse.queues, packhorse.turn[], text[], text[],
  timestamptz[], bigint[], timestamptz)
  is 'Used by the claim: lock the message of each of these keys that the walk has met.';

create or replace function packhorse.look_without_key(
  p_queue text, p_since timestamptz[], p_ids bigint[], p_limit integer, p_looks_at integer,
  p_now timestamptz, out ids bigint[], out since timestamptz[], out last_ids bigint[], out seen integer,
  out whole boolean
)
language plpgsql set enable_bitmapscan = off as $$
-- The next p_looks_at due messages of the queue, by priority those behind (p_since, p_ids): ids of up to
-- p_limit of them without a key; since, last_ids: where to go on; seen: how many these are; whole: there are
-- no more.
begin
  with seen as (
    select m.*, count(*) filter (where m.keyless) over (order by m.priority, m.run_at, m.id) as nth
    from (
      select n.id, n.priority, n.run_at, n.keyless
      from generate_series(1, 10) as level (priority)
      cross join lateral (
        select m.id, m.priority::integer as priority, m.run_at, packhorse.turn_key(m) is null as keyless
        from packhorse.message_queue m
        where m.queue = p_queue and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
          and m.priority = level.priority and packhorse.is_due(m.run_at, p_now)
          and (m.run_at, m.id) > (coalesce(p_since[level.priority], '-infinity'),
                                  coalesce(p_ids[level.priority], -9223372036854775808))
        order by m.run_at, m.id limit p_looks_at) n
      limit p_looks_at) m
  ), kept as (
    select s.* from seen s where s.nth < p_limit or s.nth = p_limit and s.keyless
  ), last as (
    select distinct on (k.priority) k.priority, k.run_at, k.id from kept k
    order by k.priority, k.run_at desc, k.id desc
  )
  select (select array_agg(k.id) from kept k where k.keyless),
    array_agg(coalesce(l.run_at, p_since[p.priority]) order by p.priority),
    array_agg(coalesce(l.id, p_ids[p.priority]) order by p.priority),
    (select count(*) from kept), (select count(*) from seen) < p_looks_at and not exists (
      select from seen s where s.nth > p_limit or s.nth = p_limit and not s.keyless)
  into ids, since, last_ids, seen, whole
  from generate_series(1, 10) as p (priority) left join last l on l.priority = p.priority;
end
$$;
comment on function packhorse.look_without_key(text, timestamptz[], bigint[], integer, integer, timestamptz)
  is 'Used by the claim: the next messages without a key.';

create or replace function packhorse.pick_without_key(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_looks integer,
  p_now timestamptz, out ids bigint[], out whole boolean
)
language plpgsql as $$
-- Choose and lock up to p_limit messages without a key. No index has them apart: a session looks at the next
-- 300 messages of the queue, p_looks times at most (100 where p_looks is 1: every claim looks, and to walk as
-- fast as they take is enough), and goes on there the next time. Where that took more than one look, or where
-- there was none, it stays at the end for a second before it begins anew: what was handed back, or committed
-- late, stands further in front. whole: it has got to the end.
declare
  v_name constant text := format('packhorse_queue.keyless_%s', hashtext(p_queue.name) & 2147483647);
  v_noted text[] := string_to_array(nullif(current_setting(v_name, true), ''), '|', '');
  v_seen integer := coalesce(v_noted[4]::integer, 0);
  v_look record;
  v_found bigint[];
  v_waiting bigint[];
begin
  ids := '{}';
  whole := false;
  if v_noted is null or v_noted[5] = 'end' and v_noted[1]::timestamptz < p_now - interval '1 second' then
    v_noted := array[p_now::text, null, null];
    v_seen := 0;
  elsif v_noted[5] = 'end' and v_noted[6] = 'none' and p_looks = 1 then
    whole := true;
    return;
  end if;
  v_noted[6] := nullif(v_noted[6], 'none');
  for v_round in 1..p_looks loop
    v_look := packhorse.look_without_key(p_queue.name, v_noted[2]::timestamptz[], v_noted[3]::bigint[],
      p_limit - cardinality(ids), case when p_looks = 1 then 100 else 300 end, p_now);
    v_noted[2] := v_look.since::text;
    v_noted[3] := v_look.last_ids::text;
    v_seen := v_seen + v_look.seen;
    whole := v_look.whole;
    if v_look.ids is not null then
      v_noted[6] := 'some';
      with met as (
        select m.id, m.conversation_key is null
            or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free
        from packhorse.message_queue m
        where m.id = any (v_look.ids) and m.state = 'pending'
          and packhorse.is_worth_doing(m.expires_at, p_now)
          and packhorse.is_wanted(m.message_type, p_types, p_held)
        for update of m skip locked
      )
      select array_agg(m.id) filter (where m.free), array_agg(m.id) filter (where not m.free)
      into v_found, v_waiting from met m;
      ids := ids || v_found;
      perform packhorse.pass_waiting(v_waiting, 1000) where v_waiting is not null;
    end if;
    exit when whole or cardinality(ids) >= p_limit;
  end loop;
  perform set_config(v_name, case when not whole or v_seen > 300 or v_noted[6] is null
    then array_to_string(v_noted[1:3] || array[v_seen::text, case when whole then 'end' else 'on' end,
      coalesce(v_noted[6], 'none')], '|', '')
    else '' end, false);
end
$$;
comment on function packhorse.pick_without_key(packhorse.queues, integer, text[], text[], integer,
  timestamptz)
  is 'Used by the claim: choose and lock messages that have no key.';

create or replace function packhorse.pick_by_turns(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_since timestamptz[],
  p_now timestamptz
) returns bigint[]
language plpgsql as $$
-- Choose and lock up to p_limit messages, the keys in turn. Null: so much was in the way that not all of the
-- ring has been looked at; the next claim goes on there. p_since: by priority, what is older rests.
declare
  v_ids bigint[] := '{}';
  v_want integer := p_limit;
  v_last record;
  v_next record; -- turns: keys that are left of this stretch; key, priority, lap: where the next one begins
  v_took record;
  v_keyless record;
  v_steps integer := 2000; -- about 10 ms
  v_key text;
  v_keys integer;
  v_stuck_keys text[] := '{}';
  v_behind integer := 2000;
  v_whole boolean := true;
begin
  v_last := packhorse.last_turn(p_queue.name);
  select null::packhorse.turn[] as turns, v_last.key as key, 32767 as priority, 0 as lap into v_next;
  for v_round in 1..30 loop
    exit when v_want <= 0 or v_next.turns is null and (v_next.lap = 2 or v_steps <= 0);
    if v_next.turns is null then -- a longer stretch where there was little to start
      v_next := packhorse.next_turns(p_queue, v_last.key, v_next.key, v_next.priority,
        v_next.lap, case v_round when 1 then v_want else greatest(v_want, 50) end, v_steps, p_now);
      v_steps := v_steps - v_next.steps;
      if v_next.keyless then
        v_keys := coalesce(cardinality(v_next.turns), 0); -- and one share for those without
        v_keyless := packhorse.pick_without_key(
          p_queue, (v_want + v_keys) / (v_keys + 1), p_types, p_held, 1, p_now);
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
    v_keyless := packhorse.pick_without_key(p_queue, v_want, p_types, p_held, 10, p_now);
    v_ids := v_ids || v_keyless.ids;
    v_whole := v_whole and v_keyless.whole;
  end if;
  perform packhorse.note_turn(p_queue.name, coalesce(v_key, v_next.key), v_last.noted_at, p_now)
  where v_key is not null or v_next.lap < 2;
  return case when cardinality(v_ids) > 0 or v_whole and v_next.lap = 2 then v_ids end;
end
$$;
comment on function packhorse.pick_by_turns(packhorse.queues, integer, text[], text[], timestamptz[],
  timestamptz)
  is 'Used by the claim: choose and lock messages of a queue, its keys in turn.';

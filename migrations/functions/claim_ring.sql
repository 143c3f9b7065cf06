-- Ring: the keys of a queue with fair_share, or with a limit per key, and where a session stands on it
-- (SPEC Q8c, Q8).
--
-- What waits lies on a ring, in the order of turn_key: concurrency keys of messages that have no tenant ('c'
-- and the key), then tenants ('t' and the fairness_key), then, as one share, all messages without a key. A
-- claim starts behind the key that this session served last.
--
-- To find the next keys (walk_ring) costs a look at the index for each, more than all else that a claim does
-- with a message of it. So a session keeps the keys that a walk has met as a list, and its next claims take
-- them from there, round and round when the list has the whole ring. A list is old after twenty times the
-- time of its walk, 20 to 250 ms; a claim that finds less than it wants walks anew at once. So only where all
-- is busy a new key waits for that long, and walks cost about a twentieth.
--
-- Place and list are settings of the session: a row that every claim writes would make claims wait for each
-- other, and under an old snapshot all its dead versions would be walked. queue_turns has the place for
-- sessions that have just begun. Whatever they say, a claim is right: they only decide who comes first.
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
  out looked_at double precision, out pass integer, out taken integer
)
language plpgsql as $$
-- The key that this session served last in this queue; in a new session the one that is in queue_turns, and
-- noted_at (seconds since 1970) is null. '': begin with the first key. looked_at: when it last looked for
-- messages without a key. pass: so many of keys may start before it looks again, but once a second it does.
-- taken: so many turns of its list it has used.
declare
  v_noted constant text
    := current_setting(format('packhorse_queue.turn_%s', hashtext(p_queue) & 2147483647), true);
begin
  if v_noted <> '' then
    key := substr(v_noted, 36);
    noted_at := left(v_noted, 10)::double precision;
    looked_at := substr(v_noted, 12, 10)::double precision;
    pass := case when looked_at = floor(date_part('epoch', p_now)) then substr(v_noted, 23, 4)::integer
      else 0 end;
    taken := substr(v_noted, 28, 7)::integer;
  else
    select t.last_key into key from packhorse.queue_turns t where t.queue = p_queue;
    key := coalesce(key, '');
    pass := 0;
    taken := 0;
  end if;
end
$$;
comment on function packhorse.noted_turn(text, timestamptz)
  is 'Used by the claim: which key had the last turn in this queue.';

create or replace function packhorse.note_turn(
  p_queue text, p_key text, p_noted_at double precision, p_looked_at double precision, p_pass integer,
  p_taken integer, p_now timestamptz
) returns void
language plpgsql as $$
-- The last turn was that of p_key, after p_taken turns of the list; null: the list is dropped, for there is
-- less than it says. Written to queue_turns by a session that is new (p_noted_at null) and once a second by
-- others; never waited for.
declare
  v_now constant double precision := floor(date_part('epoch', p_now));
begin
  if p_noted_at is null or p_noted_at not between v_now - 1 and v_now then
    update packhorse.queue_turns t set last_key = p_key
    where t.queue = any (array(
      select l.queue from packhorse.queue_turns l where l.queue = p_queue for update skip locked));
    p_noted_at := v_now;
  end if;
  perform packhorse.drop_list(p_queue) where p_taken is null;
  perform set_config(format('packhorse_queue.turn_%s', hashtext(p_queue) & 2147483647),
    format('%s %s %s %s %s', p_noted_at::bigint, coalesce(p_looked_at::bigint, 1000000000),
      lpad(greatest(p_pass, 0)::text, 4, '0'), lpad((coalesce(p_taken, 0) % 1000000)::text, 7, '0'), p_key),
    false);
end
$$;
comment on function packhorse.note_turn(text, text, double precision, double precision, integer, integer,
  timestamptz)
  is 'Used by the claim: remember which key had the last turn.';

create or replace function packhorse.list_turns(
  p_queue text, p_walk packhorse.ring_walk, p_walked interval, p_now timestamptz
) returns void
language plpgsql as $$
-- Keep the turns of a walk from its beginning for the next claims of this session; 32 in a setting, so that a
-- claim reads few more than it wants. p_walked: how long the walk took. Of fewer than 16 only the number is
-- kept: to walk past them costs little.
declare
  v_name constant text := format('packhorse_queue.ring_%s', hashtext(p_queue) & 2147483647);
  v_turns constant integer := coalesce(cardinality(p_walk.turns), 0);
begin
  if v_turns >= 16 then
    for v_part in 0..(v_turns - 1) / 32 loop
      perform set_config(format('%s_%s', v_name, v_part),
        p_walk.turns[v_part * 32 + 1 : v_part * 32 + 32]::text, false);
    end loop;
  end if;
  perform set_config(v_name, array[
    (date_part('epoch', p_now + least(greatest(p_walked * 20, interval '20 milliseconds'),
      interval '250 milliseconds')) * 1000)::bigint,
    v_turns, p_walk.before_end, (p_walk.lap = 2)::integer]::text, false);
end
$$;
comment on function packhorse.list_turns(text, packhorse.ring_walk, interval, timestamptz)
  is 'Used by the claim: keep the keys that a walk has met for the next claims of the session.';

create or replace function packhorse.drop_list(p_queue text) returns void
language plpgsql as $$
begin
  perform set_config(format('packhorse_queue.ring_%s', hashtext(p_queue) & 2147483647), '', false);
end
$$;
comment on function packhorse.drop_list(text) is 'Used by the claim: forget the keys of list_turns.';

create or replace function packhorse.fresh_list(p_queue text, p_now timestamptz) returns bigint[]
language plpgsql as $$
-- What list_turns has noted of the list: how long it is good for, how many turns it has, how many of them
-- come before the end of the ring, and 1 when they are the whole ring. Null: there is none, or it is old.
declare
  v_list constant bigint[] := nullif(
    current_setting(format('packhorse_queue.ring_%s', hashtext(p_queue) & 2147483647), true), '')::bigint[];
begin
  return case when v_list[1] >= date_part('epoch', p_now) * 1000 then v_list end;
end
$$;
comment on function packhorse.fresh_list(text, timestamptz)
  is 'Used by the claim: what the session has noted of its list of keys.';

create or replace function packhorse.ring_is_empty(p_queue text, p_now timestamptz) returns boolean
language plpgsql as $$
-- Has no message that waits in this queue a key? Then a claim looks as it does in an ordinary queue.
declare
  v_list constant bigint[] := packhorse.fresh_list(p_queue, p_now);
begin
  return coalesce(v_list[2], 0) = 0 and not exists (
    select from packhorse.message_queue m
    where m.queue = p_queue and m.state = 'pending' and packhorse.turn_key(m) is not null);
end
$$;
comment on function packhorse.ring_is_empty(text, timestamptz)
  is 'Used by the claim: has no message that waits in this queue a key?';

create or replace function packhorse.listed_turns(
  p_queue packhorse.queues, p_taken integer, p_limit integer, p_now timestamptz,
  out turns packhorse.turn[], out places integer[], out keyless boolean, out reach integer
)
language plpgsql as $$
-- The next turns of the session's list, p_limit at most, each key once; p_taken of it have been used. Null:
-- there is no list, or it is old, or has fewer left and is not the whole ring. places: how many turns of the
-- list each of them stands for, with the full keys before it. keyless: those without a key have their turn,
-- too. reach: for so many keys a walk looks, twice as many as were used of the last one.
declare
  v_name constant text := format('packhorse_queue.ring_%s', hashtext(p_queue.name) & 2147483647);
  v_list constant bigint[] := packhorse.fresh_list(p_queue.name, p_now);
  v_turns constant integer := v_list[2];
  v_whole constant boolean := v_list[4] = 1;
  v_left integer; v_place integer; v_part packhorse.turn[];
begin
  reach := greatest(p_limit, least(2 * p_taken, 1024), 32);
  if v_list is null then
    return;
  elsif v_turns < 16 then
    reach := case when v_whole then p_limit else reach end;
    return;
  end if;
  if not v_whole and v_turns - p_taken < p_limit then -- others come before their second turn
    return;
  end if;
  v_left := least(p_limit, v_turns);
  v_place := p_taken % v_turns;
  keyless := (v_list[3] - v_place + v_turns) % v_turns < v_left;
  while v_left > 0 loop
    v_part := current_setting(format('%s_%s', v_name, v_place / 32))::packhorse.turn[];
    v_part := v_part[v_place % 32 + 1 : v_place % 32 + v_left];
    turns := turns || v_part;
    v_place := (v_place + cardinality(v_part)) % v_turns;
    v_left := v_left - cardinality(v_part);
  end loop;
  if packhorse.has_key_limit(p_queue) then
    v_left := cardinality(turns);
    select array_agg((t.key, t.priority, t.since, r.room)::packhorse.turn), array_agg(t.place)
    into turns, places
    from unnest(turns) with ordinality as t (key, priority, since, room, place)
    cross join lateral (select packhorse.turn_room(p_queue, t.key, p_now) as room offset 0) r
    where coalesce(r.room, 1) > 0;
    if cardinality(turns) < v_left and v_left < v_turns then -- others come before their second turn
      turns := null;
    end if;
  end if;
end
$$;
comment on function packhorse.listed_turns(packhorse.queues, integer, integer, timestamptz)
  is 'Used by the claim: the next keys of those that the session has kept.';

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

create or replace function packhorse.walk_ring(
  p_queue packhorse.queues, p_from text, p_walk packhorse.ring_walk, p_limit integer, p_now timestamptz
) returns packhorse.ring_walk
language plpgsql set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off as $$
-- Go on with a walk that began behind p_from: to the next p_limit keys that have a message that is due; full
-- ones are passed over.
declare
  v_key_limit constant boolean := packhorse.has_key_limit(p_queue);
  v_walk packhorse.ring_walk;
begin
  with recursive walk (place, lap, key, priority, run_at, room, starts, again, found) as (
    select 0, p_walk.lap, p_walk.key collate "C", p_walk.priority, null::timestamptz, null::integer, false,
      false, 0
    union all
    select w.place + 1, case when f.turn_key is null then w.lap + 1
        when w.lap = 1 and f.turn_key > p_from then 2 else w.lap end,
      coalesce(f.turn_key, ''), coalesce(f.priority, 0), f.run_at, a.room, s.starts, s.again,
      w.found + (s.starts and not s.again)::integer
    from walk w
    left join lateral (
      select packhorse.turn_key(m) collate "C" as turn_key, m.priority::integer as priority, m.run_at
      from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending'
        and packhorse.turn_key(m) is not null -- so the index says
        and (packhorse.turn_key(m) collate "C", m.priority) > (w.key, w.priority)
      order by packhorse.turn_key(m) collate "C", m.priority, m.run_at limit 1) f on true
    cross join lateral (
      select case when v_key_limit then packhorse.turn_room(p_queue, f.turn_key, p_now) end as room
      offset 0) a -- asked once for each
    cross join lateral (
      select f.turn_key is not null and packhorse.is_due(f.run_at, p_now) and coalesce(a.room, 1) > 0
          as starts,
        f.turn_key = w.key and (w.starts or w.again) as again) s
    where w.place < p_walk.steps and w.found < p_limit and w.lap < 2
  )
  -- in the order of the walk, which no aggregate has to sort
  select array_agg((w.key, w.priority, date_part('epoch', w.run_at) - 0.001, w.room)::packhorse.turn)
      filter (where w.lap < 2 and w.starts and not w.again),
    array_agg((w.key, w.priority, date_part('epoch', w.run_at) - 0.001, w.room)::packhorse.turn)
      filter (where w.lap < 2 and w.starts and w.again),
    case when bool_or(w.place > 0 and w.lap < 2 and w.key = '')
      then count(*) filter (where w.lap = p_walk.lap and w.starts and not w.again) end,
    (array_agg(w.key))[count(*)::integer], (array_agg(w.priority))[count(*)::integer],
    max(w.lap), p_walk.steps - max(w.place)
  into v_walk from walk w;
  return v_walk;
end
$$;
comment on function packhorse.walk_ring(packhorse.queues, text, packhorse.ring_walk, integer, timestamptz)
  is 'Used by the claim: the keys whose turn it is.';

create or replace function packhorse.first_walk(
  p_queue packhorse.queues, p_from text, p_reach integer, p_now timestamptz
) returns packhorse.ring_walk
language plpgsql as $$
-- Walk from behind p_from to the next p_reach keys, and keep them as the list when they are worth it.
declare
  v_began constant timestamptz := clock_timestamp();
  v_walk packhorse.ring_walk := (null, null, null, p_from, 32767, 0, 2000); -- 2,000 steps: about 10 ms
begin
  v_walk := packhorse.walk_ring(p_queue, p_from, v_walk, p_reach, p_now);
  if p_reach >= 32 then
    perform packhorse.list_turns(p_queue.name, v_walk, clock_timestamp() - v_began, p_now);
  end if;
  return v_walk;
end
$$;
comment on function packhorse.first_walk(packhorse.queues, text, integer, timestamptz)
  is 'Used by the claim: the keys whose turn it is, kept for the next claims of the session.';

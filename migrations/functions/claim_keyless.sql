-- Messages without a key in a queue whose keys take turns (claim_turns.sql): one share, which no index has
-- apart.

create or replace function packhorse.look_without_key(
  p_queue text, p_since timestamptz[], p_ids bigint[], p_limit integer, p_looks_at integer,
  p_hopeless boolean, p_now timestamptz, out ids bigint[], out since timestamptz[], out last_ids bigint[],
  out seen integer, out whole boolean
)
language plpgsql set enable_bitmapscan = off as $$
-- The next p_looks_at due messages of the queue, by priority those behind (p_since, p_ids): ids of up to
-- p_limit of them without a key; since, last_ids: where to go on; seen: how many these are; whole: there are
-- no more. p_hopeless: the last look found none, so pass_keys comes first.
begin
  if p_hopeless then
    select k.since, k.last_ids, k.seen, k.whole into since, last_ids, seen, whole
    from packhorse.pass_keys(p_queue, p_since, p_ids, 300, p_now) k;
    if seen is not null then
      return;
    end if;
  end if;
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
comment on function packhorse.look_without_key(text, timestamptz[], bigint[], integer, integer, boolean,
  timestamptz) is 'Used by the claim: the next messages without a key.';

create or replace function packhorse.pass_keys(
  p_queue text, p_since timestamptz[], p_ids bigint[], p_looks_at integer, p_now timestamptz,
  out since timestamptz[], out last_ids bigint[], out seen integer, out whole boolean
)
language plpgsql set enable_bitmapscan = off set enable_sort = off as $$
-- look_without_key where there is probably none, for a small part of its price: at up to p_looks_at messages
-- of each priority. All null: one of them has no key.
declare
  v_some boolean;
begin
  select array_agg(coalesce(l.run_at, p_since[p.priority]) order by p.priority),
    array_agg(coalesce(l.id, p_ids[p.priority]) order by p.priority),
    sum(l.seen), max(l.seen) < p_looks_at, bool_or(l.keyless)
  into since, last_ids, seen, whole, v_some
  from generate_series(1, 10) as p (priority)
  cross join lateral (
    select count(*)::integer as seen, bool_or(n.keyless) as keyless, max(n.run_at) as run_at,
      (array_agg(n.id))[count(*)::integer] as id
    from (
      select m.id, m.run_at, packhorse.turn_key(m) is null as keyless from packhorse.message_queue m
      where m.queue = p_queue and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
        and m.priority = p.priority and packhorse.is_due(m.run_at, p_now)
        and (m.run_at, m.id) > (coalesce(p_since[p.priority], '-infinity'),
                                coalesce(p_ids[p.priority], -9223372036854775808))
      order by m.run_at, m.id limit p_looks_at) n) l;
  if v_some then
    select null, null, null, null into since, last_ids, seen, whole;
  end if;
end
$$;
comment on function packhorse.pass_keys(text, timestamptz[], bigint[], integer, timestamptz)
  is 'Used by the claim: pass the next messages of a queue, if all of them have keys.';

create or replace function packhorse.pick_keyless(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_held text[], p_looks integer,
  p_now timestamptz, out ids bigint[], out whole boolean, out pass integer
)
language plpgsql as $$
-- Choose and lock up to p_limit messages without a key. No index has them apart: a session looks at the next
-- 300 messages of the queue, p_looks times at most, and goes on there the next time. Where that took more
-- than one look, or where there was none, it stays at the end for a second before it begins anew: what was
-- handed back, or committed late, stands further in front. whole: it has got to the end. pass: so many
-- messages of keys may start before the next look, which is to walk as fast as they take. The last of what is
-- noted: how many of the last look had no key (none, some, all).
declare
  v_name constant text := format('packhorse_queue.keyless_%s', hashtext(p_queue.name) & 2147483647);
  v_noted text[] := string_to_array(nullif(current_setting(v_name, true), ''), '|', '');
  v_seen integer := coalesce(v_noted[4]::integer, 0);
  v_look record;
  v_found bigint[]; v_waiting bigint[];
begin
  ids := '{}';
  whole := false;
  pass := 300;
  if v_noted is null or v_noted[5] = 'end' and v_noted[1]::timestamptz < p_now - interval '1 second' then
    v_noted := array[p_now::text, null, null, null, null, null, v_noted[7]];
    v_seen := 0;
  elsif v_noted[5] = 'end' and v_noted[6] = 'none' and p_looks = 1 then
    whole := true;
    return;
  end if;
  v_noted[6] := nullif(v_noted[6], 'none');
  for v_round in 1..p_looks loop
    v_look := packhorse.look_without_key(p_queue.name, v_noted[2]::timestamptz[], v_noted[3]::bigint[],
      p_limit - cardinality(ids),
      case when p_looks > 1 then 300 when v_noted[7] = 'all' then p_limit else 100 end,
      v_noted[7] = 'none', p_now);
    v_noted[7] := case when v_look.ids is null then 'none'
      when cardinality(v_look.ids) = v_look.seen then 'all' else 'some' end;
    v_noted[2:3] := array[v_look.since::text, v_look.last_ids::text];
    v_seen := v_seen + v_look.seen;
    whole := v_look.whole;
    if v_look.ids is not null then
      v_noted[6] := 'some';
      pass := 0;
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
      coalesce(v_noted[6], 'none'), v_noted[7]], '|', '')
    else '' end, false);
end
$$;
comment on function packhorse.pick_keyless(packhorse.queues, integer, text[], text[], integer,
  timestamptz)
  is 'Used by the claim: choose and lock messages that have no key.';

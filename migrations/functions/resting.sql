-- Claims while something rests (SPEC W10, Q8d): what they leave, the one probe of a scope, and how they pass
-- over a backlog that rests. While nothing is parked none of this runs: a claim looks at an empty index and
-- goes on.

create or replace function packhorse.what_rests(p_now timestamptz) returns packhorse.resting
language plpgsql as $$
-- All scopes that are parked or probing, as a claim needs them.
declare
  v_rest packhorse.resting;
  v_live packhorse.scopes[] := array(select s from packhorse.scopes s where s.ends_at > p_now
    order by s.probe_at nulls first, s.name);
  v_stops packhorse.scopes[] := array(select l from unnest(v_live) l where packhorse.scope_rests(l, p_now));
begin
  v_rest.held := packhorse.patterns_first(array(select distinct t.name from unnest(v_live) l
    cross join unnest(l.message_types) as t (name)));
  v_rest.closed := array(select l.queue from unnest(v_live) l where l.queue is not null);
  v_rest.stopped := packhorse.patterns_first(array(select distinct t.name from unnest(v_stops) l
    cross join unnest(l.message_types) as t (name)));
  v_rest.probing := array(select l.name from unnest(v_live) l
    where l.name <> all (array(select o.name from unnest(v_stops) o)));
  v_rest.next_at := (select min(l.parked_until) from unnest(v_live) l where l.parked_until > p_now);
  return v_rest;
end
$$;
comment on function packhorse.what_rests(timestamptz) is
  'Used by the claim: types and queues that rest, and scopes of which a probe may start.';

create or replace function packhorse.what_relays_leave(p_now timestamptz) returns packhorse.resting
language sql stable as $$
-- what_rests for a relay. What it publishes says nothing of a service, so it has no probes: it leaves scopes
-- whose time is not over, and workers on RabbitMQ let one message at a time start of those that are probing.
  select packhorse.patterns_first(array(select distinct t.name from packhorse.scopes s
      cross join unnest(s.message_types) as t (name) where s.ends_at > p_now and s.parked_until > p_now)),
    array(select s.queue from packhorse.scopes s
      where s.ends_at > p_now and s.parked_until > p_now and s.queue is not null),
    '{}'::text[], '{}'::text[],
    (select min(s.parked_until) from packhorse.scopes s where s.ends_at > p_now and s.parked_until > p_now);
$$;
comment on function packhorse.what_relays_leave(timestamptz) is
  'Used by the claim: types and queues that rest for a relay.';

create or replace function packhorse.enter_scopes(p_id bigint, p_now timestamptz) returns boolean
language plpgsql as $$
-- May this message, locked by the caller, start as far as its scopes go? When one of them is probing it is
-- the probe: remembered there. Waits for nobody: who has a row of `scopes` locked may be starting one.
declare
  v_type text;
  v_queue text;
  v_names text[];
begin
  select m.message_type, m.queue into v_type, v_queue from packhorse.message_queue m where m.id = p_id;
  v_names := array(
    select s.name from packhorse.scopes s
    where s.ends_at > p_now and packhorse.scope_covers(s, v_type, v_queue) for update skip locked);
  -- a statement of its own: it sees what whoever had the lock has done
  if exists (
    select from packhorse.scopes s
    where s.ends_at > p_now and packhorse.scope_covers(s, v_type, v_queue)
      and (s.name <> all (v_names) or packhorse.scope_rests(s, p_now))) then
    return false;
  end if;
  update packhorse.scopes s set probe_id = p_id, probe_at = p_now where s.name = any (v_names) and s.probing;
  return true;
end
$$;
comment on function packhorse.enter_scopes(bigint, timestamptz) is
  'Used by the claim: may a message start as far as its scopes go? It may be their probe.';

create or replace function packhorse.find_first_wanted(p_queue text, p_types text[], p_held text[],
  p_now timestamptz) returns timestamptz[]
language plpgsql as $$
-- By priority, since when the oldest message is due that a claim of these types would look at; walks over all
-- before it. At most two seconds ago: one of a transaction that commits late is older than what others have
-- seen.
begin
  return array(
    select least(f.run_at, p_now - interval '2 seconds')
    from generate_series(1, 10) as level (priority)
    left join lateral (
      select m.run_at from packhorse.message_queue m
      where m.queue = p_queue and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
        and m.priority = level.priority
        and packhorse.is_due(m.run_at, p_now) and packhorse.is_wanted(m.message_type, p_types, p_held)
      order by m.run_at, m.id limit 1) f on true
    order by level.priority);
end
$$;
comment on function packhorse.find_first_wanted(text, text[], text[], timestamptz) is
  'Used by the claim: by priority, where the first message is that does not rest.';

create or replace function packhorse.pass_over_resting(p_queue text, p_types text[], p_held text[],
  p_since timestamptz[], p_now timestamptz)
returns timestamptz[]
language plpgsql as $$
-- Where a claim of these types is to start looking: p_since, or behind a backlog that rests. That walk is
-- made by one claim of the fleet, and for a twentieth of the time at most; the others use what it has found.
-- What appears before that place (a message that is handed back, say) is found by the next walk. Where a walk
-- is quick there is nothing to pass over.
declare
  v_key constant text := md5(concat_ws('|', coalesce(p_types::text, 'all'), p_held));
  v_mark packhorse.claim_marks;
  v_began timestamptz;
begin
  select * into v_mark from packhorse.claim_marks c where c.queue = p_queue and c.types_key = v_key;
  if (v_mark.looked_at is null
    or p_now > v_mark.looked_at + greatest(interval '1 second', 20::float8 * v_mark.took))
      and pg_try_advisory_xact_lock(hashtext('packhorse claim_marks'), hashtext(p_queue || v_key)) then
    v_began := clock_timestamp();
    v_mark.since := packhorse.find_first_wanted(p_queue, p_types, p_held, p_now);
    v_mark.took := clock_timestamp() - v_began;
    insert into packhorse.claim_marks (queue, types_key, since, looked_at, took)
    values (p_queue, v_key, v_mark.since, p_now, v_mark.took)
    on conflict (queue, types_key) do update
    set since = excluded.since, looked_at = excluded.looked_at, took = excluded.took;
    delete from packhorse.claim_marks c where (c.queue, c.types_key) in (
      select o.queue, o.types_key from packhorse.claim_marks o where o.looked_at < p_now - interval '1 hour'
      for update skip locked);
  end if;
  if v_mark.since is null or v_mark.took < interval '5 milliseconds' then
    return p_since;
  end if;
  return array(
    select greatest(p_since[level.priority], v_mark.since[level.priority])
    from generate_series(1, 10) as level (priority) order by level.priority);
end
$$;
comment on function packhorse.pass_over_resting(text, text[], text[], timestamptz[], timestamptz)
  is 'Used by the claim: where to start looking, behind a backlog that rests.';

create or replace function packhorse.names_of_both(p_ours text[], p_theirs text[]) returns text[]
language sql immutable as $$
-- Names of the types that stand in both lists; of two patterns the longer one. p_theirs may have exceptions,
-- which stay.
  with shared as (
    select o.name from unnest(p_ours) as o (name) where packhorse.names_type(p_theirs, o.name)
    union select t.name from unnest(p_theirs) as t (name) where packhorse.names_type(p_ours, t.name)
  )
  select packhorse.patterns_first(array(
    select s.name from shared s
    union select t.name from unnest(p_theirs) as t (name)
    where t.name like '!%' and exists (select from shared)));
$$;
comment on function packhorse.names_of_both(text[], text[]) is
  'Used by pick_probe: the types of a scope that a claim takes.';

create or replace function packhorse.pick_probe(p_queue packhorse.queues, p_types text[],
  p_rest packhorse.resting, p_isolated boolean, p_now timestamptz)
returns bigint[]
language plpgsql as $$
-- Choose and lock one message of this queue that probes its scope; none when no scope wants one, or another
-- claim was first.
declare
  v_scope packhorse.scopes;
  v_types text[];
  v_ids bigint[];
begin
  for v_scope in
    select s.* from unnest(p_rest.probing) with ordinality as p (name, place) join packhorse.scopes s
      on s.name = p.name
    where coalesce(s.queue = p_queue.name, true) order by p.place
  loop
    v_types := case when v_scope.queue is not null then p_types
      when p_types is null then v_scope.message_types
      else packhorse.names_of_both(v_scope.message_types, p_types) end;
    continue when v_types = '{}';
    v_ids := packhorse.pick_from_queue(p_queue, 1, v_types, p_rest.stopped,
      packhorse.pass_over_resting(p_queue.name, v_types, p_rest.stopped, null, p_now), null, p_isolated, '{}',
      p_now);
    if cardinality(v_ids) = 1 and packhorse.enter_scopes(v_ids[1], p_now) then
      return v_ids;
    end if;
  end loop;
  return '{}';
end
$$;
comment on function packhorse.pick_probe(packhorse.queues, text[], packhorse.resting, boolean, timestamptz)
  is 'Used by the claim: choose and lock one message that probes a scope.';

create or replace function packhorse.pick_beside_resting(
  p_queue packhorse.queues, p_limit integer, p_types text[], p_rest packhorse.resting, p_since timestamptz[],
  p_until timestamptz[], p_isolated boolean, p_first bigint[], p_now timestamptz, out ids bigint[],
  out probed boolean
)
language plpgsql as $$
-- pick_from_queue while something rests: one probe at most, and what does not rest. probed: there is a probe
-- among them. One in a claim: two could be of one scope.
declare
  v_some bigint[];
begin
  ids := '{}';
  if cardinality(p_rest.probing) > 0 then
    ids := packhorse.pick_probe(p_queue, p_types, p_rest, p_isolated, p_now);
  end if;
  probed := cardinality(ids) > 0;
  if p_limit <= cardinality(ids) or p_queue.name = any (p_rest.closed) then
    return;
  end if;
  v_some := packhorse.pick_from_queue(p_queue, p_limit - cardinality(ids), p_types, p_rest.held,
    case when p_isolated then p_since
      else packhorse.pass_over_resting(p_queue.name, p_types, p_rest.held, p_since, p_now) end,
    p_until, p_isolated, p_first, p_now);
  ids := case when v_some is not null or probed then ids || coalesce(v_some, '{}') end;
end
$$;
comment on function packhorse.pick_beside_resting(packhorse.queues, integer, text[], packhorse.resting,
  timestamptz[], timestamptz[], boolean, bigint[], timestamptz)
  is 'Used by the claim: choose and lock messages of one queue while something rests.';

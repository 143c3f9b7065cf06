-- Parked scopes: messages that share something rest, and spend no attempt (SPEC W10). The gates are in
-- gates.sql, what claims do in resting.sql.
--
-- A scope is a name: of a service that actors say they call (policy `services`), `actor:<type>`,
-- `queue:<queue>`, or any other. Its types are found when it is parked, and added when a worker registers one
-- or a message of one asks for it.

create or replace function packhorse.check_scope(p_scope text) returns void
language plpgsql immutable as $$
-- Raise PH001 for a bad name of a scope.
begin
  if p_scope is null or length(p_scope) not between 1 and 200 then
    perform packhorse.refuse_argument('scope',
      case when p_scope is null then 'must not be null' else format('has %s characters', length(p_scope)) end,
      '1 to 200: the name of a service, actor:<type> or queue:<queue>.');
  end if;
end
$$;
comment on function packhorse.check_scope(text) is 'Raise PH001 unless the name of a scope is well formed.';

create or replace function packhorse.scope_types(p_scope text, p_more text[] default '{}') returns text[]
language sql stable as $$
-- The types of a scope: those whose actors name it as a service, that of `actor:<type>`, and p_more; at most
-- 1000.
  select array(
    select n.name from (
      select t.name::text from packhorse.message_types t
      where jsonb_typeof(t.policy -> 'services') = 'array' and t.policy -> 'services' @> to_jsonb(p_scope)
      union select substring(p_scope from 7) where p_scope like 'actor:_%'
      union select u.name from unnest(p_more) as u (name)) n
    where n.name is not null order by right(n.name, 1) <> '*', n.name limit 1000); -- as names_type wants them
$$;
comment on function packhorse.scope_types(text, text[]) is 'Types that belong to a scope.';

create or replace function packhorse.says_nothing_new(p_row packhorse.scopes, p_until timestamptz,
  p_slack interval, p_types text[], p_probing boolean)
returns boolean
language sql immutable as $$
-- Would a park until then change nothing that matters? Thousands of handlers may meet the same refusal within
-- a second.
  select coalesce(p_row.parked_until >= p_until - p_slack and p_types <@ p_row.message_types
    and (p_row.probing or not p_probing), false);
$$;
comment on function packhorse.says_nothing_new(packhorse.scopes, timestamptz, interval, text[], boolean) is
  'Used by park_scope: is the scope parked like that already?';

create or replace function packhorse.park_scope(
  p_scope text, p_for interval, p_reason text default null, p_types text[] default null,
  p_probing boolean default false, p_by text default current_user, p_operator text default null
) returns timestamptz
language plpgsql set lock_timeout = '500ms' as $$
-- No message of the scope starts until now + p_for, which is at most a day; returns until when. Never
-- shortens a park, and writes nothing when the scope is parked until about then. p_types: types that belong
-- to it beside those that say so. p_probing: after that time one message at a time starts, until somebody
-- lifts or parks it. p_operator, for a person: it is recorded, and does as it is told: it may shorten, and
-- last for up to ten years. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_until timestamptz;
  v_types constant text[] := packhorse.scope_types(p_scope, p_types);
  v_slack interval := '-1 second';
  v_found timestamptz;
begin
  perform packhorse.check_scope(p_scope);
  if p_for is null or p_for not between interval '0' and interval '3660 days' then
    perform packhorse.refuse_argument('for', format('%s is out of range', coalesce(p_for::text, 'null')),
      '0 to ten years.');
  elsif p_operator is null then
    v_until := v_now + least(p_for, interval '1 day');
    v_slack := least(greatest(p_for / 10::float8, interval '50 milliseconds'), interval '1 second');
    select s.parked_until into v_found from packhorse.scopes s
    where s.name = p_scope and packhorse.says_nothing_new(s, v_until, v_slack, v_types, p_probing);
    if found then
      return v_found;
    end if;
  else
    v_until := v_now + p_for;
    insert into packhorse.operator_actions (action, operator, reason, details)
    values ('park_scope', p_operator, p_reason,
      jsonb_build_object('scope', p_scope, 'until', v_until, 'probing', p_probing));
  end if;
  insert into packhorse.scopes as s (name, queue, message_types, parked_until, probing, ends_at, reason,
    parked_by, parked_at)
  values (p_scope, substring(p_scope from '^queue:(.+)$'), v_types, v_until, p_probing,
    case when p_probing then 'infinity' else v_until end, packhorse.bounded_text(p_reason, 500),
      packhorse.bounded_text(coalesce(p_operator, p_by), 200), v_now)
  on conflict (name) do update set
    parked_until = case when p_operator is null then greatest(s.parked_until, excluded.parked_until)
      else excluded.parked_until end,
    probing = excluded.probing or (p_operator is null and s.probing and s.ends_at > v_now),
    ends_at = case when excluded.probing or (p_operator is null and s.probing and s.ends_at > v_now)
      then 'infinity'
      when p_operator is null then greatest(s.parked_until, excluded.parked_until)
      else excluded.parked_until end,
    message_types = case when s.ends_at > v_now
      then packhorse.scope_types(p_scope, s.message_types || p_types) else excluded.message_types end,
    parked_at = case when s.ends_at > v_now then s.parked_at else v_now end,
    reason = excluded.reason, parked_by = excluded.parked_by,
    next_park = case when p_operator is null then s.next_park end,
    failures = case when p_operator is null then s.failures else 0 end
  where p_operator is not null or not packhorse.says_nothing_new(s, v_until, v_slack, v_types, p_probing)
  returning s.parked_until into v_found;
  if p_operator is not null then
    -- a shorter park lets messages start sooner than sleepers know
    perform packhorse.wake_queue(q.name) from packhorse.queues q;
  end if;
  -- another call was first
  return coalesce(v_found, (select s.parked_until from packhorse.scopes s where s.name = p_scope));
end
$$;
comment on function packhorse.park_scope(text, interval, text, text[], boolean, text, text) is
  'No message of a scope starts for some time; returns until when.';

create or replace function packhorse.lift_scope(p_scope text, p_operator text default null,
  p_reason text default null) returns boolean
language plpgsql set lock_timeout = '500ms' as $$
-- The messages of the scope may start again, at once: workers that sleep are woken. False when it was not
-- parked. p_operator, a person: recorded.
begin
  perform packhorse.check_scope(p_scope);
  update packhorse.scopes s
  set parked_until = null, probing = false, probe_id = null, probe_at = null, ends_at = null,
    message_types = '{}', fingerprint = null, failures = 0, next_park = null
  where s.name = p_scope and s.ends_at > clock_timestamp();
  if not found then
    return false;
  elsif p_operator is not null then
    insert into packhorse.operator_actions (action, operator, reason, details)
    values ('lift_scope', p_operator, p_reason, jsonb_build_object('scope', p_scope));
  end if;
  perform packhorse.wake_queue(q.name) from packhorse.queues q;
  return true;
end
$$;
comment on function packhorse.lift_scope(text, text, text) is
  'The messages of a scope may start again; false when it was not parked.';

create or replace function packhorse.join_scopes() returns void
language plpgsql as $$
-- A worker has registered its types: those that name a service which rests rest with it.
begin
  if exists (select from packhorse.scopes s where s.ends_at > clock_timestamp()) then
    update packhorse.scopes s set message_types = packhorse.scope_types(s.name, s.message_types)
    where s.name in (
        select o.name from packhorse.scopes o
        where o.ends_at > clock_timestamp()
          and not packhorse.scope_types(o.name, o.message_types) <@ o.message_types for update);
  end if;
end
$$;
comment on function packhorse.join_scopes() is
  'Used by register_worker: types that name a parked service rest with it.';

create or replace function packhorse.scope_statistics(p_now timestamptz) returns jsonb
language sql stable as $$
-- For /metrics: since when each scope rests; those hundred that rest for the longest time.
  select jsonb_build_object('scope_parked_seconds',
    jsonb_agg(jsonb_build_object('scope', p.name, 'value', p.seconds)))
  from (
    select s.name, extract(epoch from greatest(p_now - s.parked_at, interval '0')) as seconds
    from packhorse.scopes s where s.ends_at > p_now order by s.parked_at, s.name limit 100) p;
$$;
comment on function packhorse.scope_statistics(timestamptz) is
  'How long scopes have been parked, for metrics.';

create or replace function packhorse.only_service(p_type text) returns text
language sql stable as $$
-- The service that the actor of this type names, when it names exactly one.
  select t.policy -> 'services' ->> 0 from packhorse.policy_of_type(p_type) as t (policy)
  where jsonb_typeof(t.policy -> 'services') = 'array' and jsonb_array_length(t.policy -> 'services') = 1;
$$;
comment on function packhorse.only_service(text) is
  'Used by park_message: the one service that an actor names, else null.';

create or replace function packhorse.park_message(p_id bigint, p_token bigint, p_for interval,
  p_scope text default null, p_reason text default null)
returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- What a running message calls asked for a pause (a 429): it goes back, no attempt spent, and all messages of
-- the scope rest for p_for, at most a day. p_scope null: the only service of its actor, else this message
-- rests alone. One of a scope keeps its place in line: the scope holds it, and a lift lets it start. Returns
-- parked when its scope was parked by this call, else snooze, cancelled when that was requested, lost when
-- the lease is gone. Raises PH001.
declare
  v_type text;
  v_scope text;
  v_before timestamptz;
  v_until timestamptz;
  v_for constant interval := greatest(least(coalesce(p_for, '0'), interval '1 day'), interval '0');
begin
  select m.message_type into v_type from packhorse.message_queue m
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  if not found then
    return 'lost';
  end if;
  v_scope := coalesce(p_scope, packhorse.only_service(v_type));
  if v_scope is not null then
    select s.parked_until into v_before from packhorse.scopes s
    where s.name = v_scope and s.ends_at > clock_timestamp();
    -- never for less than 0.1 s: its messages would come back as fast as they are refused
    v_until := packhorse.park_scope(v_scope, greatest(v_for, interval '100 milliseconds'), p_reason,
      array[v_type], p_by => format('message %s', p_id));
  end if;
  return packhorse.rest_message(p_id, p_token, v_for, p_reason, v_until is distinct from v_before);
end
$$;
comment on function packhorse.park_message(bigint, bigint, interval, text, text) is
  'A message and its scope rest for some time, no attempt spent.';

create or replace function packhorse.rest_message(p_id bigint, p_token bigint, p_for interval, p_reason text,
  p_parked boolean default false) returns text
language plpgsql as $$
-- running -> pending, the attempt given back. One whose scope rests keeps its run_at, and so its place in
-- line; another one is due in p_for. Returns what park_message returns.
declare
  v_cancel boolean;
  v_now constant timestamptz := clock_timestamp();
begin
  update packhorse.message_queue m
  set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null,
    completion_refused_at = null, attempt = m.attempt - 1,
      run_at = case when exists (select from packhorse.resting_scopes(m.message_type, m.queue, v_now))
        then m.run_at else v_now + p_for end,
      history = packhorse.append_history(m.history, m.attempt, 'park', null, p_reason, m.lease_holder)
  where m.id = p_id and m.lease_token = p_token and m.state = 'running'
  returning m.cancel_requested_at is not null into v_cancel;
  if v_cancel then
    perform packhorse.finish_cancelled(array[p_id], null, 'cancel requested');
  end if;
  return case when v_cancel is null then 'lost' when v_cancel then 'cancelled' when p_parked then 'parked'
    else 'snooze' end;
end
$$;
comment on function packhorse.rest_message(bigint, bigint, interval, text, boolean) is
  'A running message goes back to wait with its scope; the attempt is given back.';

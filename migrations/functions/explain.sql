-- Explain: why does a message not run? (SPEC Q8b)

create or replace function packhorse.explain_ended(p_id bigint) returns text
language sql stable as $$
-- What became of a message that lives no longer.
  select coalesce(
    (select a.state || ' at ' || a.finished_at || coalesce(': ' || a.reason, '')
      from packhorse.message_archive a where a.id = p_id limit 1),
    (select format('dead at %s: %s', d.dead_at, d.reason) from packhorse.dead_letters d where d.id = p_id),
    'no message with this id');
$$;
comment on function packhorse.explain_ended(bigint) is
  'Used by explain_message: what became of a message that lives no longer.';

create or replace function packhorse.explain_running(p_message packhorse.message_queue, p_now timestamptz)
returns text
language sql stable as $$
-- Who holds it; or why its handler is done and it is here still.
  select case when p_message.completion_refused_at is not null then
      format('its handler was done at %s and the database refused to write that: %s. It does not run again: '
        'the completion is tried again, until it works or an operator runs, buries or cancels it',
        p_message.completion_refused_at, p_message.error ->> 'message')
    else format('it runs: held by %s, attempt %s, lease until %s%s%s', p_message.lease_holder,
      p_message.attempt, p_message.lease_expires_at,
      case when p_message.lease_expires_at < p_now
        then ', which is over: its holder is gone or out of contact, and rescue returns it' else '' end,
      case when p_message.cancel_requested_at is not null then ', cancel requested' else '' end) end;
$$;
comment on function packhorse.explain_running(packhorse.message_queue, timestamptz) is
  'Used by explain_message: who holds a message.';

create or replace function packhorse.explain_conversation(p_message packhorse.message_queue,
  p_now timestamptz)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- The gate of a message with a conversation: its holder, if any.
  select 'conversation', h.holder_id is null and p_message.state = 'pending',
    case when h.holder_id is not null then format('held by message %s (%s)', h.holder_id, h.holder_kind)
      when p_message.state = 'blocked' then 'waits for its turn in the conversation'
      else 'first in its conversation' end,
    (select r.run_at from packhorse.message_queue r
      where r.id = h.holder_id and r.state = 'pending' and not packhorse.is_due(r.run_at, p_now))
  from (select 1) one left join lateral (
    select c.holder_kind, c.holder_id
    from packhorse.conversation_holders(p_message.conversation_key, p_message.id) c
    order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true
  where p_message.conversation_key is not null;
$$;
comment on function packhorse.explain_conversation(packhorse.message_queue, timestamptz) is
  'Used by explain_message: the gate of a conversation.';

create or replace function packhorse.explain_limits(p_message packhorse.message_queue,
  p_queue packhorse.queues, p_now timestamptz)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- The gates of a queue with limits.
  select 'max_concurrency', r.room > 0,
    format('%s of %s running', p_queue.max_concurrency - r.room, p_queue.max_concurrency), null::timestamptz
  from (select packhorse.queue_room(p_queue) as room) r where p_queue.max_concurrency is not null
  union all
  select 'max_concurrency_per_key', r.room > 0,
    format('%s of %s running with this key', p_queue.max_concurrency_per_key - r.room,
      p_queue.max_concurrency_per_key), null
  from packhorse.key_room(p_queue, p_message.concurrency_key) r
  where p_queue.max_concurrency_per_key is not null and p_message.concurrency_key is not null
  union all
  select 'rate_limit_per_key', t.tokens >= 1::float8,
    format('%s starts per %s with this key', p_queue.rate_limit_per_key, p_queue.rate_interval_per_key),
    case when t.tokens < 1::float8
      then p_now
        + (1::float8 - t.tokens) * p_queue.rate_interval_per_key / p_queue.rate_limit_per_key::float8 end
  from packhorse.key_tokens(p_queue, p_message.concurrency_key, p_now) t
  where p_queue.rate_limit_per_key is not null and p_message.concurrency_key is not null
  union all
  select 'rate_limit', t.tokens >= 1::float8,
    format('%s starts per %s', p_queue.rate_limit, p_queue.rate_interval),
    case when t.tokens < 1::float8
      then p_now + (1::float8 - t.tokens) * p_queue.rate_interval / p_queue.rate_limit::float8 end
  from (select packhorse.rate_tokens_at(p_queue, p_now) as tokens) t where p_queue.rate_limit is not null;
$$;
comment on function packhorse.explain_limits(packhorse.message_queue, packhorse.queues, timestamptz) is
  'Used by explain_message: the gates of limits.';

create or replace function packhorse.explain_scopes(p_message packhorse.message_queue, p_now timestamptz)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- The scopes that are parked or probing and that the message belongs to, one row each; none usually.
  select 'scope', not packhorse.scope_rests(s, p_now),
    format('%s %s since %s by %s%s', s.name,
      case when s.parked_until > p_now then format('is parked until %s', s.parked_until)
        when packhorse.scope_rests(s, p_now) then format('is probing: message %s runs', s.probe_id)
        else 'is probing: one message may start' end,
      s.parked_at, s.parked_by, coalesce(': ' || s.reason, '')),
    case when s.parked_until > p_now then s.parked_until end
  from packhorse.scopes s
  where s.ends_at > p_now and packhorse.scope_covers(s, p_message.message_type, p_message.queue)
  order by s.name;
$$;
comment on function packhorse.explain_scopes(packhorse.message_queue, timestamptz) is
  'Used by explain_message: the gates of parked scopes.';

create or replace function packhorse.explain_turn(
  p_message packhorse.message_queue, p_queue packhorse.queues, p_now timestamptz
) returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- Where keys take turns: how many of its key stand before it, and how many other keys there are (a thousand
-- at most).
  with recursive keys (key, n) as (
    (select packhorse.turn_key(m) collate "C", 1 from packhorse.message_queue m
     where packhorse.takes_turns(p_queue) and m.queue = p_queue.name and m.state = 'pending'
       and packhorse.turn_key(m) is not null
     order by packhorse.turn_key(m) collate "C" limit 1)
    union all
    select (select packhorse.turn_key(m) collate "C" from packhorse.message_queue m
      where m.queue = p_queue.name and m.state = 'pending' and packhorse.turn_key(m) collate "C" > k.key
      order by packhorse.turn_key(m) collate "C" limit 1), k.n + 1
    from keys k where k.key is not null and k.n < 1000
  ), ahead as (
    select count(*) as n from (
      select from packhorse.message_queue e
      where e.queue = p_queue.name and e.state = 'pending'
        and packhorse.turn_key(e) = packhorse.turn_key(p_message) collate "C"
        and e.crashes < 2 and e.run_at <= p_now
        and (e.priority, e.run_at, e.id) < (p_message.priority, p_message.run_at, p_message.id)
      limit 10000) a
  )
  select 'turn', a.n = 0,
    case when packhorse.turn_key(p_message) is null then 'it has no key: all such messages are one share'
      else format('number %s of its key', a.n + 1) end
    || format('; %s other keys take turns with it',
      (select count(k.key) from keys k where k.key is distinct from packhorse.turn_key(p_message))),
    null::timestamptz
  from ahead a where packhorse.takes_turns(p_queue);
$$;
comment on function packhorse.explain_turn(packhorse.message_queue, packhorse.queues, timestamptz)
  is 'Used by explain_message: the place of a message among those of its key, and other keys.';

create or replace function packhorse.explain_line(p_message packhorse.message_queue,
  p_queue packhorse.queues, p_now timestamptz)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- Who takes such messages, and how many stand before it; those that run apart stand in a line of their own.
-- What is forwarded is taken by relays, of every type.
  with live as (
    select w.isolation from packhorse.workers w
    where p_now - w.last_seen_at <= w.lease_duration and w.state = 'running'
      and packhorse.queue_goes_to(p_queue, w.forward)
      and (p_queue.forward is not null or packhorse.names_type(w.message_types, p_message.message_type))
      and p_message.queue::text = any (w.queues)
  ), ahead as (
    select count(*) as n from (
      (select from packhorse.message_queue e
       where packhorse.runs_apart(p_message.crashes) and e.queue = p_message.queue and e.state = 'pending'
         and e.crashes >= 2
         and e.run_at <= p_now and (e.run_at, e.id) < (p_message.run_at, p_message.id)
       limit 10000)
      union all
      (select from packhorse.message_queue e
       where not packhorse.runs_apart(p_message.crashes) and e.queue = p_message.queue and e.state = 'pending'
         and e.crashes < 2
         and e.run_at <= p_now and (e.priority, e.run_at, e.id)
           < (p_message.priority, p_message.run_at, p_message.id)
       limit 10000)) a
  )
  select case when p_queue.forward is null then 'worker' else 'forward' end, l.n > 0,
    case when p_queue.forward is null
      then case when l.n > 0 then format('%s live worker(s) register the type', l.n)
        else 'no live worker registers this type on this queue' end
      else format('forwarded to %s: %s', p_queue.forward, case when l.n > 0
        then format('%s live relay(s) take it', l.n)
        else 'no relay takes it, start one: packhorse relay' end) end, null::timestamptz
  from (select count(*) as n from live where not live.isolation) l
  union all
  select 'isolation', l.runs,
    format('it was there when %s processes died, so it runs apart from all others: %s', p_message.crashes,
    case when l.runs then 'a process for such messages runs'
      else 'a worker starts a process for such messages' end), null
  from (select count(*) > 0 as runs from live where live.isolation) l
  where packhorse.runs_apart(p_message.crashes)
  union all
  select 'rank', a.n = 0,
    case when a.n >= 10000 then 'more than 10000' else a.n::text end || ' ahead in its queue', null
    from ahead a;
$$;
comment on function packhorse.explain_line(packhorse.message_queue, packhorse.queues, timestamptz) is
  'Used by explain_message: workers or relays, isolation, rank.';

create or replace function packhorse.explain_steps(p_steps jsonb)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql immutable as $$
-- What its attempts have stored and the next one does not do again. No row for a message without steps; ten
-- names at most.
  select 'steps', true, format('%s stored, not run again: %s%s', count(*),
    string_agg(s.name, ', ' order by s.place) filter (where s.place <= 10),
    case when count(*) > 10 then ', ...' else '' end), null::timestamptz
  from (
    select d.value ->> 'name' as name, d.place
    from jsonb_array_elements(packhorse.describe_steps(p_steps)) with ordinality as d (value, place)) s
  having count(*) > 0;
$$;
comment on function packhorse.explain_steps(jsonb) is
  'Used by explain_message: the steps that a message has stored.';

create or replace function packhorse.explain_last_error(p_error jsonb, p_history jsonb)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql immutable as $$
-- How its last attempt failed. No row for a message that has not failed; its traceback is in the history.
  select 'last_error', true,
    format('attempt %s failed at %s: %s: %s', f.entry ->> 'attempt', p_error ->> 'at', p_error ->> 'class',
    left(p_error ->> 'message', 300)), null::timestamptz
  from (
    select h.entry
    from jsonb_array_elements(case when jsonb_typeof(p_history) = 'array' then p_history else '[]' end)
      with ordinality as h (entry, place)
    where h.entry ->> 'event' = 'retry' order by h.place desc limit 1) f
  where p_error is not null;
$$;
comment on function packhorse.explain_last_error(jsonb, jsonb) is
  'Used by explain_message: how the last attempt of a message failed.';

create or replace function packhorse.explain_time(p_message packhorse.message_queue, p_now timestamptz)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language sql stable as $$
-- The gate run_at; of a debounced message that has not started it is called window: run_at is its end.
  select case when t.gathers then 'window' else 'run_at' end, t.due,
    case when t.gathers then format('%s payload(s), %s, at %s at the latest',
        coalesce(jsonb_array_length(case when jsonb_typeof(p_message.payload -> 'messages') = 'array'
          then p_message.payload -> 'messages' end), 1),
        case when t.due then 'due' else format('gathers until %s', p_message.run_at) end,
          p_message.gathers_until)
      when t.due then 'due'
      else format('due at %s%s', p_message.run_at,
        case when p_message.attempt > 0 then format(' (retry after attempt %s)',
          p_message.attempt) else '' end) end,
    case when not t.due then p_message.run_at end
  from (
    select packhorse.is_due(p_message.run_at, p_now) as due,
      p_message.gathers_until is not null and p_message.claimed_at is null as gathers) t;
$$;
comment on function packhorse.explain_time(packhorse.message_queue, timestamptz)
  is 'Used by explain_message: its time, or the window in which it gathers.';

create or replace function packhorse.explain_message(p_id bigint)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language plpgsql stable as $$
-- Why is this message not running? The gates in the order in which the claim meets them, each passed or
-- not, with the holder and the earliest start where it is known (SPEC Q8b). Nothing is locked.
declare
  v_now constant timestamptz := clock_timestamp();
  v_m packhorse.message_queue;
  v_q packhorse.queues;
begin
  select * into v_m from packhorse.message_queue where id = p_id;
  if not found then
    return query select 'exists', false, packhorse.explain_ended(p_id), null::timestamptz;
    return query select s.* from packhorse.dead_letters d
    cross join lateral packhorse.explain_steps(d.steps) s where d.id = p_id;
    return;
  end if;
  select * into v_q from packhorse.queues where name = v_m.queue;
  return query select 'exists', true, format('type %s on queue %s', v_m.message_type, v_m.queue),
    null::timestamptz;
  if v_m.completion_refused_at is not null or v_m.state = 'running' then
    return query select 'state', v_m.completion_refused_at is null, packhorse.explain_running(v_m, v_now),
      null::timestamptz;
    return query select * from packhorse.explain_steps(v_m.steps);
    return query select * from packhorse.explain_last_error(v_m.error, v_m.history);
    return;
  end if;
  if packhorse.is_copy() then
    return query select 'copy', false,
      'this database is a copy that nobody has accepted: packhorse copy accept', null::timestamptz;
  end if;
  return query select 'state', v_m.state = 'pending', v_m.state::text, null::timestamptz;
  return query select * from packhorse.explain_time(v_m, v_now);
  if v_m.expires_at is not null then
    return query select 'expires_at', packhorse.is_worth_doing(v_m.expires_at, v_now),
      format('not worth doing after %s', v_m.expires_at), null::timestamptz;
  end if;
  return query select 'queue', v_q.name is not null and packhorse.queue_is_open(v_q),
    case when v_q.name is null
      then format('nobody has declared it: select packhorse.declare_queue(%L)', v_m.queue)
      when packhorse.queue_is_open(v_q) then 'not paused'
      else format('paused at %s by %s', v_q.paused_at, v_q.paused_by) end,
    null::timestamptz;
  return query select * from packhorse.explain_scopes(v_m, v_now);
  return query select * from packhorse.explain_conversation(v_m, v_now);
  return query select * from packhorse.explain_limits(v_m, v_q, v_now);
  return query select * from packhorse.explain_turn(v_m, v_q, v_now);
  return query select * from packhorse.explain_line(v_m, v_q, v_now);
  return query select * from packhorse.explain_steps(v_m.steps);
  return query select * from packhorse.explain_last_error(v_m.error, v_m.history);
end
$$;
comment on function packhorse.explain_message(bigint) is
  'Why is this message not running? Gates in order, passed or not.';

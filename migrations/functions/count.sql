-- Count: messages and dead letters by queue, for metrics, health checks, the page and commands.
--
-- Counting is bounded, so a table of any size costs the same: due and delayed messages of a queue and dead
-- letters by an index-only walk of at most p_limit entries, running and blocked ones (their index does not
-- know the queue) of at most half of that, beyond which stands the planner's estimate, marked `estimated`.

create or replace function packhorse.estimated_messages(p_queue text, p_state text, p_now timestamptz)
returns bigint
language plpgsql volatile as $$
-- How many live messages the planner expects; reads statistics, no rows. p_state as in count_queue_messages;
-- p_now null: pending and delayed ones together, which it knows better than either.
declare
  v_plan json;
begin
  execute format('explain (format json) select from packhorse.message_queue where queue = %L and state = %L',
    p_queue, case when p_state = 'delayed' then 'pending' else p_state end)
    || case when p_now is null then '' when p_state = 'pending' then format(' and run_at <= %L', p_now)
         when p_state = 'delayed' then format(' and run_at > %L', p_now) else '' end
  into v_plan;
  return (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::numeric::bigint;
end
$$;
comment on function packhorse.estimated_messages(text, text, timestamptz) is
  'The planner''s estimate of the live messages of a queue in a state.';

create or replace function packhorse.count_queue_messages(p_now timestamptz, p_limit integer default 20000)
returns table (queue text, state text, messages bigint, estimated boolean, oldest_due timestamptz)
language sql volatile set enable_seqscan = off set jit = off as $$
-- Live messages by queue and state (pending = due, delayed, running, blocked), every queue and state once.
-- Exact below p_limit waiting ones per queue (half of it, over all queues, for running and blocked), else
-- estimated.
  with waiting as (
    select q.name, w.due, w.delayed, w.due + w.delayed >= p_limit as cut, e.first_at, e.last_at
    from packhorse.queues q
    cross join lateral (
      select count(*) filter (where d.run_at <= p_now) as due,
        count(*) filter (where d.run_at > p_now) as delayed
      from (select m.run_at from packhorse.message_queue m
        where m.queue = q.name and m.state = 'pending' and m.crashes < 2 limit p_limit) d) w
    cross join lateral ( -- two probes of the index per priority, whatever waits there
      select min(p.first_at) as first_at, max(p.last_at) as last_at
      from generate_series(1, 10) as level (priority)
      cross join lateral (
        select min(m.run_at) as first_at, max(m.run_at) as last_at from packhorse.message_queue m
        where m.queue = q.name and m.state = 'pending' and m.crashes < 2 and m.priority = level.priority) p) e
  ), isolated as (
    select m.queue::text as name, m.run_at <= p_now as is_due, count(*) as n, min(m.run_at) as first_at
    from packhorse.message_queue m where m.state = 'pending' and m.crashes >= 2 group by 1, 2
  ), holders as (
    (select m.queue::text as name, 'running' as state from packhorse.message_queue m
     where m.state = 'running' and m.lease_token is not null order by m.id limit p_limit / 2)
    union all
    (select m.queue::text, 'blocked' from packhorse.message_queue m where m.state = 'blocked'
      order by m.conversation_key, m.id limit p_limit / 2)
  ), held as (
    select h.name, h.state, count(*) as n,
      sum(count(*)) over (partition by h.state) >= (p_limit / 2)::numeric as cut from holders h group by 1, 2
  ), counted as ( -- one_kind: all that wait are due, or none is
    select w.name, 'pending' as state, w.due + coalesce(s.n, 0) as n, w.cut and w.first_at <= p_now as cut,
      w.last_at <= p_now as one_kind,
      least(case when w.first_at <= p_now then w.first_at end, s.first_at) as first_at
    from waiting w left join isolated s on s.name = w.name and s.is_due
    union all
    select w.name, 'delayed', w.delayed + coalesce(s.n, 0), w.cut and w.last_at > p_now, w.first_at > p_now,
      null
    from waiting w left join isolated s on s.name = w.name and not s.is_due
    union all
    select q.name, kind.state, coalesce(h.n, 0), coalesce(h.cut, false), false, null
    from packhorse.queues q cross join (values ('running'), ('blocked')) as kind (state)
    left join held h on h.name = q.name and h.state = kind.state
  )
  select c.name, c.state,
    case when c.cut then greatest(c.n,
      packhorse.estimated_messages(c.name, c.state, case when not c.one_kind then p_now end))
      else c.n end::bigint,
    coalesce(c.cut, false), c.first_at
  from counted c order by 1, 2;
$$;
comment on function packhorse.count_queue_messages(timestamptz, integer) is
  'Live messages by queue and state; bounded work, exact up to a limit.';

create or replace function packhorse.count_undeclared_messages(p_now timestamptz,
  p_limit integer default 20000)
returns table (queue text, due bigint, delayed bigint, oldest_due timestamptz, estimated boolean)
language sql volatile set enable_seqscan = off set jit = off as $$
-- Pending messages whose queue nobody has declared: somebody inserted the rows by hand, and no worker looks
-- there. For people, not for metrics: these names have no bound. One index probe per queue that has messages,
-- at most 1000; exact below p_limit messages per queue, else estimated.
  with recursive found (name, place) as (
    (select m.queue::text, 1 from packhorse.message_queue m where m.state = 'pending' and m.crashes < 2
      order by m.queue limit 1)
    union all
    (select n.name, f.place + 1 from found f cross join lateral (
       select m.queue::text as name from packhorse.message_queue m
       where m.state = 'pending' and m.crashes < 2 and m.queue > f.name order by m.queue limit 1) n
     where f.place < 1000)
  ), counted as (
    select f.name, count(*) filter (where w.run_at <= p_now) as due,
      count(*) filter (where w.run_at > p_now) as delayed,
      min(w.run_at) filter (where w.run_at <= p_now) as oldest_due, count(*) >= p_limit as cut
    from found f cross join lateral (
      select m.run_at from packhorse.message_queue m
      where m.queue = f.name and m.state = 'pending' and m.crashes < 2 limit p_limit) w
    where not exists (select from packhorse.queues q where q.name = f.name) group by f.name
  )
  select c.name,
    case when c.cut then greatest(c.due, packhorse.estimated_messages(c.name, 'pending', p_now))
      else c.due end,
    case when c.cut then greatest(c.delayed, packhorse.estimated_messages(c.name, 'delayed', p_now))
      else c.delayed end, c.oldest_due, c.cut
  from counted c order by 1;
$$;
comment on function packhorse.count_undeclared_messages(timestamptz, integer) is
  'Pending messages of queues that nobody has declared; bounded work.';

create or replace function packhorse.count_undeclared_states(p_now timestamptz, p_limit integer default 20000)
returns table (queue text, state text, messages bigint, estimated boolean, oldest_due timestamptz)
language sql volatile set enable_seqscan = off set jit = off as $$
-- The same by state, as count_queue_messages has them of declared queues: also what runs, is blocked or runs
-- apart. Running and blocked ones are looked for among the first half of p_limit of all queues; when there
-- are more, those that were found are estimated, too. States that nothing is in are left out.
  with holders as (
    (select m.queue::text as name, 'running' as state from packhorse.message_queue m
     where m.state = 'running' and m.lease_token is not null order by m.id limit p_limit / 2)
    union all
    (select m.queue::text, 'blocked' from packhorse.message_queue m where m.state = 'blocked'
      order by m.conversation_key, m.id limit p_limit / 2)
  ), found as (
    select u.queue as name, s.state, case s.state when 'pending' then u.due else u.delayed end as n,
      u.estimated as cut, case s.state when 'pending' then u.oldest_due end as first_at
    from packhorse.count_undeclared_messages(p_now, p_limit) u
    cross join (values ('pending'), ('delayed')) as s (state)
    union all
    select m.queue::text, case when m.run_at <= p_now then 'pending' else 'delayed' end, count(*), false,
      min(m.run_at) filter (where m.run_at <= p_now)
    from packhorse.message_queue m where m.state = 'pending' and m.crashes >= 2 group by 1, 2
    union all
    select h.name, h.state, count(*),
      sum(count(*)) over (partition by h.state) >= (p_limit / 2)::numeric, null
    from holders h group by 1, 2
  ), counted as (
    select f.name, f.state, sum(f.n)::bigint as n, bool_or(f.cut) as cut, min(f.first_at) as first_at
    from found f where f.n > 0 and not exists (select from packhorse.queues q where q.name = f.name)
    group by 1, 2
  )
  select c.name, c.state,
    case when c.cut and c.state in ('running', 'blocked')
      then greatest(c.n, packhorse.estimated_messages(c.name, c.state, null)) else c.n end,
    c.cut, c.first_at
  from counted c order by 1, 2;
$$;
comment on function packhorse.count_undeclared_states(timestamptz, integer) is
  'Live messages of queues that nobody has declared, by queue and state; bounded work.';

create or replace function packhorse.count_bound(p_table text, p_each integer, p_together integer)
returns integer
language sql stable as $$
-- How many rows of each queue a look at all of them may count: p_each, p_together over all queues, and a
-- hundred at least. A fifth of that while vacuum has not seen a tenth of the table's pages: then each row
-- that an index counts is a look at its page, somewhere in the table.
  select greatest(100, least(p_each, p_together / greatest(1, (select count(*) from packhorse.queues))
    / case when t.relallvisible::float8 >= t.relpages::float8 * 0.9::float8 then 1 else 5 end))::integer
  from pg_class t where t.oid = to_regclass(format('packhorse.%I', p_table))::oid;
$$;
comment on function packhorse.count_bound(text, integer, integer) is
  'How many rows of each queue may be counted by a look at all queues.';

create or replace function packhorse.estimated_dead_letters(p_queue text) returns bigint
language plpgsql volatile as $$
-- How many dead letters of a queue the planner expects; reads statistics, no rows.
declare
  v_plan json;
begin
  execute format('explain (format json) select from packhorse.dead_letters where queue = %L', p_queue)
  into v_plan;
  return (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::numeric::bigint;
end
$$;
comment on function packhorse.estimated_dead_letters(text) is
  'The planner''s estimate of the dead letters of a queue.';

create or replace function packhorse.count_dead_letters(p_limit integer default 20000)
returns table (queue text, messages bigint, estimated boolean)
language sql volatile set enable_seqscan = off set jit = off as $$
-- Dead letters by queue, also of queues that are not declared; queues without any are left out. One index
-- probe per queue, at most 1000; exact below p_limit letters per queue, else estimated.
  with recursive found (name, place) as (
    (select d.queue, 1 from packhorse.dead_letters d order by d.queue limit 1)
    union all
    (select n.name, f.place + 1 from found f cross join lateral (
       select d.queue as name from packhorse.dead_letters d
       where d.queue > f.name order by d.queue limit 1) n
     where f.place < 1000)
  )
  select f.name, case when c.n >= p_limit
    then greatest(c.n, packhorse.estimated_dead_letters(f.name)) else c.n end, c.n >= p_limit
  from found f cross join lateral (
    select count(*) as n
    from (select from packhorse.dead_letters d where d.queue = f.name limit p_limit) l) c
  order by 1;
$$;
comment on function packhorse.count_dead_letters(integer) is
  'Dead letters by queue; bounded work, exact up to a limit.';

create or replace function packhorse.count_blocked_conversations(p_limit integer default 10000)
returns table (queue text, conversations bigint, blocked_since timestamptz)
language sql stable set enable_seqscan = off set jit = off as $$
-- Conversations with blocked messages, by queue, and since when the first message of one of them has been
-- due: one index probe per conversation, at most p_limit of them.
  with recursive found (conversation_key, queue, since, place) as (
    (select m.conversation_key::text, m.queue::text, greatest(m.created_at, m.run_at), 1
     from packhorse.message_queue m where m.state = 'blocked' order by m.conversation_key, m.id limit 1)
    union all
    (select n.conversation_key, n.queue, n.since, f.place + 1 from found f cross join lateral (
       select m.conversation_key::text, m.queue::text, greatest(m.created_at, m.run_at) as since
       from packhorse.message_queue m
       where m.state = 'blocked' and m.conversation_key > f.conversation_key
       order by m.conversation_key, m.id limit 1) n
     where f.place < p_limit)
  )
  select q.name, count(f.queue), min(f.since) from packhorse.queues q left join found f on f.queue = q.name
  group by q.name order by 1;
$$;
comment on function packhorse.count_blocked_conversations(integer) is
  'Conversations with waiting messages, by queue; bounded work.';

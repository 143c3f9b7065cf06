-- Numbers of the whole fleet for /metrics, counted once for everybody (SPEC O2). One row holds them as JSON;
-- whoever finds it too old counts anew while all others go on reading it, so twenty workers cost what one
-- does.
--
-- Counting is bounded, so a table of any size costs the same: due and delayed messages of a queue and dead
-- letters by an index-only walk of at most p_limit entries, running and blocked ones (their index does not
-- know the queue) of at most half of that, beyond which stands the planner's estimate, marked `estimated`. A
-- refresh that took long makes the next one wait twenty times as long.

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

create or replace function packhorse.partition_ends(p_now timestamptz)
returns table (table_name text, ends_at timestamptz, every text)
language sql stable as $$
-- Until when inserts find a partition, by table: those of the queue's and the platform's schema that are
-- partitioned by a time, and those that a policy of [partitions] looks after, wherever they are. Infinity for
-- an open end. every: day, week or month, by the width of the partition that ends last.
  with kept as (
    select (select r.plan ->> 'table' from packhorse.maintenance_runs r
            where r.task = t.task and r.started_at > p_now - interval '30 days'
            order by r.id desc limit 1) as name
    from packhorse.maintenance_tasks t where t.task like 'partitions.%.make'
  ), bounds as (
    select case when n.nspname = any (h.schemas) then p.relname::text
      else n.nspname || '.' || p.relname end as name, a.atttypid = 'timestamptz'::regtype as zoned,
    regexp_match(pg_get_expr(c.relpartbound, c.oid),
      'FROM \(''?([^'']+?)''?\) TO \(''?([^'']+?)''?\)') as texts
    from (select array[(parse_ident('packhorse.x'))[1], (parse_ident('platform.x'))[1]] as schemas) h
    cross join pg_partitioned_table k
    join pg_class p on p.oid = k.partrelid
    join pg_namespace n on n.oid = p.relnamespace
    join pg_attribute a on a.attrelid = p.oid and a.attnum = k.partattrs[0]
    join pg_inherits i on i.inhparent = p.oid and not i.inhdetachpending
    join pg_class c on c.oid = i.inhrelid
    where k.partstrat = 'r' and k.partnatts = 1
      and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
      and (n.nspname = any (h.schemas) or exists (select from kept where to_regclass(kept.name) = p.oid))
  ), ranges as ( -- columns without a zone hold UTC
    select b.name, case when b.texts[1] = 'MINVALUE' then '-infinity'
      when b.zoned then b.texts[1]::timestamptz
        else b.texts[1]::timestamp at time zone 'UTC' end as lower_at,
      case when b.texts[2] = 'MAXVALUE' then 'infinity' when b.zoned then b.texts[2]::timestamptz
        else b.texts[2]::timestamp at time zone 'UTC' end as upper_at
    from bounds b where b.texts is not null
  ), reached as (
    select r.name, r.lower_at, r.upper_at, greatest(p_now, max(r.upper_at) over (
        partition by r.name
        order by r.lower_at, r.upper_at rows between unbounded preceding and 1 preceding)) as reached_at
    from ranges r
  )
  -- up to the first gap: there inserts fail, whatever is made behind it
  select r.name, coalesce(min(r.reached_at) filter (where r.lower_at > r.reached_at), max(r.upper_at)),
    case when (array_agg(r.upper_at - interval '27 days' >= r.lower_at order by r.upper_at desc))[1]
      then 'month'
      when (array_agg(r.upper_at - interval '6 days' >= r.lower_at order by r.upper_at desc))[1] then 'week'
      else 'day' end
  from reached r group by r.name order by r.name;
$$;
comment on function packhorse.partition_ends(timestamptz) is
  'Until when inserts into a table that is partitioned by a time find a partition.';

create or replace function packhorse.snapshots_are_visible() returns boolean
language sql stable as $$
-- May this role see the age of every snapshot that is there now? Everybody sees that there is one, not how
-- old another role's is.
  select pg_has_role('pg_read_all_stats', 'usage') or not exists (select from pg_stat_activity a
    where a.backend_xmin is not null and a.xact_start is null and a.datname = current_database()
      and a.pid <> pg_backend_pid());
$$;
comment on function packhorse.snapshots_are_visible() is
  'May this role see the age of every snapshot that is there now?';

create or replace function packhorse.oldest_snapshot_seconds(p_now timestamptz) returns double precision
language sql stable as $$
-- Age of the oldest snapshot in this database, of those whose age this role may see; null when there is none.
  select extract(epoch from p_now - min(s.since))::float8
  from (
    select a.xact_start as since from pg_stat_activity a
    where a.backend_xmin is not null and a.datname = current_database() and a.pid <> pg_backend_pid()
    union all
    select x.prepared from pg_prepared_xacts x where x.database = current_database()
  ) s;
$$;
comment on function packhorse.oldest_snapshot_seconds(timestamptz) is
  'Age of the oldest snapshot in this database that this role may see.';

create or replace function packhorse.table_statistics(p_now timestamptz) returns jsonb
language sql stable as $$
-- Sizes, dead rows, how long inserts find a partition, and the oldest snapshot: null when there is one whose
-- age this role may not see.
  with trees as (
    select t.name, n.relid from (values ('message_queue'), ('message_archive'), ('dead_letters')) as t (name)
    cross join lateral (
      select to_regclass(format('packhorse.%I', t.name))::oid as relid union select p.relid::oid
      from pg_partition_tree(to_regclass(format('packhorse.%I', t.name))) p) n
  )
  select jsonb_build_object(
    'table_bytes', (select jsonb_agg(jsonb_build_object('table', t.name, 'value', t.bytes)) from (
      select name, sum(pg_total_relation_size(relid)) as bytes from trees group by name) t),
    'table_dead_rows', (select jsonb_agg(jsonb_build_object('table', t.name, 'value', t.dead)) from (
      select name, coalesce(sum(pg_stat_get_dead_tuples(relid)), 0) as dead from trees group by name) t),
    'partition_runway_seconds',
    (select jsonb_agg(jsonb_build_object('table', e.table_name, 'every', e.every,
      'value', extract(epoch from e.ends_at - p_now)))
      from packhorse.partition_ends(p_now) e where isfinite(e.ends_at)),
    'oldest_snapshot_age_seconds', case when packhorse.snapshots_are_visible()
      then greatest(coalesce(packhorse.oldest_snapshot_seconds(p_now), 0), 0) end);
$$;
comment on function packhorse.table_statistics(timestamptz) is
  'Sizes, dead rows, time until inserts find no partition, age of the oldest snapshot.';

create or replace function packhorse.schedule_statistics(p_now timestamptz) returns jsonb
language sql stable as $$
-- How schedules, maintenance and backfills fare; the first hundred of each by name, so that a scrape stays
-- bounded.
  with timetable as (
    select h.name, h.lag_seconds, h.last_success_at, s.missed_total from packhorse.schedule_health h
    join packhorse.schedules s on s.name = h.name order by h.name limit 100),
  tasks as (select t.task, t.rows_total, t.last_success_at from packhorse.maintenance_tasks t
    order by t.task limit 100),
  backfills as (select b.name, b.rows_copied, b.rows_skipped, b.done_ratio, b.eta_seconds
    from packhorse.backfill_progress b order by b.name limit 100)
  select jsonb_build_object(
    'schedule_lag_seconds',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', coalesce(s.lag_seconds, 0)))
      from timetable s),
    'schedule_missed_total',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', s.missed_total)) from timetable s),
    'schedule_last_success_timestamp_seconds',
    (select jsonb_agg(jsonb_build_object('schedule', s.name, 'value', extract(epoch from s.last_success_at)))
      from timetable s where s.last_success_at is not null),
    'maintenance_rows_total',
    (select jsonb_agg(jsonb_build_object('task', t.task, 'value', t.rows_total)) from tasks t),
    'maintenance_last_success_timestamp_seconds',
    (select jsonb_agg(jsonb_build_object('task', t.task, 'value', extract(epoch from t.last_success_at)))
      from tasks t where t.last_success_at is not null),
    'backfill_rows_total',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'outcome', o.outcome, 'value', o.rows))
      from backfills b
      cross join lateral (values ('copied', b.rows_copied), ('skipped', b.rows_skipped)) as o (outcome,
        rows)),
    'backfill_done_ratio',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'value', b.done_ratio)) from backfills b
      where b.done_ratio is not null),
    'backfill_remaining_seconds',
    (select jsonb_agg(jsonb_build_object('backfill', b.name, 'value', b.eta_seconds)) from backfills b
      where b.eta_seconds is not null));
$$;
comment on function packhorse.schedule_statistics(timestamptz) is
  'Lag, misses and last success of schedules, rows and last success of maintenance tasks, progress of backfills.';

create or replace function packhorse.queue_statistics() returns jsonb
language sql stable as $$
-- For /metrics: which queues are paused, and which are forwarded.
  select jsonb_build_object('queue_paused',
    jsonb_agg(jsonb_build_object('queue', q.name, 'value', (q.paused_at is not null)::integer)),
    'queue_forwarded',
    jsonb_agg(jsonb_build_object('queue', q.name, 'value', 1)) filter (where q.forward is not null))
  from packhorse.queues q;
$$;
comment on function packhorse.queue_statistics() is
  'Which queues are paused or forwarded, for metrics.';

create or replace function packhorse.refresh_fleet_statistics(p_max_age interval default '15 seconds')
returns boolean
language plpgsql as $$
-- Count anew when the numbers are older than p_max_age (and than twenty times what counting took) and nobody
-- else is at it; says whether it did. Holds the row of fleet_statistics while it counts; readers and other
-- refreshers go on.
declare
  v_now timestamptz := clock_timestamp();
  v_messages jsonb;
  v_due jsonb;
  v_blocked jsonb;
  v_blocked_age jsonb;
  v_rest jsonb;
begin
  if p_max_age is null or p_max_age < interval '0' then
    perform packhorse.refuse_argument('max_age', 'must not be null or negative');
  end if;
  if not exists (select from packhorse.fleet_statistics) then
    insert into packhorse.fleet_statistics default values on conflict do nothing;
  end if;
  perform from packhorse.fleet_statistics s
  where s.refreshed_at = '-infinity'
    or v_now - s.refreshed_at > greatest(p_max_age, least(s.took * 20::float8, interval '10 minutes'))
  for update skip locked;
  if not found then
    return false;
  end if;
  select jsonb_agg(jsonb_build_object('queue', c.queue, 'state', c.state, 'value', c.messages,
    'estimated', c.estimated)),
    jsonb_agg(jsonb_build_object('queue', c.queue,
      'value', coalesce(greatest(extract(epoch from v_now - c.oldest_due), 0), 0)))
      filter (where c.state = 'pending')
  into v_messages, v_due from packhorse.count_queue_messages(v_now) c;
  select jsonb_agg(jsonb_build_object('queue', b.queue, 'value', b.conversations)),
    jsonb_agg(jsonb_build_object('queue', b.queue,
      'value', coalesce(greatest(extract(epoch from v_now - b.blocked_since), 0), 0)))
  into v_blocked, v_blocked_age from packhorse.count_blocked_conversations() b;
  v_rest := jsonb_build_object(
    'conversations_blocked', v_blocked, 'conversation_blocked_age_seconds', v_blocked_age,
    'dead_letters', (select jsonb_agg(jsonb_build_object('queue', q.name, 'value', d.n))
      from packhorse.queues q cross join lateral (
      select count(*) as n
      from (select from packhorse.dead_letters d where d.queue = q.name limit 100000) e) d),
    'isolated_messages', (select count(*)
      from (select from packhorse.message_queue m
        where m.state = 'pending' and m.crashes >= 2 limit 100000) i),
    'refused_completions',
    (select count(*)
      from (select from packhorse.message_queue m where m.completion_refused_at is not null limit 100000) r),
    'workers',
    (select jsonb_agg(jsonb_build_object('state', s.state, 'value', (select count(*) from packhorse.workers w
        where s.state = case when v_now - w.last_seen_at > w.lease_duration then 'silent' else w.state end)))
      from (values ('running'), ('quiet'), ('draining'), ('silent')) as s (state)));
  update packhorse.fleet_statistics set refreshed_at = v_now, took = clock_timestamp() - v_now,
    statistics = jsonb_build_object('queue_messages', v_messages, 'queue_oldest_due_age_seconds', v_due)
      || v_rest || packhorse.queue_statistics() || packhorse.table_statistics(v_now)
      || packhorse.schedule_statistics(v_now) || packhorse.service_statistics()
        || packhorse.scope_statistics(v_now);
  return true;
end
$$;
comment on function packhorse.refresh_fleet_statistics(interval) is
  'Count the fleet''s numbers anew if they are too old and nobody else is at it; says whether it did.';

create or replace function packhorse.fleet_statistics()
returns table (statistics jsonb, age_seconds double precision)
language sql stable as $$
-- What was counted last and how old it is by the database clock; no row before the first refresh.
  select s.statistics, extract(epoch from clock_timestamp() - s.refreshed_at)::double precision
  from packhorse.fleet_statistics s where isfinite(s.refreshed_at);
$$;
comment on function packhorse.fleet_statistics() is 'The fleet''s numbers as JSON, and their age in seconds.';

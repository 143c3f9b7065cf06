-- Health checks (SPEC O1) of the queue: what waits, how long it took, what was left over.
--
-- A check returns one row (status, summary, details): ok, warn or fail. Thresholds are arguments. Everything
-- is bounded: live messages and dead letters are read by an index up to a limit ("at least" in the summary
-- when it was reached), the archive in samples. No error messages are shown, for they may quote people: a
-- fingerprint and an id lead to them.

create or replace function packhorse.health_queues(p_now timestamptz, p_limit integer, p_warn_due integer,
  p_warn double precision, p_fail double precision)
returns table (queue text, pending bigint, delayed bigint, running bigint, blocked bigint, estimates text[],
  late double precision, declared boolean, paused boolean, has_worker boolean, level text)
language sql volatile as $$
-- Every queue with its live messages and its status, queues that nobody has declared included. late: seconds
-- since its oldest due message was due; p_warn and p_fail are bounds of it. estimates: the states whose
-- number is the planner's; null: none.
  with counted as (
    select c.queue, max(c.messages) filter (where c.state = 'pending') as pending,
      max(c.messages) filter (where c.state = 'delayed') as delayed,
      max(c.messages) filter (where c.state = 'running') as running,
      max(c.messages) filter (where c.state = 'blocked') as blocked,
      array_agg(c.state order by c.state) filter (where c.estimated) as estimates,
      extract(epoch from p_now - min(c.oldest_due))::float8 as late
    from packhorse.count_queue_messages(p_now, p_limit) c group by c.queue
    union all
    select u.queue, u.due, u.delayed, 0, 0, case when u.estimated then array['pending', 'delayed'] end,
      extract(epoch from p_now - u.oldest_due)::float8
    from packhorse.count_undeclared_messages(p_now, p_limit) u
  )
  select c.*, q.name is not null, q.paused_at is not null,
    exists (select from packhorse.workers w
      where c.queue = any (w.queues) and p_now - w.last_seen_at <= w.lease_duration and w.state <> 'quiet'
        and (q is null or packhorse.queue_goes_to(q, w.forward))),
    case when q.paused_at is not null then case when c.pending > 0 then 'warn' else 'ok' end
      when q.name is null
      then packhorse.health_worst(array['warn', packhorse.health_level(c.late, p_warn, p_fail)])
      else packhorse.health_worst(array[packhorse.health_level(c.pending::float8, p_warn_due, null),
        packhorse.health_level(c.late, p_warn, p_fail)]) end
  from counted c left join packhorse.queues q on q.name = c.queue;
$$;
comment on function packhorse.health_queues(timestamptz, integer, integer, double precision,
  double precision) is 'Every queue with its live messages and its status.';

create or replace function packhorse.health_live_states(p_now timestamptz, p_limit integer) returns jsonb
language sql stable as $$
-- The oldest p_limit live messages by state: how many, how often they were tried again, how old they are.
  select coalesce(jsonb_agg(jsonb_build_object('state', s.state, 'messages', s.n, 'retries_mean', s.retries,
    'retries_most', s.most, 'oldest_seconds', s.age) order by s.state), '[]')
  from (
    select o.state, count(*) as n, round(avg(o.retries), 2) as retries, max(o.retries) as most,
      extract(epoch from p_now - min(o.created_at))::float8 as age
    from (select m.state::text as state, greatest(m.attempt::integer - 1, 0) as retries, m.created_at
      from packhorse.message_queue m order by m.id limit p_limit) o
    group by o.state
  ) s;
$$;
comment on function packhorse.health_live_states(timestamptz, integer) is
  'The oldest live messages by state, with their retries.';

create or replace function packhorse.health_queue_health(
  p_warn_after interval default '1 minute', p_fail_after interval default '10 minutes',
  p_limit integer default 10000, p_warn_due integer default 100
) returns table (status text, summary text, details jsonb)
language plpgsql volatile as $$
-- How late the oldest due message of each queue is; p_warn_due of them in one queue are a warning too. A
-- paused queue with due messages is a warning, and so are messages of a queue that nobody has declared,
-- completions that the database refuses, and scopes parked for longer than p_warn_after. Beside it: messages
-- that wait to run apart.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with apart as (
    select (select count(*) from (select from packhorse.message_queue m
        where m.state = 'pending' and m.crashes >= 2 limit p_limit) i) as isolated,
      (select count(*) from (select from packhorse.message_queue m
        where m.completion_refused_at is not null limit p_limit) r) as refused,
      (select min(m.error ->> 'message') from packhorse.message_queue m
        where m.completion_refused_at is not null) as refusal
  ), resting as (
    select count(*) as n, bool_or(v_now - s.parked_at > p_warn_after) as long,
      (array_agg(s.name order by s.parked_at, s.name))[:20] as names
    from packhorse.scopes s where s.ends_at > v_now
  ), placed as (
    select q.*, row_number() over (order by q.level = 'fail' desc, q.level = 'warn' desc,
      q.late desc nulls last, q.queue) as place
    from packhorse.health_queues(v_now, p_limit, p_warn_due, extract(epoch from p_warn_after)::float8,
      extract(epoch from p_fail_after)::float8) q)
  select packhorse.health_worst(array_agg(p.level) || case when max(a.refused) > 0 then 'warn' end
      || case when bool_or(r.long) then 'warn' end),
    format('%s queue(s): %s%s due, %s delayed, %s blocked, %s running%s%s%s%s', count(*),
      case when bool_or(p.estimates is not null) then 'about ' end, sum(p.pending),
      sum(p.delayed), sum(p.blocked), sum(p.running),
      case when max(a.isolated) > 0
        then format(', %s wait to run apart', packhorse.health_count(max(a.isolated), p_limit)) end,
      case when max(a.refused) > 0
        then format(', %s done but not written: %s', packhorse.health_count(max(a.refused), p_limit),
          left(max(a.refusal), 100)) end,
      case when max(r.n) > 0
        then format(', %s scope(s) parked: %s', max(r.n), left(array_to_string(max(r.names), ', '), 200)) end,
      (select format('; worst is %s: %s%s%s', w.queue,
        coalesce('oldest due for ' || packhorse.health_duration(w.late), 'nothing due yet'),
        case when w.paused then ', paused' else '' end,
        case when not w.declared then ', nobody has declared it' when w.has_worker then ''
          else ', no live worker' end) from placed w where w.place = 1 and w.level <> 'ok')),
    jsonb_build_object(
      'queues', jsonb_agg(jsonb_build_object('queue', p.queue, 'status', p.level, 'due', p.pending,
        'delayed', p.delayed, 'blocked', p.blocked, 'running', p.running,
        'estimated', p.estimates is not null, 'estimates', coalesce(to_jsonb(p.estimates), '[]'),
        'oldest_due_seconds', p.late, 'paused', p.paused, 'declared', p.declared,
        'has_worker', p.has_worker) order by p.place) filter (where p.place <= 50),
      'states', packhorse.health_live_states(v_now, p_limit), 'isolated', max(a.isolated),
      'refused', max(a.refused), 'parked', to_jsonb(max(r.names)))
  from placed p cross join apart a cross join resting r;
end
$$;
comment on function packhorse.health_queue_health(interval, interval, integer, integer) is
  'Health check: how late the oldest due message of each queue is, and how many are due.';

create or replace function packhorse.health_processing_latency(
  p_window interval default '1 hour', p_warn_p95 interval default '30 seconds',
  p_fail_p95 interval default '5 minutes', p_blocks integer default 4000,
  p_hours integer default 24
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- How long handlers took (from the claim to the end) for messages done within p_window: p50, p95, p99, max,
-- over all and for the slowest types; and for each of the last p_hours (1..168) hours, of the newest p_blocks
-- blocks of a day. Waiting from enqueue to claim is shown beside it and not judged: it includes wanted
-- delays.
declare
  v_now constant timestamptz := clock_timestamp();
  v_hours constant integer := least(greatest(p_hours, 1), 168);
begin
  return query
  with day as materialized (
    select e.message_type, e.run, e.wait, e.finished_at, e.whole
    from packhorse.recent_ends(v_now - greatest(p_window, v_hours::float8 * interval '1 hour'), p_blocks) e
  ), hours as (
    select floor(extract(epoch from v_now - d.finished_at) / 3600.0)::integer as hours_ago, count(*) as n,
      max(d.run) as most, percentile_cont(array[0.5, 0.95, 0.99]) within group (order by d.run) as run
    from day d group by 1
  ), ends as (
    select d.* from day d where d.finished_at > v_now - p_window
  ), total as (
    select count(*) as n, percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run,
      percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.wait) as wait,
      coalesce(bool_and(e.whole), true) as whole, min(e.finished_at) as since, max(e.run) as most
    from ends e
  ), types as (
    select e.message_type, count(*) as n,
      percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run from ends e
      group by e.message_type
  ), placed as (
    select t.*, row_number() over (order by t.run[2] desc nulls last, t.message_type) as place from types t)
  select packhorse.health_level(t.run[2], extract(epoch from p_warn_p95)::float8,
    extract(epoch from p_fail_p95)::float8),
    case when t.n = 0 then 'nothing was done in the last '
      || packhorse.health_duration(extract(epoch from p_window)::float8)
      else format('handlers took %s p50, %s p95, %s p99 (%s messages%s)', packhorse.health_duration(t.run[1]),
        packhorse.health_duration(t.run[2]), packhorse.health_duration(t.run[3]), t.n,
        case when t.whole then '' else ', the newest' end) end,
    jsonb_build_object('messages', t.n, 'whole', t.whole, 'since', t.since,
      'run_seconds', jsonb_build_object('p50', t.run[1], 'p95', t.run[2], 'p99', t.run[3],
        'max', t.most), 'hours',
      coalesce((select jsonb_agg(jsonb_build_object('from',
        v_now - (h.hours_ago + 1)::float8 * interval '1 hour', 'messages', h.n,
        'p50', h.run[1], 'p95', h.run[2], 'p99', h.run[3], 'max', h.most) order by h.hours_ago) from hours h
        where h.hours_ago < v_hours), '[]'),
      'wait_seconds', jsonb_build_object('p50', t.wait[1], 'p95', t.wait[2], 'p99', t.wait[3]),
      'slowest_types',
      coalesce((select jsonb_agg(jsonb_build_object('message_type', p.message_type, 'messages', p.n,
        'p50', p.run[1], 'p95', p.run[2], 'p99', p.run[3]) order by p.place) from placed p
        where p.place <= 10), '[]'))
  from total t;
end
$$;
comment on function packhorse.health_processing_latency(interval, interval, interval, integer, integer) is
  'Health check: p50, p95 and p99 of handlers, over all and by type.';

create or replace function packhorse.health_stale_locks(
  p_warn_after interval default '30 seconds', p_fail_after interval default '5 minutes',
  p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Leases of running messages that are over: rescue does not come by. Locks of conversations that are over
-- hinder nobody (they can be taken), and are counted.
declare
  v_now constant timestamptz := clock_timestamp();
  v_locks bigint;
  v_platform bigint;
begin
  v_locks := (select count(*)
    from (select from packhorse.conversation_locks c where c.expires_at <= v_now limit p_limit) l);
  if packhorse.has_platform_table('conversations') then
    v_platform := (select count(*) from (
      select from platform.conversations c
      where c.locked_at is not null and c.lock_expires_at <= v_now limit p_limit) l);
  end if;
  return query
  with running as (
    select m.id, m.queue, m.lease_holder, m.lease_expires_at from packhorse.message_queue m
    where m.lease_token is not null order by m.id limit p_limit
  ), over as (
    select r.id, r.queue, r.lease_holder, extract(epoch from v_now - r.lease_expires_at)::float8 as late,
      row_number() over (order by r.lease_expires_at, r.id) as place from running r
      where r.lease_expires_at <= v_now)
  select packhorse.health_level(max(o.late), extract(epoch from p_warn_after)::float8,
    extract(epoch from p_fail_after)::float8),
    format('%s of %s leases are over%s; %s conversation lock(s) are over', count(*),
      packhorse.health_count((select count(*) from running), p_limit),
      case when count(*) > 0 then ', the oldest for ' || packhorse.health_duration(max(o.late)) end,
        packhorse.health_count(v_locks + coalesce(v_platform, 0), p_limit)),
    jsonb_build_object('leases', (select count(*) from running), 'over', count(*),
      'oldest_seconds', max(o.late), 'conversation_locks_over', v_locks, 'platform_locks_over', v_platform,
      'oldest',
      coalesce(jsonb_agg(jsonb_build_object('message_id', o.id, 'queue', o.queue, 'holder', o.lease_holder,
        'late_seconds', o.late) order by o.place) filter (where o.place <= 5), '[]'))
  from over o;
end
$$;
comment on function packhorse.health_stale_locks(interval, interval, integer) is
  'Health check: leases and locks whose time is over.';

create or replace function packhorse.health_dedup_effectiveness(
  p_window interval default '1 hour', p_unprocessed_after interval default '15 minutes',
  p_warn_ratio double precision default 0.01, p_fail_ratio double precision default 0.25,
  p_left_over interval default '1 hour', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Do the windows work? Webhooks seen within p_window that were not marked processed p_unprocessed_after later
-- (a second delivery would run again), and dedup windows that ended p_left_over ago and were not cleaned up.
-- Refused duplicates leave no trace in the database, so they are not counted here.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with seen as (
    select p.processed_at, p.processing_ms,
      p.processed_at is null and p.first_seen_at <= v_now - p_unprocessed_after as lost
    from packhorse.processed_messages p where p.first_seen_at > v_now - p_window
    order by p.first_seen_at desc limit p_limit
  ), webhooks as (
    select count(*) as n, count(s.processed_at) as processed, count(*) filter (where s.lost) as lost,
      percentile_cont(0.95) within group (order by s.processing_ms) as p95 from seen s
  ), windows as (
    select (select count(*)
      from (select from packhorse.message_dedup d where d.expires_at > v_now limit p_limit) o) as open,
      (select count(*)
        from (select from packhorse.message_dedup d
          where d.expires_at <= v_now - p_left_over limit p_limit) o) as left_over)
  select packhorse.health_worst(array[packhorse.health_level(w.lost::float8 / nullif(w.n, 0)::float8,
    p_warn_ratio, p_fail_ratio), case when d.left_over > 0 then 'warn' end]),
    format('%s webhook(s) in the last %s, %s never marked processed; %s dedup window(s) open, %s left over',
      packhorse.health_count(w.n, p_limit), packhorse.health_duration(extract(epoch from p_window)::float8),
      w.lost, packhorse.health_count(d.open, p_limit), packhorse.health_count(d.left_over, p_limit)),
    jsonb_build_object('webhooks', w.n, 'processed', w.processed, 'unprocessed', w.lost,
      'processing_p95_ms', w.p95, 'windows_open', d.open, 'windows_left_over', d.left_over)
  from webhooks w cross join windows d;
end
$$;
comment on function packhorse.health_dedup_effectiveness(interval, interval, double precision,
  double precision, interval, integer)
  is 'Health check: webhooks that were never marked processed, dedup windows that were not cleaned up.';

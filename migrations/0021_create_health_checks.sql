-- The fourteen health checks (SPEC O1): a function each, and health_checks() for all of them.
--
-- A check returns one row (status, summary, details): ok, warn, fail, or absent where what it looks at is not part of
-- this database. Thresholds are arguments. Everything is bounded, so a table of any size costs the same: live messages
-- and dead letters by an index up to a limit ("at least" in the summary when it was reached), the archive by the blocks
-- of the days in question: its rows never move, so the last blocks are the last ends. No error messages are shown, for
-- they may quote people: a fingerprint and an id lead to them.
--
-- Lock and duration: new functions only, milliseconds.

create function health_level(p_value double precision, p_warn double precision, p_fail double precision) returns text
language sql immutable set search_path from current as $$
-- The status of a number that should be small; null is ok.
  select case when p_value >= p_fail then 'fail' when p_value >= p_warn then 'warn' else 'ok' end;
$$;
comment on function health_level(double precision, double precision, double precision) is 'Status of a number that should be small: ok, warn or fail.';

create function health_worst(p_statuses text[]) returns text
language sql immutable set search_path from current as $$
-- The worst of several statuses; ok when there are none.
  select case when 'fail' = any (p_statuses) then 'fail' when 'warn' = any (p_statuses) then 'warn' else 'ok' end;
$$;
comment on function health_worst(text[]) is 'The worst of several statuses.';

create function health_count(p_count bigint, p_limit bigint) returns text
language sql immutable set search_path from current as $$
-- A count that stopped at a limit, in words.
  select case when p_count >= p_limit then 'at least ' || p_count else coalesce(p_count, 0)::text end;
$$;
comment on function health_count(bigint, bigint) is 'A count that stopped at a limit, in words.';

create function health_duration(p_seconds double precision) returns text
language sql immutable set search_path from current as $$
-- Seconds for people; null stays null.
  select case when p_seconds < 1 then round((p_seconds * 1000)::numeric) || ' ms'
    when p_seconds < 120 then round(p_seconds::numeric, 1) || ' s' when p_seconds < 7200 then round((p_seconds / 60)::numeric) || ' min'
    when p_seconds < 172800 then round((p_seconds / 3600)::numeric) || ' h' else round((p_seconds / 86400)::numeric) || ' days' end;
$$;
comment on function health_duration(double precision) is 'Seconds for people.';

create function has_platform_table(p_table text) returns boolean
language sql stable set search_path from current as $$
-- Is this table here, and ours? Another team's table may have the same name: then the platform was never installed.
  select to_regclass(quote_ident(p_table)) is not null
    and exists (select from packhorse_migrations m where m.name = 'platform/0013_grant_platform_privileges');
$$;
comment on function has_platform_table(text) is 'Has this database the conversation platform with this table?';

create function health_absent(p_table text) returns table (status text, summary text, details jsonb)
language sql immutable set search_path from current as $$
-- The answer of a check whose table is not here.
  select 'absent', format('no table %s: the conversation platform is not installed', p_table), '{}'::jsonb;
$$;
comment on function health_absent(text) is 'The answer of a check whose table is not here.';

create function archive_reading(p_since timestamptz, p_until timestamptz, p_blocks integer)
returns table (lower_at timestamptz, upper_at timestamptz, first_tid tid, percent real, whole boolean)
language sql stable set search_path from current as $$
-- How to read the archive from p_since to p_until with at most p_blocks blocks of each day: from which block on (the
-- newest rows), or which share (any rows).
  select greatest(d.day at time zone 'UTC', p_since), least((d.day + interval '1 day') at time zone 'UTC', p_until),
    format('(%s,0)', greatest(s.blocks - p_blocks, 0))::tid, least(100, 100.0 * p_blocks / s.blocks)::real, s.blocks <= p_blocks
  from generate_series(date_trunc('day', p_since at time zone 'UTC'), p_until at time zone 'UTC', interval '1 day') as d (day)
  cross join lateral (select pg_relation_size(to_regclass('message_archive_' || to_char(d.day, 'YYYYMMDD')))
    / current_setting('block_size')::bigint as blocks) s
  where s.blocks > 0;
$$;
comment on function archive_reading(timestamptz, timestamptz, integer) is 'Used by the health checks: which part of each day of the archive to read.';

create function recent_ends(p_since timestamptz, p_blocks integer)
returns table (id bigint, queue text, message_type text, attempt integer, error_class text, wait double precision, run double precision,
  finished_at timestamptz, whole boolean)
language plpgsql stable set search_path from current set plan_cache_mode = force_custom_plan as $$
-- Messages that were done since p_since, from the newest p_blocks blocks of each day; seconds from enqueue to claim and
-- from claim to end. whole = false: there were more blocks.
declare
  v_day record;
begin
  for v_day in select * from archive_reading(p_since, clock_timestamp(), p_blocks) loop
    return query
    select a.id, a.queue, a.message_type, a.attempt, a.error ->> 'class', extract(epoch from a.claimed_at - a.created_at)::float8,
      extract(epoch from a.finished_at - a.claimed_at)::float8, a.finished_at, v_day.whole
    from message_archive a
    where a.finished_at >= v_day.lower_at and a.finished_at < v_day.upper_at and a.ctid >= v_day.first_tid and a.state = 'done';
  end loop;
end
$$;
comment on function recent_ends(timestamptz, integer) is 'Used by the health checks: the newest done messages, at most so many blocks of each day.';

create function ends_by_hour(p_now timestamptz, p_hours integer, p_blocks integer)
returns table (hours_ago integer, done bigint, retried bigint, estimated boolean)
language plpgsql volatile set search_path from current set plan_cache_mode = force_custom_plan as $$
-- Messages done in each of the last p_hours hours, and those of them that had failed before. A day of more than
-- p_blocks blocks is counted from a sample of its blocks.
declare
  v_day record;
begin
  for v_day in select * from archive_reading(p_now - p_hours * interval '1 hour', p_now, p_blocks) loop
    return query
    select floor(extract(epoch from p_now - a.finished_at) / 3600)::integer, round(count(*) * 100 / v_day.percent)::bigint,
      round(count(*) filter (where a.error is not null) * 100 / v_day.percent)::bigint, not v_day.whole
    from message_archive a tablesample system (v_day.percent)
    where a.finished_at >= v_day.lower_at and a.finished_at < v_day.upper_at and a.state = 'done'
    group by 1;
  end loop;
end
$$;
comment on function ends_by_hour(timestamptz, integer, integer) is 'Used by the health checks: messages done per hour, from a sample of a large archive.';

create function health_stuck_workflows(
  p_warn_after interval default '1 minute', p_fail_after interval default '15 minutes', p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Workflows that run past their timeout: mark_timed_out_workflows() does not come by.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not has_platform_table('workflow_states') then
    return query select * from health_absent('workflow_states');
    return;
  end if;
  return query
  with overdue as (
    select w.id, w.workflow_type, w.step, extract(epoch from v_now - w.timeout_at)::float8 as late, row_number() over (order by w.timeout_at) as place
    from workflow_states w where w.status = 'running' and w.timeout_at <= v_now order by w.timeout_at limit p_limit)
  select health_level(max(o.late), extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8),
    health_count(count(*), p_limit) || ' past their timeout' || coalesce(', the oldest for ' || health_duration(max(o.late)), ''),
    jsonb_build_object('overdue', count(*), 'oldest_seconds', max(o.late), 'oldest', jsonb_agg(jsonb_build_object(
      'id', o.id, 'workflow_type', o.workflow_type, 'step', o.step, 'late_seconds', o.late) order by o.place) filter (where o.place <= 5))
  from overdue o;
end
$$;
comment on function health_stuck_workflows(interval, interval, integer) is 'Health check: workflows that run past their timeout.';

create function health_queue_health(
  p_warn_after interval default '1 minute', p_fail_after interval default '10 minutes', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql volatile set search_path from current as $$
-- How late the oldest due message of each queue is. A paused queue with due messages is a warning.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with counted as (
    select c.queue, max(c.messages) filter (where c.state = 'pending') as pending, max(c.messages) filter (where c.state = 'delayed') as delayed,
      max(c.messages) filter (where c.state = 'running') as running, max(c.messages) filter (where c.state = 'blocked') as blocked,
      bool_or(c.estimated) as estimated, extract(epoch from v_now - min(c.oldest_due))::float8 as late
    from count_queue_messages(v_now, p_limit) c group by c.queue
  ), judged as (
    select c.*, q.paused_at is not null as paused, exists (select from workers w
        where c.queue = any (w.queues) and v_now - w.last_seen_at <= w.lease_duration) as has_worker,
      case when q.paused_at is not null then case when c.pending > 0 then 'warn' else 'ok' end
        else health_level(c.late, extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8) end as level
    from counted c join queues q on q.name = c.queue
  ), placed as (
    select j.*, row_number() over (order by j.level = 'fail' desc, j.level = 'warn' desc, j.late desc nulls last, j.queue) as place from judged j)
  select health_worst(array_agg(p.level)),
    format('%s queue(s): %s due, %s delayed, %s blocked, %s running%s', count(*), sum(p.pending), sum(p.delayed), sum(p.blocked), sum(p.running),
      (select format('; worst is %s: oldest due for %s%s%s', w.queue, health_duration(w.late), case when w.paused then ', paused' else '' end,
        case when w.has_worker then '' else ', no live worker' end) from placed w where w.place = 1 and w.level <> 'ok')),
    jsonb_build_object('queues', jsonb_agg(jsonb_build_object('queue', p.queue, 'status', p.level, 'due', p.pending, 'delayed', p.delayed,
      'blocked', p.blocked, 'running', p.running, 'estimated', p.estimated, 'oldest_due_seconds', p.late, 'paused', p.paused,
      'has_worker', p.has_worker) order by p.place) filter (where p.place <= 50))
  from placed p;
end
$$;
comment on function health_queue_health(interval, interval, integer) is 'Health check: how late the oldest due message of each queue is.';

create function health_dead_letters(
  p_window interval default '1 hour', p_warn integer default 1, p_fail integer default 100, p_warn_age interval default '23 days',
  p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Messages given up within p_window, by cause; a warning too when the oldest dead letter will soon be removed by age (30 days).
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with recent as (
    select d.message_type, d.reason, d.error_class, d.fingerprint, d.id
    from dead_letters d where d.dead_at > v_now - p_window order by d.dead_at desc limit p_limit
  ), causes as (
    select r.message_type, r.reason, r.error_class, r.fingerprint, count(*) as n, max(r.id) as last_id,
      row_number() over (order by count(*) desc, r.fingerprint) as place
    from recent r group by r.message_type, r.reason, r.error_class, r.fingerprint
  ), kept as (
    select (select count(*) from (select from dead_letters limit p_limit) k) as n, (select min(d.dead_at) from dead_letters d) as oldest_at,
      (select count(*) from (select from dead_letters d where d.blocks_conversation limit p_limit) b) as blocking
  )
  select health_worst(array[health_level(coalesce(sum(c.n), 0)::float8, p_warn, p_fail), case when k.oldest_at <= v_now - p_warn_age then 'warn' end]),
    format('%s in the last %s, %s kept%s%s', health_count(coalesce(sum(c.n), 0)::bigint, p_limit), health_duration(extract(epoch from p_window)::float8),
      health_count(k.n, p_limit), case when k.blocking > 0 then format(', %s hold their conversation', k.blocking) end,
      case when k.oldest_at <= v_now - p_warn_age then format('; the oldest is %s old and goes after 30 days',
        health_duration(extract(epoch from v_now - k.oldest_at)::float8)) end),
    jsonb_build_object('recent', coalesce(sum(c.n), 0), 'kept', k.n, 'kept_is_limit', k.n >= p_limit, 'blocking', k.blocking, 'oldest_at', k.oldest_at,
      'causes', coalesce(jsonb_agg(jsonb_build_object('message_type', c.message_type, 'reason', c.reason, 'error_class', c.error_class,
        'fingerprint', c.fingerprint, 'count', c.n, 'last_id', c.last_id) order by c.place) filter (where c.place <= 10), '[]'))
  from kept k left join causes c on true group by k.n, k.oldest_at, k.blocking;
end
$$;
comment on function health_dead_letters(interval, integer, integer, interval, integer) is 'Health check: messages given up lately, by cause.';

create function health_agent_performance(
  p_window interval default '1 hour', p_warn_reply interval default '30 seconds', p_fail_reply interval default '2 minutes',
  p_unanswered_after interval default '5 minutes', p_warn_unanswered double precision default 0.1, p_fail_unanswered double precision default 0.5,
  p_limit integer default 500
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- How long agents take to answer (p95), and the share of sessions whose last word has been the user's for
-- p_unanswered_after; from the newest p_limit open sessions. A session ends 24 hours after its last message: expires_at tells.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not has_platform_table('agent_chat_sessions') then
    return query select * from health_absent('agent_chat_sessions');
    return;
  end if;
  return query
  with sessions as (
    select s.id, s.agent_type, s.history, s.history -> -1 as last from agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at > v_now - p_window + interval '24 hours' order by s.expires_at desc limit p_limit
  ), said as (
    select s.agent_type, e.value ->> 'role' as role, lag(e.value ->> 'role') over w as role_before, (e.value ->> 'sent_at')::timestamptz as sent_at,
      lag((e.value ->> 'sent_at')::timestamptz) over w as sent_before
    from sessions s cross join lateral jsonb_array_elements(s.history) with ordinality e
    window w as (partition by s.id order by e.ordinality)
  ), replies as (
    select s.agent_type, count(*) as n, percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from s.sent_at - s.sent_before)::float8) as p
    from said s where s.role = 'assistant' and s.role_before = 'user' and s.sent_at > v_now - p_window group by s.agent_type
  ), agents as (
    select s.agent_type, count(*) as n, count(*) filter (where s.last ->> 'role' = 'user'
      and (s.last ->> 'sent_at')::timestamptz <= v_now - p_unanswered_after) as unanswered from sessions s group by s.agent_type
  ), judged as (
    select a.*, r.n as replies, r.p[1] as p50, r.p[2] as p95, health_worst(array[
      health_level(r.p[2], extract(epoch from p_warn_reply)::float8, extract(epoch from p_fail_reply)::float8),
      health_level(a.unanswered::float8 / a.n, p_warn_unanswered, p_fail_unanswered)]) as level
    from agents a left join replies r on r.agent_type = a.agent_type)
  select health_worst(array_agg(j.level)), format('%s session(s) with messages lately, %s unanswered%s', health_count(coalesce(sum(j.n), 0)::bigint, p_limit),
      coalesce(sum(j.unanswered), 0), '; the slowest agent answers in ' || health_duration(max(j.p95)) || ' (p95)'),
    jsonb_build_object('sessions', coalesce(sum(j.n), 0), 'agents', coalesce(jsonb_agg(jsonb_build_object('agent_type', j.agent_type,
      'status', j.level, 'sessions', j.n, 'unanswered', j.unanswered, 'replies', coalesce(j.replies, 0), 'reply_p50_seconds', j.p50,
      'reply_p95_seconds', j.p95) order by j.agent_type), '[]'))
  from judged j;
end
$$;
comment on function health_agent_performance(interval, interval, interval, interval, double precision, double precision, integer)
  is 'Health check: how long AI agents take to answer, and what stays unanswered.';

create function health_conversation_state(
  p_warn_after interval default '5 minutes', p_fail_after interval default '1 hour', p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current set enable_seqscan = off set jit = off as $$
-- Conversations whose messages wait for their turn: how many, and for how long. One index probe per conversation.
declare
  v_now constant timestamptz := clock_timestamp();
  v_dead bigint;
begin
  v_dead := (select count(*) from (select from dead_letters d where d.blocks_conversation limit p_limit) b);
  return query
  with recursive waiting (conversation_key, id, created_at, place) as (
    (select m.conversation_key::text, m.id, m.created_at, 1 from message_queue m where m.state = 'blocked' order by m.conversation_key, m.id limit 1)
    union all
    (select n.* from waiting w cross join lateral (
       select m.conversation_key::text, m.id, m.created_at, w.place + 1 from message_queue m
       where m.state = 'blocked' and m.conversation_key > w.conversation_key order by m.conversation_key, m.id limit 1) n
     where w.place < p_limit)
  ), aged as (
    select w.conversation_key, w.id, extract(epoch from v_now - w.created_at)::float8 as age, row_number() over (order by w.created_at, w.id) as place
    from waiting w
  ), held as (
    select a.*, h.holder_kind, h.holder_id from aged a left join lateral (
      select c.holder_kind, c.holder_id from conversation_holders(a.conversation_key, 9223372036854775807) c
      order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true
    where a.place <= 5)
  select health_level((select max(a.age) from aged a), extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8),
    format('%s conversation(s) wait%s; %s dead letter(s) hold one', health_count((select count(*) from aged), p_limit),
      ', the longest for ' || health_duration((select max(a.age) from aged a)), health_count(v_dead, p_limit)),
    jsonb_build_object('waiting', (select count(*) from aged), 'oldest_seconds', (select max(a.age) from aged a), 'dead_holders', v_dead,
      'oldest', coalesce((select jsonb_agg(jsonb_build_object('message_id', h.id, 'waiting_seconds', h.age, 'holder_kind', h.holder_kind,
        'holder_id', h.holder_id) order by h.place) from held h), '[]'));
end
$$;
comment on function health_conversation_state(interval, interval, integer) is 'Health check: conversations whose messages wait, and for whom.';

create function health_processing_latency(
  p_window interval default '1 hour', p_warn_p95 interval default '30 seconds', p_fail_p95 interval default '5 minutes', p_blocks integer default 4000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- How long handlers took (from the claim to the end) for messages done within p_window: p50, p95, p99, over all and for
-- the slowest types. Waiting from enqueue to claim is shown beside it and not judged: it includes wanted delays.
begin
  return query
  with ends as materialized (
    select e.message_type, e.run, e.wait, e.finished_at, e.whole from recent_ends(clock_timestamp() - p_window, p_blocks) e
  ), total as (
    select count(*) as n, percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run,
      percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.wait) as wait, coalesce(bool_and(e.whole), true) as whole, min(e.finished_at) as since
    from ends e
  ), types as (
    select e.message_type, count(*) as n, percentile_cont(array[0.5, 0.95, 0.99]) within group (order by e.run) as run from ends e group by e.message_type
  ), placed as (
    select t.*, row_number() over (order by t.run[2] desc nulls last, t.message_type) as place from types t)
  select health_level(t.run[2], extract(epoch from p_warn_p95)::float8, extract(epoch from p_fail_p95)::float8),
    case when t.n = 0 then 'nothing was done in the last ' || health_duration(extract(epoch from p_window)::float8)
      else format('handlers took %s p50, %s p95, %s p99 (%s messages%s)', health_duration(t.run[1]), health_duration(t.run[2]),
        health_duration(t.run[3]), t.n, case when t.whole then '' else ', the newest' end) end,
    jsonb_build_object('messages', t.n, 'whole', t.whole, 'since', t.since, 'run_seconds', jsonb_build_object('p50', t.run[1], 'p95', t.run[2], 'p99', t.run[3]),
      'wait_seconds', jsonb_build_object('p50', t.wait[1], 'p95', t.wait[2], 'p99', t.wait[3]),
      'slowest_types', coalesce((select jsonb_agg(jsonb_build_object('message_type', p.message_type, 'messages', p.n, 'p50', p.run[1], 'p95', p.run[2],
        'p99', p.run[3]) order by p.place) from placed p where p.place <= 10), '[]'))
  from total t;
end
$$;
comment on function health_processing_latency(interval, interval, interval, integer) is 'Health check: p50, p95 and p99 of handlers, over all and by type.';

create function health_error_rate(
  p_hours integer default 24, p_warn_ratio double precision default 0.05, p_fail_ratio double precision default 0.25,
  p_least integer default 20, p_blocks integer default 4000, p_limit integer default 100000
) returns table (status text, summary text, details jsonb)
language plpgsql volatile set search_path from current as $$
-- Dead letters among all ends, for each of the last p_hours (1..168) hours, counted back from now. The last hour is judged,
-- when at least p_least messages ended in it. Retried: done, but after a failure. Queues with keep_done = 0 leave no done ones.
declare
  v_now constant timestamptz := clock_timestamp();
  v_hours constant integer := least(greatest(p_hours, 1), 168);
begin
  return query
  with done as (
    select e.hours_ago, sum(e.done)::bigint as done, sum(e.retried)::bigint as retried, bool_or(e.estimated) as estimated
    from ends_by_hour(v_now, v_hours, p_blocks) e group by e.hours_ago
  ), dead as (
    select floor(extract(epoch from v_now - d.dead_at) / 3600)::integer as hours_ago, count(*) as dead from (
      select l.dead_at from dead_letters l where l.dead_at > v_now - v_hours * interval '1 hour' order by l.dead_at desc limit p_limit) d group by 1
  ), hours as (
    select h.hours_ago, coalesce(o.done, 0) as done, coalesce(o.retried, 0) as retried, coalesce(d.dead, 0) as dead, coalesce(o.estimated, false) as estimated,
      coalesce(d.dead, 0)::float8 / nullif(coalesce(o.done, 0) + coalesce(d.dead, 0), 0) as ratio
    from generate_series(0, v_hours - 1) as h (hours_ago) left join done o on o.hours_ago = h.hours_ago left join dead d on d.hours_ago = h.hours_ago)
  select case when n.done + n.dead >= p_least then health_level(n.ratio, p_warn_ratio, p_fail_ratio) else 'ok' end,
    format('%s of %s messages that ended in the last hour are dead letters (%s %%), %s were retried', n.dead, n.done + n.dead,
      round(100 * coalesce(n.ratio, 0)::numeric, 1), n.retried),
    jsonb_build_object('last_hour_ratio', n.ratio, 'hours', (select jsonb_agg(jsonb_build_object('from', v_now - (h.hours_ago + 1) * interval '1 hour',
      'done', h.done, 'retried', h.retried, 'dead', h.dead, 'ratio', h.ratio, 'estimated', h.estimated) order by h.hours_ago) from hours h))
  from hours n where n.hours_ago = 0;
end
$$;
comment on function health_error_rate(integer, double precision, double precision, integer, integer, integer) is 'Health check: dead letters among all ends, by hour.';

create function health_top_errors(
  p_window interval default '1 hour', p_warn integer default 10, p_fail integer default 1000, p_limit integer default 10000, p_blocks integer default 4000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- The most frequent errors of messages that ended within p_window: dead letters, and those that were done after a
-- failure (their last error). The most frequent one is judged by its count.
declare
  v_since constant timestamptz := clock_timestamp() - p_window;
begin
  return query
  with failures as (
    (select d.message_type, coalesce(d.error_class, d.reason) as error_class, d.id, true as dead, d.fingerprint
     from dead_letters d where d.dead_at > v_since order by d.dead_at desc limit p_limit)
    union all
    select e.message_type, e.error_class, e.id, false, null from recent_ends(v_since, p_blocks) e where e.error_class is not null
  ), errors as (
    select f.message_type, f.error_class, count(*) as n, count(*) filter (where f.dead) as dead, max(f.id) as last_id, max(f.fingerprint) as fingerprint
    from failures f group by f.message_type, f.error_class
  ), placed as (
    select e.*, row_number() over (order by e.n desc, e.message_type, e.error_class) as place from errors e)
  select health_level(max(p.n)::float8, p_warn, p_fail),
    coalesce(max(format('%s in %s: %s times, %s gave up', p.error_class, p.message_type, p.n, p.dead)) filter (where p.place = 1)
      || format('; %s kinds of error', count(*)), 'no errors'),
    jsonb_build_object('kinds', count(*), 'errors', coalesce(jsonb_agg(jsonb_build_object('message_type', p.message_type, 'error_class', p.error_class,
      'count', p.n, 'dead', p.dead, 'last_id', p.last_id, 'fingerprint', p.fingerprint) order by p.place) filter (where p.place <= 10), '[]'))
  from placed p;
end
$$;
comment on function health_top_errors(interval, integer, integer, integer, integer) is 'Health check: the most frequent errors lately.';

create function health_workflow_completion(
  p_window interval default '24 hours', p_warn_ratio double precision default 0.1, p_fail_ratio double precision default 0.5,
  p_least integer default 10, p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- How workflows ended within p_window, by type: failed and timed out ones among all but the cancelled. A type with fewer
-- than p_least ends is not judged.
begin
  if not has_platform_table('workflow_states') then
    return query select * from health_absent('workflow_states');
    return;
  end if;
  return query
  with ended as (
    select w.workflow_type, w.status as outcome, extract(epoch from w.finished_at - w.created_at)::float8 as took from workflow_states w
    where w.finished_at > clock_timestamp() - p_window order by w.finished_at desc limit p_limit
  ), types as (
    select e.workflow_type, count(*) filter (where e.outcome = 'completed') as completed, count(*) filter (where e.outcome = 'failed') as failed,
      count(*) filter (where e.outcome = 'timed_out') as timed_out, count(*) filter (where e.outcome = 'cancelled') as cancelled,
      avg(e.took) filter (where e.outcome = 'completed') as average_seconds from ended e group by e.workflow_type
  ), judged as (
    select t.*, case when t.completed + t.failed + t.timed_out >= p_least
      then health_level((t.failed + t.timed_out)::float8 / (t.completed + t.failed + t.timed_out), p_warn_ratio, p_fail_ratio) else 'ok' end as level from types t)
  select health_worst(array_agg(j.level)), format('%s completed, %s failed, %s timed out, %s cancelled', coalesce(sum(j.completed), 0), coalesce(sum(j.failed), 0),
      coalesce(sum(j.timed_out), 0), coalesce(sum(j.cancelled), 0)),
    jsonb_build_object('types', coalesce(jsonb_agg(jsonb_build_object('workflow_type', j.workflow_type, 'status', j.level, 'completed', j.completed,
      'failed', j.failed, 'timed_out', j.timed_out, 'cancelled', j.cancelled, 'average_seconds', j.average_seconds) order by j.workflow_type), '[]'))
  from judged j;
end
$$;
comment on function health_workflow_completion(interval, double precision, double precision, integer, integer) is 'Health check: how workflows ended, by type.';

create function health_agent_sessions(
  p_warn_overdue interval default '1 hour', p_fail_overdue interval default '24 hours', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Open sessions, and those whose time is over that nobody has marked: expire_agent_chat_sessions() does not come by.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not has_platform_table('agent_chat_sessions') then
    return query select * from health_absent('agent_chat_sessions');
    return;
  end if;
  return query
  with open as (
    select s.agent_type, s.status as state from agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at > v_now order by s.expires_at desc limit p_limit
  ), overdue as (
    select extract(epoch from v_now - s.expires_at)::float8 as late from agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at <= v_now order by s.expires_at limit p_limit
  ), agents as (
    select o.agent_type, count(*) filter (where o.state = 'active') as active, count(*) filter (where o.state = 'paused') as paused from open o group by o.agent_type
  ), late as (
    select count(*) as n, max(o.late) as oldest from overdue o)
  select health_level(l.oldest, extract(epoch from p_warn_overdue)::float8, extract(epoch from p_fail_overdue)::float8),
    format('%s open, %s over and not marked%s', health_count((select count(*) from open), p_limit), health_count(l.n, p_limit),
      case when l.n > 0 then ', the oldest for ' || health_duration(l.oldest) end),
    jsonb_build_object('open', (select count(*) from open), 'overdue', l.n, 'oldest_overdue_seconds', l.oldest, 'agents', coalesce((select jsonb_agg(
      jsonb_build_object('agent_type', a.agent_type, 'active', a.active, 'paused', a.paused) order by a.agent_type) from agents a), '[]'))
  from late l;
end
$$;
comment on function health_agent_sessions(interval, interval, integer) is 'Health check: open agent sessions, and those that are over and not marked.';

create function health_circuit_breakers() returns table (status text, summary text, details jsonb)
language sql stable set search_path from current as $$
-- This schema has no circuit breakers.
  select 'absent', 'no circuit breakers in this schema', '{}'::jsonb;
$$;
comment on function health_circuit_breakers() is 'Health check: circuit breakers; absent, for this schema has none.';

create function health_stale_locks(
  p_warn_after interval default '30 seconds', p_fail_after interval default '5 minutes', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Leases of running messages that are over: rescue does not come by. Locks of conversations that are over hinder nobody
-- (they can be taken), and are counted.
declare
  v_now constant timestamptz := clock_timestamp();
  v_locks bigint;
  v_platform bigint;
begin
  v_locks := (select count(*) from (select from conversation_locks c where c.expires_at <= v_now limit p_limit) l);
  if has_platform_table('conversations') then
    v_platform := (select count(*) from (
      select from conversations c where c.locked_at is not null and c.lock_expires_at <= v_now limit p_limit) l);
  end if;
  return query
  with running as (
    select m.id, m.queue, m.lease_holder, m.lease_expires_at from message_queue m where m.lease_token is not null order by m.id limit p_limit
  ), over as (
    select r.id, r.queue, r.lease_holder, extract(epoch from v_now - r.lease_expires_at)::float8 as late,
      row_number() over (order by r.lease_expires_at, r.id) as place from running r where r.lease_expires_at <= v_now)
  select health_level(max(o.late), extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8),
    format('%s of %s leases are over%s; %s conversation lock(s) are over', count(*), health_count((select count(*) from running), p_limit),
      case when count(*) > 0 then ', the oldest for ' || health_duration(max(o.late)) end, health_count(v_locks + coalesce(v_platform, 0), p_limit)),
    jsonb_build_object('leases', (select count(*) from running), 'over', count(*), 'oldest_seconds', max(o.late), 'conversation_locks_over', v_locks,
      'platform_locks_over', v_platform, 'oldest', coalesce(jsonb_agg(jsonb_build_object('message_id', o.id, 'queue', o.queue, 'holder', o.lease_holder,
        'late_seconds', o.late) order by o.place) filter (where o.place <= 5), '[]'))
  from over o;
end
$$;
comment on function health_stale_locks(interval, interval, integer) is 'Health check: leases and locks whose time is over.';

create function health_dedup_effectiveness(
  p_window interval default '1 hour', p_unprocessed_after interval default '15 minutes', p_warn_ratio double precision default 0.01,
  p_fail_ratio double precision default 0.25, p_left_over interval default '1 hour', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Do the windows work? Webhooks seen within p_window that were not marked processed p_unprocessed_after later (a second
-- delivery would run again), and dedup windows that ended p_left_over ago and were not cleaned up. Refused duplicates leave
-- no trace in the database, so they are not counted here.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with seen as (
    select p.processed_at, p.processing_ms, p.processed_at is null and p.first_seen_at <= v_now - p_unprocessed_after as lost
    from processed_messages p where p.first_seen_at > v_now - p_window order by p.first_seen_at desc limit p_limit
  ), webhooks as (
    select count(*) as n, count(s.processed_at) as processed, count(*) filter (where s.lost) as lost,
      percentile_cont(0.95) within group (order by s.processing_ms) as p95 from seen s
  ), windows as (
    select (select count(*) from (select from message_dedup d where d.expires_at > v_now limit p_limit) o) as open,
      (select count(*) from (select from message_dedup d where d.expires_at <= v_now - p_left_over limit p_limit) o) as left_over)
  select health_worst(array[health_level(w.lost::float8 / nullif(w.n, 0), p_warn_ratio, p_fail_ratio), case when d.left_over > 0 then 'warn' end]),
    format('%s webhook(s) in the last %s, %s never marked processed; %s dedup window(s) open, %s left over', health_count(w.n, p_limit),
      health_duration(extract(epoch from p_window)::float8), w.lost, health_count(d.open, p_limit), health_count(d.left_over, p_limit)),
    jsonb_build_object('webhooks', w.n, 'processed', w.processed, 'unprocessed', w.lost, 'processing_p95_ms', w.p95, 'windows_open', d.open,
      'windows_left_over', d.left_over)
  from webhooks w cross join windows d;
end
$$;
comment on function health_dedup_effectiveness(interval, interval, double precision, double precision, interval, integer)
  is 'Health check: webhooks that were never marked processed, dedup windows that were not cleaned up.';

create function health_system_summary(
  p_warn_connections double precision default 0.8, p_fail_connections double precision default 0.95, p_warn_runway interval default '3 days',
  p_fail_runway interval default '1 day', p_warn_snapshot interval default '15 minutes', p_fail_snapshot interval default '2 hours',
  p_warn_schedule interval default '5 minutes'
) returns table (status text, summary text, details jsonb)
language plpgsql stable set search_path from current as $$
-- Server, connections, workers, archive partitions ahead, oldest snapshot, schedules that are late, maintenance that failed.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with facts as (
    select (select count(*) from pg_stat_activity a -- the kind of other roles' backends is hidden from most roles
       where a.datid is not null and coalesce(a.backend_type, 'client backend') = 'client backend') as connections,
      current_setting('max_connections')::integer as max_connections,
      (select count(*) from workers w where v_now - w.last_seen_at <= w.lease_duration) as workers,
      (select count(*) from workers w where v_now - w.last_seen_at > w.lease_duration) as silent,
      (select extract(epoch from max(to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp at time zone 'UTC' - v_now)::float8
       from pg_inherits i join pg_class c on c.oid = i.inhrelid
       where i.inhparent = 'message_archive'::regclass and c.relname ~ '^message_archive_\d{8}$') as runway,
      (select extract(epoch from v_now - min(a.xact_start))::float8 from pg_stat_activity a
       where a.backend_xmin is not null and a.datname = current_database() and a.pid <> pg_backend_pid()) as snapshot,
      (select count(*) from schedules s where s.paused_at is null and s.next_planned_at < v_now - p_warn_schedule) as late_schedules,
      (select count(*) from maintenance_health h where h.state = 'failed') as failed_tasks
  ), judged as (
    select f.*, f.connections::float8 / f.max_connections as used, health_worst(array[
      health_level(f.connections::float8 / f.max_connections, p_warn_connections, p_fail_connections),
      health_level(-coalesce(f.runway, 0), -extract(epoch from p_warn_runway)::float8, -extract(epoch from p_fail_runway)::float8),
      health_level(f.snapshot, extract(epoch from p_warn_snapshot)::float8, extract(epoch from p_fail_snapshot)::float8),
      case when f.late_schedules > 0 or f.failed_tasks > 0 or f.silent > 0 then 'warn' end]) as level from facts f)
  select j.level, format('PostgreSQL %s, %s of %s connections, %s worker process(es)%s, archive partitions for %s%s%s%s', split_part(current_setting('server_version'), ' ', 1),
      j.connections, j.max_connections, j.workers, case when j.silent > 0 then format(' and %s silent', j.silent) end, health_duration(greatest(j.runway, 0)),
      case when j.snapshot >= extract(epoch from p_warn_snapshot) then '; oldest snapshot ' || health_duration(j.snapshot) end,
      case when j.late_schedules > 0 then format('; %s late schedule(s)', j.late_schedules) end,
      case when j.failed_tasks > 0 then format('; %s failed maintenance task(s)', j.failed_tasks) end),
    jsonb_build_object('server_version', current_setting('server_version'), 'started_at', pg_postmaster_start_time(), 'connections', j.connections,
      'max_connections', j.max_connections, 'workers', j.workers, 'silent_workers', j.silent, 'archive_runway_seconds', j.runway,
      'oldest_snapshot_seconds', j.snapshot, 'late_schedules', j.late_schedules, 'failed_maintenance_tasks', j.failed_tasks)
  from judged j;
end
$$;
comment on function health_system_summary(double precision, double precision, interval, interval, interval, interval, interval)
  is 'Health check: server, connections, workers, partitions ahead, snapshots, schedules, maintenance.';

create function health_checks(p_check text default null) returns table (check_name text, status text, summary text, details jsonb)
language plpgsql volatile set search_path from current as $$
-- All checks with their defaults in a fixed order, or the one named p_check. A check that cannot look (a right is missing, a
-- table was changed) is a failed one; the others go on. Raises PH001 for a name that is none.
declare
  v_names constant text[] := array['stuck_workflows', 'queue_health', 'dead_letters', 'agent_performance', 'conversation_state', 'processing_latency',
    'error_rate', 'top_errors', 'workflow_completion', 'agent_sessions', 'circuit_breakers', 'stale_locks', 'dedup_effectiveness', 'system_summary'];
begin
  if p_check <> all (v_names) then
    raise exception using errcode = 'PH001', column = 'check', message = format('check: there is no check %L', left(p_check, 60)),
      hint = 'One of: ' || array_to_string(v_names, ', ') || '.'; -- as refuse_argument() does, which is not the reader's to call
  end if;
  foreach check_name in array case when p_check is null then v_names else array[p_check] end loop
    begin
      execute format('select c.status, c.summary, c.details from %I() c', 'health_' || check_name) into status, summary, details;
    exception when syntax_error_or_access_rule_violation then -- class 42: undefined names, missing rights
      status := 'fail';
      summary := 'cannot be checked: ' || sqlerrm;
      details := jsonb_build_object('sqlstate', sqlstate);
    end;
    return next;
  end loop;
end
$$;
comment on function health_checks(text) is 'The fourteen health checks: ok, warn, fail or absent, with a sentence and details.';

do $$
declare
  v_function regprocedure;
begin
  for v_function in select p.oid::regprocedure from pg_proc p where p.pronamespace = (select oid from pg_namespace where nspname = current_schema())
      and (p.proname like 'health\_%' or p.proname in ('has_platform_table', 'archive_reading', 'recent_ends', 'ends_by_hour')) loop
    execute format('revoke execute on function %s from public', v_function);
    execute format('grant execute on function %s to packhorse_worker, packhorse_reader', v_function);
  end loop;
  -- what the checks call
  grant execute on function count_queue_messages(timestamptz, integer), estimated_messages(text, text, timestamptz) to packhorse_reader;
end
$$;

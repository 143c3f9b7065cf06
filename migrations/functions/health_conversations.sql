-- Health checks (SPEC O1) of what the messages belong to: conversations, agents, workflows.
--
-- Rules as for the checks of the queue; `absent` is the answer where the platform's tables are not part of
-- this database.

create or replace function packhorse.health_stuck_workflows(
  p_warn_after interval default '1 minute', p_fail_after interval default '15 minutes',
  p_limit integer default 1000, p_fail_count integer default 5, p_no_timeout interval default '30 minutes'
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Active workflows past their timeout: mark_timed_out_workflows() does not come by. One without a timeout is
-- past it when nothing has happened to it for p_no_timeout. p_fail_count of them that are late by
-- p_warn_after are a failure.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('workflow_states') then
    return query select * from packhorse.health_absent('workflow_states');
    return;
  end if;
  return query
  with overdue as (
    select u.*, row_number() over (order by u.late desc) as place,
      packhorse.health_level(u.late, extract(epoch from p_warn_after)::float8, null) as level from (
      (select w.id, w.workflow_type, w.current_step, extract(epoch from v_now - w.timeout_at)::float8 as late
       from platform.workflow_states w where w.status = 'active' and w.timeout_at <= v_now
       order by w.timeout_at limit p_limit)
      union all
      (select w.id, w.workflow_type, w.current_step,
        extract(epoch from v_now - w.updated_at - p_no_timeout)::float8
       from platform.workflow_states w
       where w.status = 'active' and w.timeout_at is null
         and w.updated_at <= v_now - p_no_timeout limit p_limit)) u
  ), types as (
    select o.workflow_type, count(*) as n, max(o.late) as late from overdue o group by o.workflow_type)
  select packhorse.health_worst(array[
      packhorse.health_level(max(o.late), extract(epoch from p_warn_after)::float8,
        extract(epoch from p_fail_after)::float8),
      case when count(*) filter (where o.level = 'warn') >= p_fail_count then 'fail' end]),
    packhorse.health_count(count(*), p_limit) || ' past their timeout'
      || coalesce(', the oldest for ' || packhorse.health_duration(max(o.late)), ''),
    jsonb_build_object('overdue', count(*), 'oldest_seconds', max(o.late),
      'types', coalesce((select jsonb_agg(jsonb_build_object(
        'workflow_type', t.workflow_type, 'overdue', t.n, 'oldest_seconds', t.late)
        order by t.n desc, t.workflow_type) from types t), '[]'),
      'oldest',
      jsonb_agg(jsonb_build_object('id', o.id, 'workflow_type', o.workflow_type, 'step', o.current_step,
        'late_seconds', o.late)
        order by o.place) filter (where o.place <= 5))
  from overdue o;
end
$$;
comment on function packhorse.health_stuck_workflows(interval, interval, integer, integer, interval) is
  'Health check: active workflows past their timeout.';

create or replace function packhorse.health_said_at(p_entry jsonb) returns timestamptz
language sql stable as $$
-- When an entry of a conversation was said; null where a client wrote no time, or none that can be read.
  select case when p_entry ->> 'timestamp'
    ~ '^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]+)?(Z|[+-][01][0-9](:?[0-5][0-9])?)?$'
    then (p_entry ->> 'timestamp')::timestamptz end;
$$;
comment on function packhorse.health_said_at(jsonb) is
  'When an entry of a conversation was said; null without a time that can be read.';

create or replace function packhorse.health_agents(p_now timestamptz, p_window interval,
  p_unanswered_after interval, p_limit integer)
returns table (agent_type text, people bigint, conversations bigint, messages numeric, last_at timestamptz,
  last_hour bigint, judged bigint, unanswered bigint, replies bigint, p50 double precision,
  p95 double precision)
language sql stable as $$
-- Per agent, from what it remembers of the last 24 hours (the newest p_limit conversations). judged,
-- unanswered: conversations of p_window, and those whose last word has been the user's for
-- p_unanswered_after. replies, p50, p95: answers of p_window and how many seconds they took.
  with recent as materialized (
    select m.id, m.agent_type, platform.normalize_phone(m.user_phone) as person, m.last_interaction,
      m.conversation_history as history, m.conversation_history -> -1 as last,
      greatest(m.message_count, jsonb_array_length(m.conversation_history)) as messages
    from platform.ai_conversation_memory m where m.last_interaction > p_now - interval '24 hours'
    order by m.last_interaction desc limit p_limit
  ), said as (
    select r.agent_type, e.value ->> 'role' as role, lag(e.value ->> 'role') over w as role_before,
      packhorse.health_said_at(e.value) as said_at,
      lag(packhorse.health_said_at(e.value)) over w as said_before
    from recent r cross join lateral jsonb_array_elements(r.history) with ordinality e
    where r.last_interaction > p_now - p_window
    window w as (partition by r.id order by e.ordinality)
  ), replies as (
    select s.agent_type, count(*) as n, percentile_cont(array[0.5, 0.95])
      within group (order by extract(epoch from s.said_at - s.said_before)::float8) as p
    from said s
    where s.role = 'assistant' and s.role_before = 'user' and s.said_at > p_now - p_window
      and s.said_before is not null group by s.agent_type
  ), agents as (
    select r.agent_type, count(distinct r.person), count(*), round(avg(r.messages), 1),
      max(r.last_interaction), count(*) filter (where r.last_interaction > p_now - interval '1 hour'),
      count(*) filter (where r.last_interaction > p_now - p_window),
      count(*) filter (where r.last_interaction > p_now - p_window and r.last ->> 'role' = 'user'
        and packhorse.health_said_at(r.last) <= p_now - p_unanswered_after)
    from recent r group by r.agent_type
  )
  select a.*, r.n, r.p[1], r.p[2] from agents a left join replies r on r.agent_type = a.agent_type;
$$;
comment on function packhorse.health_agents(timestamptz, interval, interval, integer) is
  'What AI agents did in the last day, and how long they take to answer.';

create or replace function packhorse.health_agent_performance(
  p_window interval default '1 hour', p_warn_reply interval default '30 seconds',
  p_fail_reply interval default '2 minutes', p_unanswered_after interval default '5 minutes',
  p_warn_unanswered double precision default 0.1, p_fail_unanswered double precision default 0.5,
  p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Agents, as health_agents() says. Judged for p_window: how long one takes to answer (p95), and the share of
-- its conversations that are unanswered.
begin
  if not packhorse.has_platform_table('ai_conversation_memory') then
    return query select * from packhorse.health_absent('ai_conversation_memory');
    return;
  end if;
  return query
  with judged as (
    select a.*, packhorse.health_worst(array[
      packhorse.health_level(a.p95, extract(epoch from p_warn_reply)::float8,
        extract(epoch from p_fail_reply)::float8),
      packhorse.health_level(a.unanswered::float8 / nullif(a.judged, 0)::float8, p_warn_unanswered,
        p_fail_unanswered)]) as level
    from packhorse.health_agents(clock_timestamp(), p_window, p_unanswered_after, p_limit) a)
  select packhorse.health_worst(array_agg(j.level)),
    format('%s conversation(s) with agents in the last day, %s unanswered%s',
      packhorse.health_count(coalesce(sum(j.conversations), 0)::bigint, p_limit),
      coalesce(sum(j.unanswered), 0),
      '; the slowest agent answers in ' || packhorse.health_duration(max(j.p95)) || ' (p95)'),
    jsonb_build_object('conversations', coalesce(sum(j.conversations), 0),
      'conversations_is_limit', coalesce(sum(j.conversations), 0) >= p_limit,
      'agents', coalesce(jsonb_agg(jsonb_build_object('agent_type', j.agent_type, 'status', j.level,
        'people', j.people, 'conversations', j.conversations, 'messages_each', j.messages,
        'last_at', j.last_at, 'active_last_hour', j.last_hour, 'active_last_day', j.conversations,
        'unanswered', j.unanswered, 'replies', coalesce(j.replies, 0), 'reply_p50_seconds', j.p50,
        'reply_p95_seconds', j.p95) order by j.agent_type), '[]'))
  from judged j;
end
$$;
comment on function packhorse.health_agent_performance(interval, interval, interval, interval,
  double precision, double precision, integer)
  is 'Health check: who talks with AI agents, how long they take to answer, and what stays unanswered.';

create or replace function packhorse.health_conversation_rows(p_limit integer) returns jsonb
language plpgsql stable as $$
-- The platform's conversations by state: how many, how long idle, held locks; of the newest p_limit. Null
-- where the platform is not installed.
begin
  if not packhorse.has_platform_table('conversations') then
    return null;
  end if;
  return (
    with newest as (
      select c.status, extract(epoch from clock_timestamp() - c.last_message_at)::float8 as idle,
        c.lock_expires_at > clock_timestamp() as held
      from platform.conversations c order by c.last_message_at desc limit p_limit
    ), states as (
      select n.status, count(*) as n, avg(n.idle) as mean, max(n.idle) as longest,
        count(*) filter (where n.held) as held from newest n group by n.status)
    select coalesce(jsonb_agg(jsonb_build_object('status', s.status, 'conversations', s.n,
      'idle_mean_seconds', s.mean, 'idle_most_seconds', s.longest, 'held_locks', s.held) order by s.status),
      '[]') from states s);
end
$$;
comment on function packhorse.health_conversation_rows(integer) is
  'The platform''s conversations by state; null where it is not installed.';

create or replace function packhorse.health_conversation_state(
  p_warn_after interval default '5 minutes', p_fail_after interval default '1 hour',
  p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set enable_seqscan = off set jit = off as $$
-- Conversations whose messages wait for their turn: how many, and for how long, from when they were due (a
-- redriven message keeps its created_at). One index probe per conversation.
declare
  v_now constant timestamptz := clock_timestamp();
  v_dead bigint;
begin
  v_dead := (select count(*)
    from (select from packhorse.dead_letters d where d.blocks_conversation limit p_limit) b);
  return query
  with recursive waiting (conversation_key, id, since, place) as (
    (select m.conversation_key::text, m.id, greatest(m.created_at, m.run_at), 1 from packhorse.message_queue m
      where m.state = 'blocked' order by m.conversation_key, m.id limit 1)
    union all
    (select n.* from waiting w cross join lateral (
       select m.conversation_key::text, m.id, greatest(m.created_at, m.run_at), w.place + 1
       from packhorse.message_queue m
       where m.state = 'blocked' and m.conversation_key > w.conversation_key
       order by m.conversation_key, m.id limit 1) n
     where w.place < p_limit)
  ), aged as (
    select w.conversation_key, w.id, greatest(extract(epoch from v_now - w.since), 0)::float8 as age,
      row_number() over (order by w.since, w.id) as place
    from waiting w
  ), held as (
    select a.*, h.holder_kind, h.holder_id from aged a left join lateral (
      select c.holder_kind, c.holder_id
      from packhorse.conversation_holders(a.conversation_key, 9223372036854775807) c
      order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true
    where a.place <= 5)
  select packhorse.health_level((select max(a.age) from aged a), extract(epoch from p_warn_after)::float8,
    extract(epoch from p_fail_after)::float8),
    format('%s conversation(s) wait%s; %s dead letter(s) hold one',
      packhorse.health_count((select count(*) from aged), p_limit),
      ', the longest for ' || packhorse.health_duration((select max(a.age) from aged a)),
      packhorse.health_count(v_dead, p_limit)),
    jsonb_build_object('waiting', (select count(*) from aged),
      'waiting_is_limit', (select count(*) from aged) >= p_limit,
      'oldest_seconds', (select max(a.age) from aged a), 'dead_holders', v_dead,
      'oldest',
      coalesce((select jsonb_agg(jsonb_build_object('message_id', h.id, 'waiting_seconds', h.age,
        'holder_kind', h.holder_kind, 'holder_id', h.holder_id) order by h.place) from held h), '[]'),
      'conversations', packhorse.health_conversation_rows(p_limit));
end
$$;
comment on function packhorse.health_conversation_state(interval, interval, integer) is
  'Health check: conversations whose messages wait, and for whom.';

create or replace function packhorse.health_workflow_completion(
  p_window interval default '24 hours', p_warn_ratio double precision default 0.1,
  p_fail_ratio double precision default 0.5, p_least integer default 10, p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- How workflows ended within p_window, by type: failed and timed out ones among all but the cancelled. A type
-- with fewer than p_least ends is not judged. Beside it: those that are active, whenever they started.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('workflow_states') then
    return query select * from packhorse.health_absent('workflow_states');
    return;
  end if;
  return query
  with seen as (
    (select w.workflow_type, w.status as outcome,
      extract(epoch from w.completed_at - w.started_at)::float8 as took from platform.workflow_states w
     where w.completed_at > v_now - p_window order by w.completed_at desc limit p_limit)
    union all
    (select w.workflow_type, 'active', null from platform.workflow_states w
      where w.status in ('active', 'paused') limit p_limit)
  ), types as (
    select e.workflow_type, count(*) filter (where e.outcome = 'completed') as completed,
      count(*) filter (where e.outcome = 'failed') as failed,
      count(*) filter (where e.outcome = 'timeout') as timed_out,
      count(*) filter (where e.outcome = 'cancelled') as cancelled,
      count(*) filter (where e.outcome = 'active') as active,
      count(*) filter (where e.outcome in ('completed', 'failed', 'timeout')) as judged,
      avg(e.took) filter (where e.outcome = 'completed') as average_seconds from seen e
      group by e.workflow_type
  ), rated as (
    select t.*, round(100.0 * t.completed::numeric / nullif(t.judged, 0)::numeric, 2) as rate,
      case when t.judged >= p_least
      then packhorse.health_level((t.failed + t.timed_out)::float8 / t.judged::float8, p_warn_ratio,
        p_fail_ratio) else 'ok' end as level from types t)
  select packhorse.health_worst(array_agg(j.level)),
    format('%s completed, %s failed, %s timed out, %s cancelled, %s active', coalesce(sum(j.completed), 0),
      coalesce(sum(j.failed), 0), coalesce(sum(j.timed_out), 0), coalesce(sum(j.cancelled), 0),
      packhorse.health_count(coalesce(sum(j.active), 0)::bigint, p_limit)),
    jsonb_build_object('types',
      coalesce(jsonb_agg(jsonb_build_object('workflow_type', j.workflow_type, 'status', j.level,
        'completed', j.completed, 'failed', j.failed, 'timeout', j.timed_out, 'cancelled', j.cancelled,
        'active', j.active, 'completion_rate_percent', j.rate,
      'average_seconds', j.average_seconds) order by j.workflow_type), '[]'))
  from rated j;
end
$$;
comment on function packhorse.health_workflow_completion(interval, double precision, double precision,
  integer, integer) is 'Health check: how workflows ended, by type.';

create or replace function packhorse.health_agent_sessions(
  p_warn_overdue interval default '1 hour', p_fail_overdue interval default '24 hours',
  p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Sessions of the last 24 hours by agent and status, and those whose time is over that nobody has marked:
-- expire_agent_chat_sessions() does not come by.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('agent_chat_sessions') then
    return query select * from packhorse.health_absent('agent_chat_sessions');
    return;
  end if;
  return query
  with recent as (
    select s.agent_type, case when s.status in ('active', 'paused') and s.expires_at <= v_now then 'overdue'
      else s.status end as state, s.message_count,
    extract(epoch from coalesce(s.ended_at, s.last_message_at) - s.created_at)::float8 as lasted
    from platform.agent_chat_sessions s where s.last_message_at > v_now - interval '24 hours'
    order by s.last_message_at desc limit p_limit
  ), overdue as (
    select extract(epoch from v_now - s.expires_at)::float8 as late from platform.agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at <= v_now order by s.expires_at limit p_limit
  ), agents as (
    select r.agent_type, r.state, count(*) as n, sum(r.message_count) as messages, avg(r.lasted) as lasted
    from recent r group by r.agent_type, r.state
  ), late as (
    select count(*) as n, max(o.late) as oldest from overdue o)
  select packhorse.health_level(l.oldest, extract(epoch from p_warn_overdue)::float8,
    extract(epoch from p_fail_overdue)::float8),
    format('%s open, %s over and not marked%s',
      packhorse.health_count((select count(*) from recent r where r.state in ('active', 'paused')), p_limit),
      packhorse.health_count(l.n, p_limit),
      case when l.n > 0 then ', the oldest for ' || packhorse.health_duration(l.oldest) end),
    jsonb_build_object('open', (select count(*) from recent r where r.state in ('active', 'paused')),
      'overdue', l.n, 'oldest_overdue_seconds', l.oldest,
      'agents',
      coalesce((select jsonb_agg(jsonb_build_object('agent_type', a.agent_type, 'status', a.state,
        'sessions', a.n, 'messages', a.messages, 'average_seconds', a.lasted) order by a.agent_type, a.state)
        from agents a), '[]'))
  from late l;
end
$$;
comment on function packhorse.health_agent_sessions(interval, interval, integer) is
  'Health check: agent sessions by agent and status, and those that are over and not marked.';

-- Health checks (SPEC O1) of what the messages belong to: conversations, agents, workflows.
--
-- Rules as for the checks of the queue; `absent` is the answer where the platform's tables are not part of this database.

create or replace function packhorse.health_stuck_workflows(
  p_warn_after interval default '1 minute', p_fail_after interval default '15 minutes', p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Workflows that run past their timeout: mark_timed_out_workflows() does not come by.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('workflow_states') then
    return query select * from packhorse.health_absent('workflow_states');
    return;
  end if;
  return query
  with overdue as (
    select w.id, w.workflow_type, w.step, extract(epoch from v_now - w.timeout_at)::float8 as late, row_number() over (order by w.timeout_at) as place
    from platform.workflow_states w where w.status = 'running' and w.timeout_at <= v_now order by w.timeout_at limit p_limit)
  select packhorse.health_level(max(o.late), extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8),
    packhorse.health_count(count(*), p_limit) || ' past their timeout' || coalesce(', the oldest for ' || packhorse.health_duration(max(o.late)), ''),
    jsonb_build_object('overdue', count(*), 'oldest_seconds', max(o.late), 'oldest', jsonb_agg(jsonb_build_object(
      'id', o.id, 'workflow_type', o.workflow_type, 'step', o.step, 'late_seconds', o.late) order by o.place) filter (where o.place <= 5))
  from overdue o;
end
$$;
comment on function packhorse.health_stuck_workflows(interval, interval, integer) is 'Health check: workflows that run past their timeout.';

create or replace function packhorse.health_agent_performance(
  p_window interval default '1 hour', p_warn_reply interval default '30 seconds', p_fail_reply interval default '2 minutes',
  p_unanswered_after interval default '5 minutes', p_warn_unanswered double precision default 0.1, p_fail_unanswered double precision default 0.5,
  p_limit integer default 500
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- How long agents take to answer (p95), and the share of sessions whose last word has been the user's for
-- p_unanswered_after; from the newest p_limit open sessions. A session ends 24 hours after its last message: expires_at tells.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('agent_chat_sessions') then
    return query select * from packhorse.health_absent('agent_chat_sessions');
    return;
  end if;
  return query
  with sessions as (
    select s.id, s.agent_type, s.history, s.history -> -1 as last from platform.agent_chat_sessions s
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
    select a.*, r.n as replies, r.p[1] as p50, r.p[2] as p95, packhorse.health_worst(array[
      packhorse.health_level(r.p[2], extract(epoch from p_warn_reply)::float8, extract(epoch from p_fail_reply)::float8),
      packhorse.health_level(a.unanswered::float8 / a.n::float8, p_warn_unanswered, p_fail_unanswered)]) as level
    from agents a left join replies r on r.agent_type = a.agent_type)
  select packhorse.health_worst(array_agg(j.level)), format('%s session(s) with messages lately, %s unanswered%s', packhorse.health_count(coalesce(sum(j.n), 0)::bigint, p_limit),
      coalesce(sum(j.unanswered), 0), '; the slowest agent answers in ' || packhorse.health_duration(max(j.p95)) || ' (p95)'),
    jsonb_build_object('sessions', coalesce(sum(j.n), 0), 'agents', coalesce(jsonb_agg(jsonb_build_object('agent_type', j.agent_type,
      'status', j.level, 'sessions', j.n, 'unanswered', j.unanswered, 'replies', coalesce(j.replies, 0), 'reply_p50_seconds', j.p50,
      'reply_p95_seconds', j.p95) order by j.agent_type), '[]'))
  from judged j;
end
$$;
comment on function packhorse.health_agent_performance(interval, interval, interval, interval, double precision, double precision, integer)
  is 'Health check: how long AI agents take to answer, and what stays unanswered.';

create or replace function packhorse.health_conversation_state(
  p_warn_after interval default '5 minutes', p_fail_after interval default '1 hour', p_limit integer default 1000
) returns table (status text, summary text, details jsonb)
language plpgsql stable set enable_seqscan = off set jit = off as $$
-- Conversations whose messages wait for their turn: how many, and for how long, from when they were due (a redriven
-- message keeps its created_at). One index probe per conversation.
declare
  v_now constant timestamptz := clock_timestamp();
  v_dead bigint;
begin
  v_dead := (select count(*) from (select from packhorse.dead_letters d where d.blocks_conversation limit p_limit) b);
  return query
  with recursive waiting (conversation_key, id, since, place) as (
    (select m.conversation_key::text, m.id, greatest(m.created_at, m.run_at), 1 from packhorse.message_queue m where m.state = 'blocked' order by m.conversation_key, m.id limit 1)
    union all
    (select n.* from waiting w cross join lateral (
       select m.conversation_key::text, m.id, greatest(m.created_at, m.run_at), w.place + 1 from packhorse.message_queue m
       where m.state = 'blocked' and m.conversation_key > w.conversation_key order by m.conversation_key, m.id limit 1) n
     where w.place < p_limit)
  ), aged as (
    select w.conversation_key, w.id, greatest(extract(epoch from v_now - w.since), 0)::float8 as age, row_number() over (order by w.since, w.id) as place
    from waiting w
  ), held as (
    select a.*, h.holder_kind, h.holder_id from aged a left join lateral (
      select c.holder_kind, c.holder_id from packhorse.conversation_holders(a.conversation_key, 9223372036854775807) c
      order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true
    where a.place <= 5)
  select packhorse.health_level((select max(a.age) from aged a), extract(epoch from p_warn_after)::float8, extract(epoch from p_fail_after)::float8),
    format('%s conversation(s) wait%s; %s dead letter(s) hold one', packhorse.health_count((select count(*) from aged), p_limit),
      ', the longest for ' || packhorse.health_duration((select max(a.age) from aged a)), packhorse.health_count(v_dead, p_limit)),
    jsonb_build_object('waiting', (select count(*) from aged), 'waiting_is_limit', (select count(*) from aged) >= p_limit, 'oldest_seconds', (select max(a.age) from aged a), 'dead_holders', v_dead,
      'oldest', coalesce((select jsonb_agg(jsonb_build_object('message_id', h.id, 'waiting_seconds', h.age, 'holder_kind', h.holder_kind,
        'holder_id', h.holder_id) order by h.place) from held h), '[]'));
end
$$;
comment on function packhorse.health_conversation_state(interval, interval, integer) is 'Health check: conversations whose messages wait, and for whom.';

create or replace function packhorse.health_workflow_completion(
  p_window interval default '24 hours', p_warn_ratio double precision default 0.1, p_fail_ratio double precision default 0.5,
  p_least integer default 10, p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- How workflows ended within p_window, by type: failed and timed out ones among all but the cancelled. A type with fewer
-- than p_least ends is not judged.
begin
  if not packhorse.has_platform_table('workflow_states') then
    return query select * from packhorse.health_absent('workflow_states');
    return;
  end if;
  return query
  with ended as (
    select w.workflow_type, w.status as outcome, extract(epoch from w.finished_at - w.created_at)::float8 as took from platform.workflow_states w
    where w.finished_at > clock_timestamp() - p_window order by w.finished_at desc limit p_limit
  ), types as (
    select e.workflow_type, count(*) filter (where e.outcome = 'completed') as completed, count(*) filter (where e.outcome = 'failed') as failed,
      count(*) filter (where e.outcome = 'timed_out') as timed_out, count(*) filter (where e.outcome = 'cancelled') as cancelled,
      avg(e.took) filter (where e.outcome = 'completed') as average_seconds from ended e group by e.workflow_type
  ), judged as (
    select t.*, case when t.completed + t.failed + t.timed_out >= p_least
      then packhorse.health_level((t.failed + t.timed_out)::float8 / (t.completed + t.failed + t.timed_out)::float8, p_warn_ratio, p_fail_ratio) else 'ok' end as level from types t)
  select packhorse.health_worst(array_agg(j.level)), format('%s completed, %s failed, %s timed out, %s cancelled', coalesce(sum(j.completed), 0), coalesce(sum(j.failed), 0),
      coalesce(sum(j.timed_out), 0), coalesce(sum(j.cancelled), 0)),
    jsonb_build_object('types', coalesce(jsonb_agg(jsonb_build_object('workflow_type', j.workflow_type, 'status', j.level, 'completed', j.completed,
      'failed', j.failed, 'timed_out', j.timed_out, 'cancelled', j.cancelled, 'average_seconds', j.average_seconds) order by j.workflow_type), '[]'))
  from judged j;
end
$$;
comment on function packhorse.health_workflow_completion(interval, double precision, double precision, integer, integer) is 'Health check: how workflows ended, by type.';

create or replace function packhorse.health_agent_sessions(
  p_warn_overdue interval default '1 hour', p_fail_overdue interval default '24 hours', p_limit integer default 10000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Open sessions, and those whose time is over that nobody has marked: expire_agent_chat_sessions() does not come by.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  if not packhorse.has_platform_table('agent_chat_sessions') then
    return query select * from packhorse.health_absent('agent_chat_sessions');
    return;
  end if;
  return query
  with open as (
    select s.agent_type, s.status as state from platform.agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at > v_now order by s.expires_at desc limit p_limit
  ), overdue as (
    select extract(epoch from v_now - s.expires_at)::float8 as late from platform.agent_chat_sessions s
    where s.status in ('active', 'paused') and s.expires_at <= v_now order by s.expires_at limit p_limit
  ), agents as (
    select o.agent_type, count(*) filter (where o.state = 'active') as active, count(*) filter (where o.state = 'paused') as paused from open o group by o.agent_type
  ), late as (
    select count(*) as n, max(o.late) as oldest from overdue o)
  select packhorse.health_level(l.oldest, extract(epoch from p_warn_overdue)::float8, extract(epoch from p_fail_overdue)::float8),
    format('%s open, %s over and not marked%s', packhorse.health_count((select count(*) from open), p_limit), packhorse.health_count(l.n, p_limit),
      case when l.n > 0 then ', the oldest for ' || packhorse.health_duration(l.oldest) end),
    jsonb_build_object('open', (select count(*) from open), 'overdue', l.n, 'oldest_overdue_seconds', l.oldest, 'agents', coalesce((select jsonb_agg(
      jsonb_build_object('agent_type', a.agent_type, 'active', a.active, 'paused', a.paused) order by a.agent_type) from agents a), '[]'))
  from late l;
end
$$;
comment on function packhorse.health_agent_sessions(interval, interval, integer) is 'Health check: open agent sessions, and those that are over and not marked.';

-- What people look at: all messages, blocked conversations, queues, dead letters by cause, schedules,
-- maintenance, backfills, parked scopes (SPEC Q1, Q7, M1, M7, M8).

create or replace view packhorse.all_messages as
  select m.id, m.queue::text, m.message_type::text, m.state::text, m.priority::integer, m.attempt,
    m.max_attempts::integer, m.crashes::integer, m.conversation_key::text, m.correlation_id::text, m.run_at,
    m.created_at, m.claimed_at,
    null::timestamptz as finished_at, m.lease_holder, m.lease_expires_at, m.error ->> 'class' as error_class,
    m.error ->> 'message' as error_message, m.payload::jsonb, m.options::jsonb, m.history,
    null::text as reason, m.steps,
    m.error ->> 'code' as error_code, m.error -> 'details' as error_details
  from packhorse.message_queue m
  union all
  select a.id, a.queue, a.message_type, a.state, a.priority::integer, a.attempt, null, a.crashes::integer,
    a.conversation_key, a.correlation_id, null, a.created_at, a.claimed_at, a.finished_at, a.lease_holder,
    null, a.error ->> 'class', a.error ->> 'message', a.payload, a.options, a.history, a.reason, a.steps,
    a.error ->> 'code', a.error -> 'details'
  from packhorse.message_archive a
  union all
  select d.id, d.queue, d.message_type, 'dead', d.priority::integer, d.attempt, d.max_attempts,
    d.crashes::integer,
    d.conversation_key, d.correlation_id, null, d.created_at, null, d.dead_at, d.lease_holder, null,
    d.error_class,
    d.error_message, d.payload, d.options, d.history, d.reason, d.steps, d.error_code, d.error_details
  from packhorse.dead_letters d;
comment on view packhorse.all_messages is 'Every message that is known: live, archived and dead, as one.';

create or replace view packhorse.blocked_conversations as
  select w.conversation_key, w.waiting, w.since, h.holder_kind, h.holder_id
  from (
    -- from when it was due, not only there: a redriven message keeps its created_at
    select m.conversation_key, count(*) as waiting, min(greatest(m.created_at, m.run_at)) as since,
      min(m.id) as first_id
    from packhorse.message_queue m where m.state = 'blocked' group by m.conversation_key) w
  left join lateral (
    select c.holder_kind, c.holder_id
    from packhorse.conversation_holders(w.conversation_key, 9223372036854775807) c
    order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true;
comment on view packhorse.blocked_conversations is
  'Conversations with waiting messages: how many, since when, and the message that blocks each.';

create or replace view packhorse.message_queue_health as
  select coalesce(q.name, m.queue, d.queue)::text as queue, q.paused_at is not null as paused,
    coalesce(m.pending, 0) as pending, coalesce(m.delayed, 0) as delayed, coalesce(m.blocked, 0) as blocked,
    coalesce(m.running, 0) as running, coalesce(d.dead, 0) as dead,
    coalesce(extract(epoch from clock_timestamp() - m.oldest_due), 0)::double precision as oldest_due_seconds,
    coalesce(extract(epoch from clock_timestamp() - m.oldest_running),
      0)::double precision as oldest_running_seconds
  from packhorse.queues q
  -- a row that was inserted by hand may name a queue that nobody has declared: the more it has to be seen
  full join (
    select queue::text, count(*) filter (where state = 'pending' and run_at <= clock_timestamp()) as pending,
      count(*) filter (where state = 'pending' and run_at > clock_timestamp()) as delayed,
      count(*) filter (where state = 'blocked') as blocked,
      count(*) filter (where state = 'running') as running,
      min(run_at) filter (where state = 'pending' and run_at <= clock_timestamp()) as oldest_due,
      min(claimed_at) filter (where state = 'running') as oldest_running
    from packhorse.message_queue group by queue) m on m.queue = q.name::text
  full join (select queue, count(*) as dead from packhorse.dead_letters group by queue) d
    on d.queue = coalesce(q.name::text, m.queue);
comment on view packhorse.message_queue_health is
  'One row per queue: depth by state and the age of the oldest.';

create or replace view packhorse.dead_letter_groups as
  select d.fingerprint, d.queue, d.message_type, d.reason, d.error_class,
    (array_agg(left(d.error_message, 200) order by d.dead_at desc))[1] as error_message,
    count(*) as count, min(d.dead_at) as first_dead_at, max(d.dead_at) as last_dead_at,
    min(d.id) as oldest_id,
    (array_agg(d.error_code order by d.dead_at desc))[1] as error_code
  from packhorse.dead_letters d
  group by d.fingerprint, d.queue, d.message_type, d.reason, d.error_class;
comment on view packhorse.dead_letter_groups is 'Dead letters by cause.';

create or replace view packhorse.schedule_health as
select s.name, s.source, coalesce(s.cron, 'every ' || s.every) as trigger, s.time_zone,
  s.paused_at is not null as paused,
  s.next_planned_at, r.planned_at as last_run_at, r.outcome as last_outcome, r.ended_at as last_ended_at,
  -- one row, not the history of a month: health, metrics and lists look at this view
  (select d.ended_at from packhorse.schedule_runs d where d.schedule = s.name and d.outcome = 'done'
    order by d.id desc limit 1) as last_success_at,
  case when s.paused_at is null
    then greatest(0, extract(epoch from clock_timestamp() - s.next_planned_at)) end::float8 as lag_seconds,
  s.problem
from packhorse.schedules s
left join lateral (
  select h.planned_at, h.outcome, h.ended_at from packhorse.schedule_runs h where h.schedule = s.name
  order by h.id desc limit 1) r on true;
comment on view packhorse.schedule_health is
  'One row per schedule: next planned time, last run and its outcome, lag, problem (SPEC M1).';

create or replace view packhorse.maintenance_health as
-- from task to task by the index: runs of three months are not read for the last one of each
with recursive tasks (name) as (
  (select r.task::text from packhorse.maintenance_runs r order by r.task limit 1)
  union all
  select (select n.task::text from packhorse.maintenance_runs n where n.task > k.name order by n.task limit 1)
  from tasks k where k.name is not null
)
select r.task, r.kind, r.state, r.gate, r.rows_done, r.started_at, r.ended_at, r.error, t.last_success_at,
  coalesce(t.rows_total, 0) as rows_total
from tasks k
-- not `l.task = k.name`: the planner might walk back by id through what other tasks did since
cross join lateral (select l.* from packhorse.maintenance_runs l where l.task <= k.name
  order by l.task desc, l.id desc limit 1) r
left join packhorse.maintenance_tasks t on t.task = r.task
where k.name is not null
order by r.task;
comment on view packhorse.maintenance_health is
  'One row per maintenance task: its last run, last success and rows (SPEC M7).';

create or replace view packhorse.backfill_progress as
select b.name, case when b.paused_at is not null and r.state is distinct from 'running' then 'paused'
  when b.state = 'running' and r.state = 'paused' then 'paused'
    when b.state = 'running' and r.state is null then 'stopped' else b.state end as state,
  b.source, b.settings, b.carried,
  coalesce(r.rows_done, case when b.passes > 0 then b.source_rows end, 0) as rows_done,
  b.source_rows as rows_total, b.source_rows_estimated as total_is_estimated,
  b.rows_copied, b.rows_skipped, b.passes,
  case when b.source_rows > 0
    then least(1, coalesce(r.rows_done, case when b.passes > 0 then b.source_rows end, 0)::float8
      / b.source_rows) end as done_ratio,
  p.rows_per_second, case
    when p.rows_per_second > 0
      then greatest(0, b.source_rows - r.rows_done) / p.rows_per_second end as eta_seconds,
  r.gate, r.batch_size, r.triggered_by, r.beat_at, b.paused_at, b.paused_by, b.looked_at, b.quiet_since,
  b.requested_by,
  b.created_at, b.started_at, b.copied_at, b.verified_at, b.finished_at, b.rolled_back_at, b.findings,
  (select l.error from packhorse.maintenance_runs l where l.task = 'backfill.' || b.name
    order by l.id desc limit 1) as error
from packhorse.backfills b
left join packhorse.maintenance_runs r on r.task = 'backfill.' || b.name and r.state in ('running', 'paused')
left join lateral ( -- over the last minute; none of its points: the run waits
  select coalesce(max(r.rows_done - q.rows) / greatest(max(q.passed), 0.5), 0) as rows_per_second
  from (select b.recent_rows[g.n + 1] as rows,
    extract(epoch from clock_timestamp())::float8 - b.recent_rows[g.n] as passed
    from generate_series(1, cardinality(b.recent_rows), 2) as g (n)) q
  where q.passed <= 65) p on r.state = 'running'
order by b.name;
comment on view packhorse.backfill_progress is
  'One row per backfill: state, rows done of all, rate over the last minute, seconds left (SPEC M8). stopped: no run works on it.';

create or replace view packhorse.parked_scopes as
  select s.name as scope, s.message_types, s.queue, s.parked_until, s.probing, s.probe_id, s.reason,
    s.parked_by, s.parked_at, s.failures,
    -- of the 20000 messages of each queue that come first: exact when fewer wait there
    (select count(*) from packhorse.queues q cross join lateral (
       select m.message_type, m.queue from packhorse.message_queue m
       where m.queue = q.name and m.state = 'pending' and m.crashes < 2 limit 20000) w
     where packhorse.scope_covers(s, w.message_type, w.queue)) as waiting
  from packhorse.scopes s where s.ends_at > clock_timestamp();
comment on view packhorse.parked_scopes is
  'Scopes that are parked or probing: types, until when, why, by whom, and how many messages wait, counted up to a bound.';

-- Row-level security applies to the one who looks. PostgreSQL 14 does not know the option; there the views
-- are closed to all but their owner and our roles.
do $$
declare
  v_view text;
begin
  if current_setting('server_version_num')::integer >= 150000 then
    foreach v_view in array array['all_messages', 'blocked_conversations', 'message_queue_health',
      'dead_letter_groups', 'schedule_health', 'maintenance_health', 'backfill_progress', 'parked_scopes']
    loop
      execute format('alter view packhorse.%I set (security_invoker = true)', v_view);
    end loop;
  end if;
end
$$;

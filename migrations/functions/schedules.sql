-- Schedules: when something is to be done again and again (SPEC M1, P7).
--
-- No leader. A planned time fires when the row (schedule, planned_at) can be inserted, in the transaction
-- that enqueues the message; whoever comes second finds the row and does nothing. Triggers are computed by
-- the scheduler processes (schedules/timetable/triggers.py), each for itself: they agree because a planned
-- time follows from the trigger alone, never from when somebody looked. All times are of the database clock
-- (P6).

create or replace function packhorse.check_schedule_arguments(
  p_name text, p_cron text, p_every interval, p_time_zone text, p_missed text, p_missed_limit integer,
  p_overlap text, p_jitter interval, p_source text
) returns void
language plpgsql stable as $$
-- Raise PH001 for the first bad argument of set_schedule.
begin
  if p_name is null or p_name !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform packhorse.refuse_argument('name', format('%L is not a schedule name', left(p_name, 120)),
      'A letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.');
  elsif (p_cron is null) = (p_every is null) then
    perform packhorse.refuse_argument('cron', 'give either cron or every');
  elsif p_cron is not null and array_length(regexp_split_to_array(btrim(p_cron), '\s+'), 1) <> 5 then
    perform packhorse.refuse_argument('cron', format('%L has not five fields', left(p_cron, 60)),
      'minute hour day month weekday');
  elsif p_every is not null and p_every not between interval '1 second' and interval '3660 days' then
    perform packhorse.refuse_argument('every', 'must be between 1 second and ten years');
  elsif p_time_zone is null or (p_time_zone <> 'UTC'
      -- the list of all is a walk through files, 20 ms for each schedule
      and not exists (select from packhorse.schedules s where s.time_zone = p_time_zone)
      and not exists (select from pg_timezone_names z where z.name = p_time_zone)) then
    perform packhorse.refuse_argument('time_zone', format('%L is not a time zone', left(p_time_zone, 60)),
      'A name like Africa/Kigali or UTC.');
  elsif p_missed is null or p_missed not in ('skip', 'once', 'all') then
    perform packhorse.refuse_argument('missed', format('%L is not known', left(p_missed, 60)),
      'skip, once or all.');
  elsif p_missed_limit is null or p_missed_limit not between 1 and 1000 then
    perform packhorse.refuse_argument('missed_limit', 'must be between 1 and 1000');
  elsif p_overlap is null or p_overlap not in ('skip', 'wait', 'allow') then
    perform packhorse.refuse_argument('overlap', format('%L is not known', left(p_overlap, 60)),
      'skip, wait or allow.');
  elsif p_missed = 'all' and p_overlap = 'skip' then
    perform packhorse.refuse_argument('overlap', 'skip would run one of all that were missed',
      'With missed = all: wait or allow.');
  elsif p_jitter is null or p_jitter not between interval '0' and interval '1 day' then
    perform packhorse.refuse_argument('jitter', 'must be between 0 and 1 day');
  elsif p_source is null or p_source not in ('packhorse', 'code', 'toml', 'sql') then
    perform packhorse.refuse_argument('source', format('%L is not known', left(p_source, 60)),
      'packhorse, code, toml or sql.');
  end if;
end
$$;
comment on function packhorse.check_schedule_arguments(text, text, interval, text, text, integer, text,
  interval, text)
  is 'Raise PH001 for the first bad argument of set_schedule.';

create or replace function packhorse.set_schedule(
  p_name         text,
  p_message_type text,
  p_cron         text     default null,
  p_every        interval default null,
  p_time_zone    text     default 'UTC',
  p_queue        text     default 'default',
  p_payload      jsonb    default '{}',
  p_missed       text     default 'once',
  p_missed_limit integer  default 10,
  p_overlap      text     default 'skip',
  p_jitter       interval default '0',
  p_priority     integer  default 5,
  p_max_attempts integer  default null,
  p_source       text     default 'sql',
  p_origin       text[]   default '{}'
) returns text
language plpgsql set lock_timeout = '500ms' as $$
-- Make or change a schedule; "created", "changed" or "unchanged". A change of the trigger starts the
-- timetable anew: what would have been due by the new trigger in the past is not made up. Pauses survive.
-- Raises PH001 for a bad argument, PH002 for an unknown queue. Locks the schedule's row.
declare
  v_old packhorse.schedules;
begin
  perform packhorse.check_schedule_arguments(p_name, p_cron, p_every, p_time_zone, p_missed, p_missed_limit,
    p_overlap, p_jitter, p_source);
  perform packhorse.require_queue(p_queue);
  perform packhorse.check_enqueue_arguments(p_message_type, p_payload, '{}', p_priority, clock_timestamp(),
    p_max_attempts, null, null, null, null);
  select * into v_old from packhorse.schedules s where s.name = p_name for update;
  if not found then
    insert into packhorse.schedules (name, source, origin, cron, every, time_zone, missed, missed_limit,
      overlap, jitter, queue, message_type, payload, priority, max_attempts)
    values (p_name, p_source, p_origin, p_cron, p_every, p_time_zone, p_missed, p_missed_limit, p_overlap,
      p_jitter, p_queue, p_message_type, p_payload, p_priority, p_max_attempts)
    on conflict on constraint schedules_pkey do nothing;
    return 'created';
  end if;
  if (v_old.source, v_old.missed, v_old.missed_limit, v_old.overlap, v_old.jitter, v_old.queue::text,
    v_old.message_type::text,
      v_old.payload::jsonb, v_old.priority::integer, v_old.max_attempts::integer, v_old.cron, v_old.every,
      v_old.time_zone)
     is not distinct from (p_source, p_missed, p_missed_limit, p_overlap, p_jitter, p_queue, p_message_type,
      p_payload, p_priority, p_max_attempts, p_cron, p_every, p_time_zone)
     -- what is shipped every scheduler declares: it stays with the first
     and (p_source = 'packhorse' or v_old.origin <@ p_origin) then
    return 'unchanged';
  end if;
  update packhorse.schedules s
  set source = p_source, origin = p_origin, cron = p_cron, every = p_every, time_zone = p_time_zone,
    missed = p_missed, missed_limit = p_missed_limit, overlap = p_overlap, jitter = p_jitter, queue = p_queue,
    message_type = p_message_type, payload = p_payload, priority = p_priority, max_attempts = p_max_attempts,
    updated_at = clock_timestamp(), problem = null, next_planned_at = null,
    last_planned_at = case when (s.cron, s.every, s.time_zone) is distinct from (p_cron, p_every, p_time_zone)
      then clock_timestamp() else s.last_planned_at end
  where s.name = p_name;
  return 'changed';
end
$$;
comment on function packhorse.set_schedule(text, text, text, interval, text, text, jsonb, text, integer, text,
  interval, integer, integer, text, text[])
  is 'Make or change a schedule: created, changed or unchanged.';

create or replace function packhorse.remove_schedule(p_name text) returns boolean
language sql as $$
-- Remove a schedule; its history stays until its retention. False when there was none.
  with removed as (delete from packhorse.schedules where name = p_name returning 1)
    select exists (select from removed);
$$;
comment on function packhorse.remove_schedule(text) is 'Remove a schedule; its history stays.';

create or replace function packhorse.require_schedule(p_name text) returns void
language plpgsql stable as $$
-- Raise PH001 that names a near miss unless the schedule exists.
declare
  v_near text;
begin
  if not exists (select from packhorse.schedules s where s.name = p_name) then
    select s.name into v_near from packhorse.schedules s
    where lower(s.name) = lower(p_name) or s.name like '%' || left(p_name, 60) || '%'
      or p_name like '%' || s.name || '%' order by s.name limit 1;
    perform packhorse.refuse_argument('schedule', format('no schedule %L', left(p_name, 120)),
      case when v_near is null then '`packhorse schedule list` names them.'
        else format('Did you mean %L?', v_near) end);
  end if;
end
$$;
comment on function packhorse.require_schedule(text) is
  'Raise PH001 unless the schedule exists; names a near miss.';

create or replace function packhorse.pause_schedule(p_name text, p_operator text default session_user,
  p_reason text default null) returns boolean
language plpgsql as $$
-- No planned time fires until resume; false when it was paused already. Planned times inside the pause are
-- not made up.
begin
  perform packhorse.require_schedule(p_name);
  update packhorse.schedules set paused_at = clock_timestamp(), paused_by = p_operator
  where name = p_name and paused_at is null;
  if not found then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('pause_schedule', p_operator, p_reason, jsonb_build_object('schedule', p_name));
  return true;
end
$$;
comment on function packhorse.pause_schedule(text, text, text) is
  'Stop a schedule; false when it was paused already.';

create or replace function packhorse.resume_schedule(p_name text, p_operator text default session_user,
  p_reason text default null) returns boolean
language plpgsql as $$
-- Let a paused schedule go on, from now: what was due inside the pause is not made up. False when it was not
-- paused.
begin
  perform packhorse.require_schedule(p_name);
  update packhorse.schedules
  set paused_at = null, paused_by = null, last_planned_at = clock_timestamp(), next_planned_at = null
  where name = p_name and paused_at is not null;
  if not found then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('resume_schedule', p_operator, p_reason, jsonb_build_object('schedule', p_name));
  return true;
end
$$;
comment on function packhorse.resume_schedule(text, text, text) is
  'Let a paused schedule go on from now; false when it was not paused.';

create or replace function packhorse.enqueue_schedule(p_schedule packhorse.schedules,
  p_planned_at timestamptz, p_run_at timestamptz) returns bigint
language sql as $$
-- The message of one run. overlap = wait: one conversation per schedule, so that runs follow each other.
  select message_id
  from packhorse.enqueue_message(p_schedule.queue, p_schedule.message_type, p_schedule.payload,
    jsonb_build_object('schedule', p_schedule.name, 'planned_at', p_planned_at), p_schedule.priority,
    p_run_at => p_run_at, p_max_attempts => p_schedule.max_attempts,
    p_conversation_key => case when p_schedule.overlap = 'wait' then 'schedule:' || p_schedule.name end,
    p_correlation_id => format('schedule:%s:%s', p_schedule.name,
      to_char(p_planned_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')));
$$;
comment on function packhorse.enqueue_schedule(packhorse.schedules, timestamptz, timestamptz) is
  'Used by fire_schedule: enqueue the message of one run.';

create or replace function packhorse.fire_schedule(
  p_name text, p_planned_at timestamptz, p_next timestamptz, p_missed_count integer default 0,
  p_missed boolean default false, p_jitter double precision default 0
) returns text
language plpgsql set lock_timeout = '500ms' as $$
-- Decide one planned time: insert its row and, in the same transaction, enqueue its message. Returns
-- enqueued; overlapped (the previous run still lives and overlap = skip); missed (p_missed: recorded, not
-- run); taken (somebody else decided it, or a later one); paused; gone (the schedule was removed). p_next:
-- the planned time after it; p_missed_count: earlier ones that this run stands for; p_jitter 0..1: share of
-- the schedule's jitter to wait. Locks the schedule's row. Raises PH002 when the queue is gone, PH006 in a
-- copy that nobody has accepted: then nothing is decided.
declare
  v_schedule packhorse.schedules;
  v_run bigint;
  v_message bigint;
begin
  perform packhorse.refuse_copy();
  select * into v_schedule from packhorse.schedules where name = p_name for update;
  if not found then
    return 'gone';
  elsif v_schedule.paused_at is not null then
    return 'paused';
  elsif v_schedule.last_planned_at >= p_planned_at then
    return 'taken';
  end if;
  insert into packhorse.schedule_runs (schedule, planned_at, outcome, triggered_by, missed_count)
  values (p_name, p_planned_at, 'missed', 'schedule', p_missed_count)
  on conflict on constraint schedule_runs_planned_key do nothing
  returning id into v_run;
  update packhorse.schedules set last_planned_at = p_planned_at, next_planned_at = p_next, problem = null,
    missed_total = missed_total + p_missed_count + p_missed::integer where name = p_name;
  if v_run is null then
    return 'taken';
  elsif p_missed then
    return 'missed';
  end if;
  if v_schedule.overlap = 'skip' and exists (
      select from packhorse.schedule_runs r join packhorse.message_queue m on m.id = r.message_id
      where r.schedule = p_name and r.outcome = 'enqueued' and r.id <> v_run) then
    update packhorse.schedule_runs set outcome = 'overlapped', ended_at = clock_timestamp() where id = v_run;
    return 'overlapped';
  end if;
  v_message := packhorse.enqueue_schedule(v_schedule, p_planned_at,
    clock_timestamp() + v_schedule.jitter * least(greatest(p_jitter, 0), 1));
  update packhorse.schedule_runs set outcome = 'enqueued', message_id = v_message where id = v_run;
  return 'enqueued';
end
$$;
comment on function packhorse.fire_schedule(text, timestamptz, timestamptz, integer, boolean,
  double precision)
  is 'Decide one planned time and enqueue its message: enqueued, overlapped, missed, taken, paused or gone.';

create or replace function packhorse.run_schedule_now(p_name text, p_operator text default session_user,
  p_reason text default null) returns bigint
language plpgsql as $$
-- Enqueue a run at once, beside the timetable, paused or not; returns the id of the message. The act is
-- recorded.
declare
  v_schedule packhorse.schedules;
  v_now constant timestamptz := clock_timestamp();
  v_message bigint;
begin
  perform packhorse.require_schedule(p_name);
  select * into v_schedule from packhorse.schedules where name = p_name for update;
  v_message := packhorse.enqueue_schedule(v_schedule, v_now, v_now);
  insert into packhorse.schedule_runs (schedule, planned_at, outcome, triggered_by, message_id)
  values (p_name, v_now, 'enqueued', p_operator, v_message);
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('run_schedule', p_operator, p_reason, v_message, jsonb_build_object('schedule', p_name));
  return v_message;
end
$$;
comment on function packhorse.run_schedule_now(text, text, text) is
  'Enqueue a run of a schedule at once; returns the id of its message.';

create or replace function packhorse.plan_schedule(p_name text, p_last timestamptz, p_next timestamptz,
  p_problem text default null) returns void
language sql set lock_timeout = '500ms' as $$
-- A scheduler tells what comes next, or why it cannot say. Nothing when the timetable has moved on meanwhile.
-- What was decided lies before what comes next and before the clock: after a clock that was ahead has gone
-- back, nothing would fire until it comes there again. What ran meanwhile does not run twice: its row is
-- there.
  update packhorse.schedules set next_planned_at = p_next, problem = p_problem,
    last_planned_at = least(last_planned_at, p_next - interval '1 microsecond', clock_timestamp())
  where name = p_name and last_planned_at = p_last;
$$;
comment on function packhorse.plan_schedule(text, timestamptz, timestamptz, text) is
  'Used by the scheduler: store the next planned time.';

create or replace function packhorse.fail_schedule_run(p_name text, p_planned_at timestamptz,
  p_next timestamptz, p_error text) returns boolean
language plpgsql set lock_timeout = '500ms' as $$
-- A planned time whose message could not be enqueued: recorded as failed, the timetable goes on. False when
-- it was decided.
begin
  update packhorse.schedules
  set last_planned_at = p_planned_at, next_planned_at = p_next, problem = left(p_error, 2000)
  where name = p_name and last_planned_at < p_planned_at;
  if not found then
    return false;
  end if;
  insert into packhorse.schedule_runs (schedule, planned_at, outcome, triggered_by, error, ended_at)
  values (p_name, p_planned_at, 'failed', 'schedule', left(p_error, 2000), clock_timestamp())
  on conflict on constraint schedule_runs_planned_key do nothing;
  return found;
end
$$;
comment on function packhorse.fail_schedule_run(text, timestamptz, timestamptz, text) is
  'Used by the scheduler: record a run that could not be enqueued.';

create or replace function packhorse.finish_schedule_runs(p_limit integer default 200) returns integer
language sql set lock_timeout = '500ms' as $$
-- Copy the ends of finished messages into the history, before the archive forgets them. Returns how many.
-- Runs whose message still lives are not counted against the limit: many that wait must not hide one that
-- ended.
  with open_runs as (
    select r.id, r.message_id from packhorse.schedule_runs r
    where r.outcome = 'enqueued'
      and not exists (select from packhorse.message_queue m where m.id = r.message_id)
    order by r.id limit p_limit for update of r skip locked
  ), ended as (
    select o.id, coalesce(a.state, case when d.id is not null then 'dead' else 'untraced' end) as outcome,
      a.claimed_at, coalesce(a.finished_at, d.dead_at, clock_timestamp()) as ended_at,
      case when d.id is not null then left(concat_ws(': ', d.error_class, d.error_message), 2000)
        when a.id is null
          then 'the message left no trace: its queue keeps nothing (keep_done = 0), or it was purged' end
    as error
    from open_runs o left join packhorse.message_archive a on a.id = o.message_id
    left join packhorse.dead_letters d on d.id = o.message_id
  ), finished as (
    update packhorse.schedule_runs r
    set outcome = e.outcome, started_at = e.claimed_at, ended_at = e.ended_at, error = e.error
    from ended e where r.id = e.id returning 1
  )
  select count(*)::integer from finished;
$$;
comment on function packhorse.finish_schedule_runs(integer) is
  'Used by the scheduler: write the ends of runs into their history.';

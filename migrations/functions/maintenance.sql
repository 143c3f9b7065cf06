-- Maintenance: runs of retention, partition and table-care tasks and of backfills, and the health gates they
-- obey (SPEC M2-M9).
--
-- What a task does is configuration (schedules/config.py); what it did is here. One run at a time per task: a
-- unique index says so, and a run whose process died is taken over with its cursor.

create or replace function packhorse.declare_policies(p_policies jsonb) returns integer
language plpgsql as $$
-- A scheduler says what its configuration says: for each task {"keep_seconds": n}, {"ahead": n},
-- {"keep_days": n}, or {} when it is switched off or follows SQL of its own, which the engine alone knows.
-- What works without configuration (workers, cleanup_old_messages) obeys. Returns how many changed. Raises
-- PH001.
declare
  v_count integer;
begin
  if p_policies is null or jsonb_typeof(p_policies) <> 'object' then
    perform packhorse.refuse_argument('policies', 'must be a JSON object from task to policy');
  end if;
  insert into packhorse.maintenance_tasks as t (task, policy) select e.key, e.value
  from jsonb_each(p_policies) e order by e.key
  on conflict on constraint maintenance_tasks_pkey do update set policy = excluded.policy
  where t.policy is distinct from excluded.policy;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function packhorse.declare_policies(jsonb) is
  'What configuration says of maintenance tasks; returns how many policies changed.';

create or replace function packhorse.retention_keep(p_name text, p_default interval) returns interval
language sql stable as $$
-- How long the policy retention.p_name keeps its rows, as configuration last said: p_default where no
-- scheduler has ever said anything, null (delete nothing) where it is switched off or narrowed by SQL of its
-- own.
  select case when t.policy is null then p_default
    else make_interval(secs => (t.policy ->> 'keep_seconds')::float8) end
  from (select (select t.policy from packhorse.maintenance_tasks t
    where t.task = 'retention.' || p_name) as policy) t;
$$;
comment on function packhorse.retention_keep(text, interval) is
  'How long a policy of retention keeps its rows; null: nothing is to be deleted.';

create or replace function packhorse.keep_messages_partitions() returns integer
language plpgsql as $$
-- The months of the platform's `messages`, made ahead by whichever worker comes first; 0 where there is no
-- platform, or where configuration has switched partitions.messages off. Returns how many are new. A month
-- that cannot be made stops no other; when none could be made the first error is raised: what
-- create_messages_partition() raises.
declare
  v_policy constant jsonb := (select t.policy from packhorse.maintenance_tasks t
    where t.task = 'partitions.messages.make');
  v_ahead constant integer := case when v_policy is null then 5 else (v_policy ->> 'ahead')::integer end;
  v_month timestamp := date_trunc('month', clock_timestamp() at time zone 'UTC');
  v_made integer := 0;
  v_code text;
  v_text text;
  v_hint text;
begin
  if v_ahead is null or to_regprocedure('platform.create_messages_partition(date)') is null then
    return 0;
  end if;
  for v_place in 0..least(v_ahead, 60) loop
    begin
      if not packhorse.partition_covers('platform.messages', v_month at time zone 'UTC',
        (v_month + interval '1 month') at time zone 'UTC') then
        execute 'select platform.create_messages_partition($1)' using v_month::date;
        v_made := v_made + 1;
      end if;
    exception when others then
      if v_code is null then
        get stacked diagnostics v_code = returned_sqlstate, v_text = message_text, v_hint = pg_exception_hint;
      end if;
      exit when sqlstate = '55P03'; -- the others would wait for the same lock
    end;
    v_month := v_month + interval '1 month';
  end loop;
  if v_made = 0 and v_code is not null then
    raise exception using errcode = v_code, message = v_text, hint = v_hint;
  end if;
  return v_made;
end
$$;
comment on function packhorse.keep_messages_partitions() is
  'Make the months of messages ahead, where there is a platform; returns how many are new.';

create or replace function packhorse.start_maintenance_run(
  p_task text, p_kind text, p_triggered_by text, p_message_id bigint default null, p_plan jsonb default '{}',
  p_cutoff timestamptz default null, p_batch_size integer default null,
  p_silent_after interval default '2 minutes'
)
  returns table (run_id bigint, run_cutoff timestamptz, run_cursor jsonb, run_rows bigint,
    run_batch_size integer, run_resumed integer)
language plpgsql as $$
-- Begin a run, or go on with an unfinished one (paused, or silent for p_silent_after: its process died), with
-- its cutoff and cursor. Returns no row while another process works on the task. Locks the task's unfinished
-- row. An unfinished run of another plan (its policy was changed since) is cancelled: with its cutoff and
-- cursor it would remove what the policy keeps now. What a plan warns of does not count. A backfill that was
-- to be cancelled and whose process died is cancelled, too: its next run begins at the beginning.
declare
  v_id bigint;
begin
  perform packhorse.check_age('silent_after', p_silent_after);
  update packhorse.maintenance_runs r
  set state = 'cancelled', cancel_requested_by = coalesce(r.cancel_requested_by, p_triggered_by), gate = null,
    ended_at = clock_timestamp(),
    error = case when r.cancel_requested_by is null then 'the policy was changed: another run begins' end
  where r.task = p_task and (r.plan - 'warnings'::text is distinct from p_plan - 'warnings'::text
    or (r.kind = 'backfill' and r.cancel_requested_by is not null))
    and (r.state = 'paused' or (r.state = 'running'
    and (r.beat_at < clock_timestamp() - p_silent_after or r.message_id = p_message_id)));
  update packhorse.maintenance_runs r
  set state = 'running', resumed = r.resumed + 1, beat_at = clock_timestamp(), message_id = p_message_id,
    gate = null, triggered_by = p_triggered_by, pause_requested_by = null
  where r.task = p_task and (r.state = 'paused' or (r.state = 'running'
    and (r.beat_at < clock_timestamp() - p_silent_after or r.message_id = p_message_id)))
  returning r.id into v_id;
  if v_id is null then
    insert into packhorse.maintenance_runs as r (task, kind, triggered_by, message_id, plan, cutoff,
      batch_size)
    values (p_task, p_kind, p_triggered_by, p_message_id, p_plan, p_cutoff, p_batch_size)
    on conflict (task) where state in ('running', 'paused') do nothing
    returning r.id into v_id;
  end if;
  return query select r.id, r.cutoff, r.cursor, r.rows_done, r.batch_size, r.resumed
  from packhorse.maintenance_runs r where r.id = v_id;
end
$$;
comment on function packhorse.start_maintenance_run(text, text, text, bigint, jsonb, timestamptz, integer,
  interval)
  is 'Begin or take over the run of a task; no row while another process works on it.';

create or replace function packhorse.beat_maintenance_run(
  p_id bigint, p_rows bigint default 0, p_cursor jsonb default null, p_batch_size integer default null,
  p_gate text default null, p_throttled_seconds double precision default 0
) returns text
language plpgsql as $$
-- Progress of a run, in the transaction of its batch: rows, cursor, the gate that holds it (null: none).
-- Returns go, cancel or pause (asked for) or lost (somebody else has taken the run over, or it is over).
declare
  v_cancel text;
  v_pause text;
  v_task text;
begin
  update packhorse.maintenance_runs r
  set rows_done = r.rows_done + p_rows, batches = r.batches + (p_cursor is not null)::integer,
    cursor = coalesce(p_cursor, r.cursor), batch_size = coalesce(p_batch_size, r.batch_size), gate = p_gate,
    gates_hit = case when p_gate is null or p_gate = r.gate then r.gates_hit
      else r.gates_hit || jsonb_build_object(p_gate, coalesce((r.gates_hit ->> p_gate)::integer, 0) + 1) end,
    throttled_seconds = r.throttled_seconds + p_throttled_seconds, beat_at = clock_timestamp()
  where r.id = p_id and r.state = 'running'
  returning r.cancel_requested_by, r.pause_requested_by, r.task into v_cancel, v_pause, v_task;
  if v_task is null then
    return 'lost';
  elsif p_rows > 0 then
    insert into packhorse.maintenance_tasks as t (task, rows_total) values (v_task, p_rows)
    on conflict on constraint maintenance_tasks_pkey do update
    set rows_total = t.rows_total + excluded.rows_total;
  end if;
  return case when v_cancel is not null then 'cancel' when v_pause is not null then 'pause' else 'go' end;
end
$$;
comment on function packhorse.beat_maintenance_run(bigint, bigint, jsonb, integer, text, double precision) is
  'Progress of a run: go, cancel, pause or lost.';

create or replace function packhorse.end_maintenance_run(p_id bigint, p_state text, p_error text default null,
  p_details jsonb default null) returns boolean
language sql as $$
-- End a run as succeeded, failed or cancelled, or pause it (the next run goes on with it). False when it is
-- not running.
  with ended as (
    update packhorse.maintenance_runs r
    set state = p_state, error = left(p_error, 4000), details = coalesce(p_details, r.details), gate = null,
      ended_at = case when p_state <> 'paused' then clock_timestamp() end
    where r.id = p_id and r.state = 'running' returning r.task, r.state, r.ended_at
  ), remembered as (
    insert into packhorse.maintenance_tasks as t (task, last_success_at) select e.task, e.ended_at
    from ended e where e.state = 'succeeded'
    on conflict on constraint maintenance_tasks_pkey do update set last_success_at = excluded.last_success_at)
  select exists (select from ended);
$$;
comment on function packhorse.end_maintenance_run(bigint, text, text, jsonb) is
  'End or pause a run; false when it is not running.';

create or replace function packhorse.cancel_maintenance_run(p_task text, p_operator text default session_user,
  p_reason text default null) returns text
language plpgsql as $$
-- Ask the running run of a task to end after its batch ("requested"); end a paused one ("cancelled");
-- "nothing" else.
declare
  v_state text;
begin
  update packhorse.maintenance_runs r set cancel_requested_by = p_operator,
    state = case when r.state = 'paused' then 'cancelled' else r.state end,
    ended_at = case when r.state = 'paused' then clock_timestamp() end
  where r.task = p_task and r.state in ('running', 'paused')
  returning r.state into v_state;
  if v_state is null then
    return 'nothing';
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('cancel_maintenance', p_operator, p_reason, jsonb_build_object('task', p_task));
  return case v_state when 'running' then 'requested' else 'cancelled' end;
end
$$;
comment on function packhorse.cancel_maintenance_run(text, text, text) is
  'Cancel the unfinished run of a task: requested, cancelled or nothing.';

create or replace function packhorse.maintenance_gates(p_table regclass default null)
returns table (gate text, value double precision, known boolean, detail text)
language sql stable as $$
-- What a long run looks at between its batches (SPEC M6). known = false: this role may not see it; go slower.
  select 'replication_lag_seconds', max(extract(epoch from s.replay_lag))::float8,
    coalesce(bool_and(s.state is not null), true), format('%s standby(s)', count(*))
  from pg_stat_replication s
  union all
  select 'autovacuum_on_table',
    count(*) filter (where v.relid = p_table::oid
      or v.relid in (select t.relid from pg_partition_tree(p_table) t))::float8,
    coalesce(bool_and(v.relid is not null), true),
    format('%s vacuum(s) in progress', count(*))
  from pg_stat_progress_vacuum v
  union all
  select 'oldest_snapshot_seconds',
    max(extract(epoch from clock_timestamp() - a.xact_start))
      filter (where a.backend_xmin is not null)::float8,
    -- a snapshot whose age this role may not see
    not coalesce(bool_or(a.backend_xmin is not null and a.xact_start is null), false),
    format('%s backend(s)', count(*) filter (where a.backend_xmin is not null))
  from pg_stat_activity a where a.pid <> pg_backend_pid() and a.datname = current_database()
  union all
  select 'connections_ratio', count(*)::float8 / current_setting('max_connections')::integer, true,
    format('%s connections', count(*))
  -- the type of others' may be hidden
  from pg_stat_activity a where coalesce(a.backend_type = 'client backend', a.datid is not null)
  union all
  select 'queue_latency_seconds', max(extract(epoch from clock_timestamp() - d.run_at))::float8, true,
    max(d.name)
  from (
    select q.name::text, (
      select min(l.run_at) from generate_series(1, 10) as level (priority) cross join lateral (
        select m.run_at from packhorse.message_queue m
        where m.queue = q.name and m.state = 'pending' and m.crashes = 0 and m.priority = level.priority
          and m.run_at <= clock_timestamp()
        order by m.run_at limit 1) l) as run_at
    from packhorse.queues q where q.paused_at is null and q.name <> 'packhorse'
      -- what waits behind a limit of its queue waits beside an idle database, perhaps for ever
      and q.max_concurrency is null and q.max_concurrency_per_key is null and q.rate_limit is null
      -- a queue that nobody works on says nothing about load, and must not keep the database from being
      -- cleaned
      and exists (select from packhorse.workers w
        where q.name = any (w.queues) and packhorse.queue_goes_to(q, w.forward)
          and w.last_seen_at > clock_timestamp() - interval '1 minute')) d
  where d.run_at is not null;
$$;
comment on function packhorse.maintenance_gates(regclass) is
  'The health gates of maintenance: their values now, and whether this role can see them.';

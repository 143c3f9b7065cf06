-- Maintenance: runs of retention, partition and table-care tasks, and the health gates they obey (SPEC M2-M7, M9).
--
-- What a task does is configuration (schedules/config.py); what it did is here. One run at a time per task: a
-- unique index says so, and a run whose process died is taken over with its cursor.
-- Lock and duration: new objects only, milliseconds.

create table maintenance_runs (
  id                  bigint generated always as identity,
  task                message_name not null,
  kind                text         not null,
  state               text         not null default 'running',
  triggered_by        text         not null,
  message_id          bigint,
  plan                jsonb        not null default '{}',
  cutoff              timestamptz,
  cursor              jsonb,
  rows_done           bigint       not null default 0,
  rows_total          bigint,
  batches             integer      not null default 0,
  batch_size          integer,
  resumed             integer      not null default 0,
  gate                text,
  gates_hit           jsonb        not null default '{}',
  throttled_seconds   double precision not null default 0,
  details             jsonb,
  error               text,
  cancel_requested_by text,
  started_at          timestamptz  not null default clock_timestamp(),
  beat_at             timestamptz  not null default clock_timestamp(),
  ended_at            timestamptz,
  constraint maintenance_runs_pkey primary key (id),
  constraint maintenance_runs_kind_known check (kind in ('retention', 'partitions', 'job')),
  constraint maintenance_runs_state_known check (state in ('running', 'paused', 'succeeded', 'failed', 'cancelled')),
  constraint maintenance_runs_ended_when_over check ((ended_at is not null) = (state in ('succeeded', 'failed', 'cancelled')))
);
-- One runner per task; paused (its time budget was spent) is unfinished, too: the next run goes on with it.
create unique index maintenance_runs_unfinished_key on maintenance_runs (task) where state in ('running', 'paused');
create index maintenance_runs_task_idx on maintenance_runs (task, id);
create index maintenance_runs_ended_at_idx on maintenance_runs (ended_at) where ended_at is not null;
comment on table maintenance_runs is 'Runs of maintenance tasks: cursor, progress, gates, outcome; also their audit (SPEC M6, M7).';

create table maintenance_tasks (
  task            message_name not null,
  rows_total      bigint       not null default 0,
  last_success_at timestamptz,
  policy          jsonb,
  constraint maintenance_tasks_pkey primary key (task)
);
comment on table maintenance_tasks is 'Totals of each task, which outlive the history of its runs: a counter that never goes back. policy: as configuration last said.';

create table detached_partitions (
  parent        text        not null,
  partition     text        not null,
  lower_bound   text        not null,
  upper_bound   text        not null,
  detached_at   timestamptz not null default clock_timestamp(),
  exported_at   timestamptz,
  export_path   text,
  export_rows   bigint,
  export_sha256 text,
  dropped_at    timestamptz,
  constraint detached_partitions_pkey primary key (parent, partition, detached_at),
  constraint detached_partitions_export_whole check (
    (exported_at is null) = (export_path is null) and (exported_at is null) = (export_sha256 is null) and (exported_at is null) = (export_rows is null))
);
comment on table detached_partitions is 'Partitions that were detached, with their export and their drop (SPEC M5).';

create function declare_policies(p_policies jsonb) returns integer
language plpgsql set search_path from current as $$
-- A scheduler says what its configuration says: for each task {"keep_seconds": n}, {"ahead": n}, {"keep_days": n}, or {} when it is switched off or follows SQL of
-- its own, which the engine alone knows. What works without configuration (workers, cleanup_old_messages) obeys. Returns how many changed. Raises PH001.
declare
  v_count integer;
begin
  if p_policies is null or jsonb_typeof(p_policies) <> 'object' then
    perform refuse_argument('policies', 'must be a JSON object from task to policy');
  end if;
  insert into maintenance_tasks as t (task, policy) select e.key, e.value from jsonb_each(p_policies) e order by e.key
  on conflict on constraint maintenance_tasks_pkey do update set policy = excluded.policy where t.policy is distinct from excluded.policy;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function declare_policies(jsonb) is 'What configuration says of maintenance tasks; returns how many policies changed.';

create function retention_keep(p_name text, p_default interval) returns interval
language sql stable set search_path from current as $$
-- How long the policy retention.p_name keeps its rows, as configuration last said: p_default where no scheduler has ever said anything,
-- null (delete nothing) where it is switched off or narrowed by SQL of its own.
  select case when t.policy is null then p_default else make_interval(secs => (t.policy ->> 'keep_seconds')::float8) end
  from (select (select t.policy from maintenance_tasks t where t.task = 'retention.' || p_name) as policy) t;
$$;
comment on function retention_keep(text, interval) is 'How long a policy of retention keeps its rows; null: nothing is to be deleted.';

create function keep_messages_partitions() returns integer
language plpgsql set search_path from current as $$
-- The months of the platform's `messages`, made ahead by whichever worker comes first; 0 where there is no platform, or where configuration has
-- switched partitions.messages off. Returns how many are new. A month that cannot be made stops no other; when none could be made the first
-- error is raised: what create_messages_partition() raises.
declare
  v_policy constant jsonb := (select t.policy from maintenance_tasks t where t.task = 'partitions.messages.make');
  v_ahead constant integer := case when v_policy is null then 5 else (v_policy ->> 'ahead')::integer end;
  v_month timestamp := date_trunc('month', clock_timestamp() at time zone 'UTC');
  v_made integer := 0;
  v_code text;
  v_text text;
  v_hint text;
begin
  if v_ahead is null or to_regprocedure('create_messages_partition(date)') is null then
    return 0;
  end if;
  for v_place in 0..least(v_ahead, 60) loop
    begin
      if not partition_covers('messages', v_month at time zone 'UTC', (v_month + interval '1 month') at time zone 'UTC') then
        execute 'select create_messages_partition($1)' using v_month::date;
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
comment on function keep_messages_partitions() is 'Make the months of messages ahead, where there is a platform; returns how many are new.';

create function start_maintenance_run(
  p_task text, p_kind text, p_triggered_by text, p_message_id bigint default null, p_plan jsonb default '{}',
  p_cutoff timestamptz default null, p_batch_size integer default null, p_silent_after interval default '2 minutes'
) returns table (run_id bigint, run_cutoff timestamptz, run_cursor jsonb, run_rows bigint, run_batch_size integer, run_resumed integer)
language plpgsql set search_path from current as $$
-- Begin a run, or go on with an unfinished one (paused, or silent for p_silent_after: its process died), with its
-- cutoff and cursor. Returns no row while another process works on the task. Locks the task's unfinished row.
-- An unfinished run of another plan (its policy was changed since) is cancelled: with its cutoff and cursor it would
-- remove what the policy keeps now. What a plan warns of does not count.
declare
  v_id bigint;
begin
  perform check_age('silent_after', p_silent_after);
  update maintenance_runs r set state = 'cancelled', cancel_requested_by = p_triggered_by, gate = null, ended_at = clock_timestamp(),
    error = 'the policy was changed: another run begins'
  where r.task = p_task and r.plan - 'warnings' is distinct from p_plan - 'warnings' and (r.state = 'paused' or (r.state = 'running'
    and (r.beat_at < clock_timestamp() - p_silent_after or r.message_id = p_message_id)));
  update maintenance_runs r set state = 'running', resumed = r.resumed + 1, beat_at = clock_timestamp(), message_id = p_message_id, gate = null,
    triggered_by = p_triggered_by
  where r.task = p_task and (r.state = 'paused' or (r.state = 'running'
    and (r.beat_at < clock_timestamp() - p_silent_after or r.message_id = p_message_id)))
  returning r.id into v_id;
  if v_id is null then
    insert into maintenance_runs as r (task, kind, triggered_by, message_id, plan, cutoff, batch_size)
    values (p_task, p_kind, p_triggered_by, p_message_id, p_plan, p_cutoff, p_batch_size)
    on conflict (task) where state in ('running', 'paused') do nothing
    returning r.id into v_id;
  end if;
  return query select r.id, r.cutoff, r.cursor, r.rows_done, r.batch_size, r.resumed from maintenance_runs r where r.id = v_id;
end
$$;
comment on function start_maintenance_run(text, text, text, bigint, jsonb, timestamptz, integer, interval)
  is 'Begin or take over the run of a task; no row while another process works on it.';

create function beat_maintenance_run(
  p_id bigint, p_rows bigint default 0, p_cursor jsonb default null, p_batch_size integer default null, p_gate text default null,
  p_throttled_seconds double precision default 0
) returns text
language plpgsql set search_path from current as $$
-- Progress of a run, in the transaction of its batch: rows, cursor, the gate that holds it (null: none). Returns
-- go, cancel (asked for) or lost (somebody else has taken the run over, or it is over).
declare
  v_cancel text;
  v_task text;
begin
  update maintenance_runs r set rows_done = r.rows_done + p_rows, batches = r.batches + (p_cursor is not null)::integer,
    cursor = coalesce(p_cursor, r.cursor), batch_size = coalesce(p_batch_size, r.batch_size), gate = p_gate,
    gates_hit = case when p_gate is null or p_gate = r.gate then r.gates_hit
      else r.gates_hit || jsonb_build_object(p_gate, coalesce((r.gates_hit ->> p_gate)::integer, 0) + 1) end,
    throttled_seconds = r.throttled_seconds + p_throttled_seconds, beat_at = clock_timestamp()
  where r.id = p_id and r.state = 'running'
  returning r.cancel_requested_by, r.task into v_cancel, v_task;
  if v_task is null then
    return 'lost';
  elsif p_rows > 0 then
    insert into maintenance_tasks as t (task, rows_total) values (v_task, p_rows)
    on conflict on constraint maintenance_tasks_pkey do update set rows_total = t.rows_total + excluded.rows_total;
  end if;
  return case when v_cancel is not null then 'cancel' else 'go' end;
end
$$;
comment on function beat_maintenance_run(bigint, bigint, jsonb, integer, text, double precision) is 'Progress of a run: go, cancel or lost.';

create function end_maintenance_run(p_id bigint, p_state text, p_error text default null, p_details jsonb default null) returns boolean
language sql set search_path from current as $$
-- End a run as succeeded, failed or cancelled, or pause it (the next run goes on with it). False when it is not running.
  with ended as (
    update maintenance_runs r set state = p_state, error = left(p_error, 4000), details = coalesce(p_details, r.details), gate = null,
      ended_at = case when p_state <> 'paused' then clock_timestamp() end
    where r.id = p_id and r.state = 'running' returning r.task, r.state, r.ended_at
  ), remembered as (
    insert into maintenance_tasks as t (task, last_success_at) select e.task, e.ended_at from ended e where e.state = 'succeeded'
    on conflict on constraint maintenance_tasks_pkey do update set last_success_at = excluded.last_success_at)
  select exists (select from ended);
$$;
comment on function end_maintenance_run(bigint, text, text, jsonb) is 'End or pause a run; false when it is not running.';

create function cancel_maintenance_run(p_task text, p_operator text default session_user, p_reason text default null) returns text
language plpgsql set search_path from current as $$
-- Ask the running run of a task to end after its batch ("requested"); end a paused one ("cancelled"); "nothing" else.
declare
  v_state text;
begin
  update maintenance_runs r set cancel_requested_by = p_operator,
    state = case when r.state = 'paused' then 'cancelled' else r.state end,
    ended_at = case when r.state = 'paused' then clock_timestamp() end
  where r.task = p_task and r.state in ('running', 'paused')
  returning r.state into v_state;
  if v_state is null then
    return 'nothing';
  end if;
  insert into operator_actions (action, operator, reason, details)
  values ('cancel_maintenance', p_operator, p_reason, jsonb_build_object('task', p_task));
  return case v_state when 'running' then 'requested' else 'cancelled' end;
end
$$;
comment on function cancel_maintenance_run(text, text, text) is 'Cancel the unfinished run of a task: requested, cancelled or nothing.';

create function maintenance_gates(p_table regclass default null)
returns table (gate text, value double precision, known boolean, detail text)
language sql stable set search_path from current as $$
-- What a long run looks at between its batches (SPEC M6). known = false: this role may not see it; go slower.
  select 'replication_lag_seconds', max(extract(epoch from s.replay_lag))::float8,
    coalesce(bool_and(s.state is not null), true), format('%s standby(s)', count(*))
  from pg_stat_replication s
  union all
  select 'autovacuum_on_table', count(*) filter (where v.relid = p_table or v.relid in (select t.relid from pg_partition_tree(p_table) t))::float8, coalesce(bool_and(v.relid is not null), true),
    format('%s vacuum(s) in progress', count(*))
  from pg_stat_progress_vacuum v
  union all
  select 'oldest_snapshot_seconds', max(extract(epoch from clock_timestamp() - a.xact_start)) filter (where a.backend_xmin is not null)::float8,
    not coalesce(bool_or(a.backend_xmin is not null and a.xact_start is null), false), -- a snapshot whose age this role may not see
    format('%s backend(s)', count(*) filter (where a.backend_xmin is not null))
  from pg_stat_activity a where a.pid <> pg_backend_pid() and a.datname = current_database()
  union all
  select 'connections_ratio', count(*)::float8 / current_setting('max_connections')::integer, true, format('%s connections', count(*))
  from pg_stat_activity a where coalesce(a.backend_type = 'client backend', a.datid is not null) -- the type of others' may be hidden
  union all
  select 'queue_latency_seconds', max(extract(epoch from clock_timestamp() - d.run_at))::float8, true, max(d.name)
  from (
    select q.name::text, (
      select min(l.run_at) from generate_series(1, 10) as level (priority) cross join lateral (
        select m.run_at from message_queue m
        where m.queue = q.name and m.state = 'pending' and m.crashes = 0 and m.priority = level.priority and m.run_at <= clock_timestamp()
        order by m.run_at limit 1) l) as run_at
    from queues q where q.paused_at is null and q.name <> 'packhorse'
      -- what waits behind a limit of its queue waits beside an idle database, perhaps for ever
      and q.max_concurrency is null and q.max_concurrency_per_key is null and q.rate_limit is null
      -- a queue that nobody works on says nothing about load, and must not keep the database from being cleaned
      and exists (select from workers w where q.name = any (w.queues) and w.last_seen_at > clock_timestamp() - interval '1 minute')) d
  where d.run_at is not null;
$$;
comment on function maintenance_gates(regclass) is 'The health gates of maintenance: their values now, and whether this role can see them.';

create view maintenance_health as
with recursive tasks (name) as ( -- from task to task by the index: runs of three months are not read for the last one of each
  (select r.task::text from maintenance_runs r order by r.task limit 1)
  union all
  select (select n.task::text from maintenance_runs n where n.task > k.name order by n.task limit 1) from tasks k where k.name is not null
)
select r.task, r.kind, r.state, r.gate, r.rows_done, r.started_at, r.ended_at, r.error, t.last_success_at, coalesce(t.rows_total, 0) as rows_total
from tasks k
-- not `l.task = k.name`: the planner might walk back by id through what other tasks did since
cross join lateral (select l.* from maintenance_runs l where l.task <= k.name order by l.task desc, l.id desc limit 1) r
left join maintenance_tasks t on t.task = r.task
where k.name is not null
order by r.task;
comment on view maintenance_health is 'One row per maintenance task: its last run, last success and rows (SPEC M7).';

do $$
declare
  v_name text;
  v_function regprocedure;
begin
  foreach v_name in array array['maintenance_runs', 'maintenance_tasks', 'detached_partitions'] loop
    execute format('revoke all on %I from public', v_name);
    execute format('alter table %I enable row level security', v_name);
    execute format('create policy %I on %I to packhorse_worker using (true) with check (true)', v_name || '_worker', v_name);
    execute format('create policy %I on %I for select to packhorse_reader using (true)', v_name || '_reader', v_name);
    execute format('grant select, insert, update, delete on %I to packhorse_worker', v_name);
    execute format('grant select on %I to packhorse_reader', v_name);
  end loop;
  revoke all on maintenance_health from public;
  grant select on maintenance_health to packhorse_worker, packhorse_reader;
  if current_setting('server_version_num')::integer >= 150000 then -- 14 has no such views: they run as their owner
    alter view maintenance_health set (security_invoker = true);
  end if;
  for v_function in select p.oid::regprocedure from pg_proc p
    where p.pronamespace = (select oid from pg_namespace where nspname = current_schema())
      and p.proname in ('declare_policies', 'retention_keep', 'keep_messages_partitions', 'start_maintenance_run', 'beat_maintenance_run', 'end_maintenance_run', 'cancel_maintenance_run', 'maintenance_gates') loop
    execute format('revoke execute on function %s from public', v_function);
    execute format('grant execute on function %s to packhorse_worker', v_function);
  end loop;
end
$$;

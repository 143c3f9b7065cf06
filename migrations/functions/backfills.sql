-- Backfills: begin, move from state to state, progress, pause, resume, cancel (SPEC M8).
--
-- What a backfill does is Python (schedules/backfill); how far it is, and what operators have asked of it, is
-- here. Its run is an ordinary run of maintenance, with the task backfill.NAME.

create or replace function packhorse.require_backfill(p_name text) returns packhorse.backfills
language plpgsql as $$
-- The row, locked. Raises PH004 when nobody has begun such a backfill.
declare
  v_backfill packhorse.backfills;
begin
  select * into v_backfill from packhorse.backfills b where b.name = p_name for update;
  if not found then
    raise exception using errcode = 'PH004', column = 'name',
      message = format('name: nobody has begun the backfill %s', quote_literal(left(p_name, 100))),
      hint = 'packhorse backfill list names them all; packhorse backfill run begins one.';
  end if;
  return v_backfill;
end
$$;
comment on function packhorse.require_backfill(text) is 'A backfill that was begun, its row locked.';

create or replace function packhorse.declare_backfill(p_name text, p_source text,
  p_settings jsonb default '{}', p_operator text default session_user)
returns packhorse.backfills
language plpgsql as $$
-- The row of a backfill, made when there is none. Its settings are fixed from the first run to the way back:
-- raises PH005 for others.
declare
  v_backfill packhorse.backfills;
begin
  if p_settings is null or jsonb_typeof(p_settings) <> 'object' then
    perform packhorse.refuse_argument('settings', 'must be a JSON object');
  end if;
  insert into packhorse.backfills (name, source, settings, requested_by)
  values (p_name, p_source, p_settings, p_operator) on conflict do nothing;
  v_backfill := packhorse.require_backfill(p_name);
  if v_backfill.settings <> p_settings or v_backfill.source <> p_source then
    if v_backfill.state not in ('new', 'rolled_back', 'finished') then -- finished: another table
      raise exception using errcode = 'PH005', column = 'settings',
        message = format('settings: the backfill %s was begun with %s on %s', p_name, v_backfill.settings,
          v_backfill.source),
        hint = format('Go on with these, or take it back first: packhorse backfill rollback %s', p_name);
    end if;
    update packhorse.backfills b
    set settings = p_settings, source = p_source, state = 'new', passes = 0, rows_copied = 0,
      rows_skipped = 0, memo = '{}', looked_at = null, counters_seen = null, quiet_since = null,
      copied_at = null, verified_at = null, finished_at = null
    where b.name = p_name returning * into v_backfill;
  end if;
  return v_backfill;
end
$$;
comment on function packhorse.declare_backfill(text, text, jsonb, text) is
  'The row of a backfill, made when there is none; refuses other settings once it has begun.';

create or replace function packhorse.move_backfill(p_name text, p_state text,
  p_operator text default session_user, p_reason text default null, p_details jsonb default null)
returns packhorse.backfills
language plpgsql as $$
-- The next state, and its record in operator_actions; a verification is recorded when it has details:
-- somebody asked for it. Raises PH004, and PH005 for a state that does not follow.
declare
  v_backfill packhorse.backfills := packhorse.require_backfill(p_name);
  v_now constant timestamptz := clock_timestamp();
begin
  if not exists (select from (values
      -- a run, again and again
      ('new', 'running'), ('running', 'running'), ('copied', 'running'), ('verified', 'running'),
      ('rolled_back', 'running'),
      -- the end of the source; a verification that has failed
      ('running', 'copied'), ('copied', 'copied'), ('verified', 'copied'),
      -- new: nothing is to be copied, a drop alone
      ('new', 'verified'), ('copied', 'verified'), ('verified', 'verified'),
      ('verified', 'finished'), -- the source is gone
      ('running', 'rolled_back'), ('copied', 'rolled_back'), ('verified', 'rolled_back'),
      ('finished', 'rolled_back'), ('rolled_back', 'rolled_back')
    ) as t (source, target) where t.source = v_backfill.state and t.target = p_state) then
    raise exception using errcode = 'PH005', column = 'name',
      message = format('name: the backfill %s is %s and cannot become %s', p_name, v_backfill.state, p_state);
  end if;
  update packhorse.backfills b set state = p_state,
    started_at = case when p_state = 'running' then coalesce(b.started_at, v_now) else b.started_at end,
    recent_rows = case when p_state = 'running' then '{}' else b.recent_rows end,
    copied_at = case when p_state = 'copied' and b.state <> 'verified' then v_now
      when p_state = 'rolled_back' then null else b.copied_at end,
    passes = case when p_state = 'copied' and b.state = 'running' then b.passes + 1
      when p_state = 'rolled_back' then 0 else b.passes end,
    verified_at = case when p_state = 'verified' then v_now when p_state = 'finished' then b.verified_at end,
    finished_at = case when p_state = 'finished' then v_now end,
    rolled_back_at = case when p_state = 'rolled_back' then v_now end,
    carried = b.carried and p_state not in ('finished', 'rolled_back'),
    paused_at = case when p_state not in ('finished', 'rolled_back') then b.paused_at end,
    paused_by = case when p_state not in ('finished', 'rolled_back') then b.paused_by end,
    rows_copied = case when p_state = 'rolled_back' then 0 else b.rows_copied end,
    rows_skipped = case when p_state = 'rolled_back' then 0 else b.rows_skipped end
  where b.name = p_name returning * into v_backfill;
  if p_state = 'rolled_back' then -- the cursor of an unfinished run is that of another life
    update packhorse.maintenance_runs r
    set state = 'cancelled', cancel_requested_by = p_operator, gate = null, ended_at = v_now
    where r.task = 'backfill.' || p_name and r.state in ('running', 'paused');
  end if;
  if p_state in ('running', 'finished', 'rolled_back') or p_details is not null then
    insert into packhorse.operator_actions (action, operator, reason, details)
    values (case p_state when 'running' then 'run_backfill' when 'finished' then 'finish_backfill'
      when 'rolled_back' then 'roll_back_backfill' else 'verify_backfill' end, p_operator, p_reason,
      coalesce(p_details, '{}') || jsonb_build_object('backfill', p_name));
  end if;
  return v_backfill;
end
$$;
comment on function packhorse.move_backfill(text, text, text, text, jsonb) is
  'The next state of a backfill, recorded; refuses one that does not follow.';

create or replace function packhorse.note_backfill_step(p_name text, p_run_id bigint, p_copied bigint,
  p_skipped bigint, p_walked bigint) returns void
language sql as $$
-- Progress, in the transaction of the step. A point every five seconds, those of the last minute.
  with point as (
    select extract(epoch from clock_timestamp())::float8 as at,
      p_walked + coalesce((select r.rows_done from packhorse.maintenance_runs r where r.id = p_run_id),
        0)::float8 as rows)
  update packhorse.backfills b
  set rows_copied = b.rows_copied + p_copied, rows_skipped = b.rows_skipped + p_skipped,
    recent_rows = case when p.at - b.recent_rows[1] < 5 then b.recent_rows
      else (array[p.at, p.rows] || b.recent_rows)[1:26] end
  from point p where b.name = p_name;
$$;
comment on function packhorse.note_backfill_step(text, bigint, bigint, bigint, bigint) is
  'Progress of a backfill, in the transaction of its step.';

create or replace function packhorse.note_backfill_look(p_name text, p_counters bigint[])
returns packhorse.backfills
language sql as $$
-- The counters of the source as somebody sees them now. quiet_since: the first look that saw these; counters
-- that went back (the server lost them in a crash) are others.
  update packhorse.backfills b set looked_at = clock_timestamp(), counters_seen = p_counters,
    quiet_since = case when b.counters_seen = p_counters then b.quiet_since else clock_timestamp() end
  where b.name = p_name returning *;
$$;
comment on function packhorse.note_backfill_look(text, bigint[]) is
  'Remember the counters of a source for the drop guard.';

create or replace function packhorse.start_backfill(
  p_name text, p_source text, p_settings jsonb default '{}', p_operator text default session_user,
  p_reason text default null) returns bigint
language plpgsql as $$
-- Let workers carry a backfill: a message of the maintenance queue, which works in slices until the end.
-- Returns its id; that of the message that lives, when there is one. Raises PH005 when it is finished, PH001.
declare
  v_backfill packhorse.backfills := packhorse.declare_backfill(p_name, p_source, p_settings, p_operator);
begin
  if v_backfill.state = 'finished' then
    raise exception using errcode = 'PH005', column = 'name',
      message = format('name: the backfill %s is finished, its source is gone', p_name);
  end if;
  update packhorse.backfills b set carried = true, paused_at = null, paused_by = null where b.name = p_name;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('start_backfill', p_operator, p_reason, jsonb_build_object('backfill', p_name));
  return packhorse.enqueue_backfill(p_name);
end
$$;
comment on function packhorse.start_backfill(text, text, jsonb, text, text) is
  'Let workers carry a backfill; returns the id of the message.';

create or replace function packhorse.enqueue_backfill(p_name text) returns bigint
language plpgsql as $$
-- The message that carries a backfill. While one lives there is no second: they would wait for each other's
-- run.
declare
  v_id bigint;
begin
  select m.id into v_id from packhorse.message_queue m
  where m.queue = 'packhorse' and m.message_type = 'packhorse.maintenance'
    and m.payload = jsonb_build_object('task', 'backfill.' || p_name) order by m.id limit 1;
  if v_id is null then
    perform packhorse.declare_queue('packhorse');
    v_id := (select e.message_id
      from packhorse.enqueue_message('packhorse', 'packhorse.maintenance',
        jsonb_build_object('task', 'backfill.' || p_name),
      p_max_attempts => 10) e);
  end if;
  return v_id;
end
$$;
comment on function packhorse.enqueue_backfill(text) is
  'Used by start_backfill and resume_backfill: the message that carries a backfill.';

create or replace function packhorse.pause_backfill(p_name text, p_operator text default session_user,
  p_reason text default null) returns text
language plpgsql as $$
-- Let a backfill rest until resume_backfill: "requested" (its run ends after its step), "paused" (nothing
-- runs), "nothing" (it was paused, or is over). Raises PH004.
declare
  v_backfill packhorse.backfills := packhorse.require_backfill(p_name);
  v_runs boolean;
begin
  if v_backfill.paused_at is not null or v_backfill.state = 'finished' then
    return 'nothing';
  end if;
  update packhorse.backfills b set paused_at = clock_timestamp(), paused_by = p_operator
  where b.name = p_name;
  update packhorse.maintenance_runs r set pause_requested_by = p_operator
  where r.task = 'backfill.' || p_name and r.state = 'running';
  v_runs := found;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('pause_backfill', p_operator, p_reason, jsonb_build_object('backfill', p_name));
  return case when v_runs then 'requested' else 'paused' end;
end
$$;
comment on function packhorse.pause_backfill(text, text, text) is
  'Let a backfill rest: requested, paused or nothing.';

create or replace function packhorse.resume_backfill(p_name text, p_operator text default session_user,
  p_reason text default null) returns text
language plpgsql as $$
-- Let a paused backfill go on: "enqueued" (workers carry it), "resumed" (the next `packhorse backfill run`
-- goes on), "nothing" (it was not paused). Raises PH004.
declare
  v_backfill packhorse.backfills := packhorse.require_backfill(p_name);
begin
  if v_backfill.paused_at is null then
    return 'nothing';
  end if;
  update packhorse.backfills b set paused_at = null, paused_by = null where b.name = p_name;
  update packhorse.maintenance_runs r set pause_requested_by = null
  where r.task = 'backfill.' || p_name and r.state = 'running';
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('resume_backfill', p_operator, p_reason, jsonb_build_object('backfill', p_name));
  if v_backfill.carried then
    perform packhorse.enqueue_backfill(p_name);
    return 'enqueued';
  end if;
  return 'resumed';
end
$$;
comment on function packhorse.resume_backfill(text, text, text) is
  'Let a paused backfill go on: enqueued, resumed or nothing.';

create or replace function packhorse.cancel_backfill(p_name text, p_operator text default session_user,
  p_reason text default null) returns text
language plpgsql as $$
-- End the unfinished run of a backfill: "requested", "cancelled" or "nothing", as cancel_maintenance_run
-- says. What it has copied stays, until somebody takes it back; the next run begins at the beginning. Raises
-- PH004.
declare
  v_backfill packhorse.backfills := packhorse.require_backfill(p_name);
  v_answer text := packhorse.cancel_maintenance_run('backfill.' || p_name, p_operator, p_reason);
begin
  update packhorse.backfills b set carried = false, paused_at = null, paused_by = null
  where b.name = p_name and v_answer <> 'nothing';
  return v_answer;
end
$$;
comment on function packhorse.cancel_backfill(text, text, text) is
  'End the unfinished run of a backfill: requested, cancelled or nothing.';

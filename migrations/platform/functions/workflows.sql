-- Workflows of several steps (SPEC C7, M2). A person has one active workflow of a type.
--
-- A workflow is timed out when mark_timed_out_workflows() says so, or when the person starts another one of
-- its type, and not before: a step that comes late but earlier than that is proof of life. Rows that have
-- finished never change again.

create or replace function platform.workflow_time_limit(p_workflow_type text) returns interval
language sql immutable as $$
-- How long the next step of a workflow may take, where its caller does not say.
  select case p_workflow_type
    when 'order' then interval '15 minutes' when 'payment' then interval '10 minutes'
    when 'ride_request' then interval '5 minutes'
    when 'property_inquiry' then interval '60 minutes' when 'insurance_claim' then interval '60 minutes'
    else interval '30 minutes' end; -- job_application, too
$$;
comment on function platform.workflow_time_limit(text) is
  'How long the next step of a workflow of this type may take.';

create or replace function platform.start_workflow(
  p_workflow_type text, p_step text, p_timeout interval default null, p_data jsonb default '{}',
  p_conversation_key text default null, p_correlation_id text default null, p_user_phone text default null,
  p_agent_type text default null
) returns uuid
language plpgsql as $$
-- Start a workflow at its first step; the next step must come within p_timeout (1 second to 366 days; null:
-- by type). Returns its id. One of the same person and type that is past its time becomes `timeout` first.
-- Locks that one; an insert waits for another one of the same person and type. Raises PH001, PH005 (the
-- person has an active one).
declare
  v_timeout constant interval := coalesce(p_timeout, platform.workflow_time_limit(p_workflow_type));
  v_phone text;
  v_id uuid;
begin
  perform platform.check_text('workflow_type', p_workflow_type, 100);
  perform platform.check_text('step', p_step, 100);
  perform platform.check_span('timeout', v_timeout, interval '1 second', interval '366 days');
  perform platform.check_object('data', p_data);
  if p_conversation_key is not null then
    perform platform.check_text('conversation_key', p_conversation_key, 500);
  end if;
  if p_user_phone is not null then
    v_phone := platform.check_phone('user_phone', p_user_phone);
    perform platform.end_overdue_workflow(w.id) from platform.workflow_states w
    where platform.normalize_phone(w.user_phone) = v_phone and w.workflow_type = p_workflow_type
      and w.status = 'active'
      and w.timeout_at <= clock_timestamp();
  end if;
  loop
    insert into platform.workflow_states as w (workflow_type, current_step, workflow_data, conversation_key,
      correlation_id, user_phone, agent_type, timeout_at)
    values (p_workflow_type, p_step, p_data, p_conversation_key, p_correlation_id, p_user_phone, p_agent_type,
      clock_timestamp() + v_timeout)
    on conflict (platform.normalize_phone(user_phone), workflow_type)
    where status = 'active' and user_phone is not null do nothing
    returning w.id into v_id;
    if found then
      return v_id;
    end if;
    select w.id into v_id from platform.workflow_states w
    where platform.normalize_phone(w.user_phone) = v_phone and w.workflow_type = p_workflow_type
      and w.status = 'active';
    if found then
      raise exception using errcode = 'PH005', column = 'user_phone',
        message = format('user_phone: the person has an active workflow of the type %s: %s', p_workflow_type,
          v_id),
        hint = 'Go on with that one (advance_workflow), or end it (finish_workflow).';
    end if;
    -- it has just ended: try again
  end loop;
end
$$;
comment on function platform.start_workflow(text, text, interval, jsonb, text, text, text, text) is
  'Start a workflow; returns its id.';

create or replace function platform.refuse_workflow(p_id uuid) returns void
language plpgsql stable as $$
-- Raise PH004 or PH005: why a workflow could not be changed.
declare
  v_status text := (select w.status from platform.workflow_states w where w.id = p_id);
begin
  if v_status is null then
    raise exception using errcode = 'PH004', column = 'id',
      message = format('id: there is no workflow %s', p_id);
  end if;
  raise exception using errcode = 'PH005', column = 'id',
    message = format('id: the workflow is %s', v_status);
end
$$;
comment on function platform.refuse_workflow(uuid) is 'Raise why a workflow could not be changed.';

create or replace function platform.advance_workflow(p_id uuid, p_step text, p_data jsonb default '{}',
  p_timeout interval default null) returns integer
language plpgsql as $$
-- Go on to the next step: the keys of p_data are put into its data, the step that ends into its history (the
-- last 50), and the time limit starts anew (p_timeout: 1 second to 366 days; null: by type). Returns the
-- step's number, from 1. Locks the row. Raises PH001, PH004 (no such workflow), PH005 (it is not active).
declare
  v_now constant timestamptz := clock_timestamp();
  v_number integer;
begin
  perform platform.check_text('step', p_step, 100);
  perform platform.check_object('data', p_data);
  perform platform.check_span('timeout', coalesce(p_timeout, interval '30 minutes'), interval '1 second',
    interval '366 days');
  update platform.workflow_states w
  set history = platform.append_entry(w.history,
    jsonb_build_object('step', w.current_step, 'ended_at', v_now), 50),
      current_step = p_step, step_number = w.step_number + 1, workflow_data = w.workflow_data || p_data,
      timeout_at = v_now + coalesce(p_timeout, platform.workflow_time_limit(w.workflow_type))
  where w.id = p_id and w.status = 'active'
  returning w.step_number into v_number;
  if not found then
    perform platform.refuse_workflow(p_id);
  end if;
  return v_number;
end
$$;
comment on function platform.advance_workflow(uuid, text, jsonb, interval) is
  'Go on to the next step of a workflow; returns its number.';

create or replace function platform.finish_workflow(p_id uuid, p_status text default 'completed',
  p_error text default null) returns boolean
language plpgsql as $$
-- End an active or paused workflow as completed, failed or cancelled; p_error becomes error_info {"message"}.
-- True when it ended now, false when it had ended so before. Locks the row. Raises PH001, PH004 (no such
-- workflow), PH005 (it ended in another way).
begin
  if p_status is null or p_status not in ('completed', 'failed', 'cancelled') then
    perform platform.refuse_value('status', format('%L is no end of a workflow', left(p_status, 60)),
      'completed, failed or cancelled.');
  end if;
  update platform.workflow_states w
  set status = p_status,
    error_info = case when p_error is not null then jsonb_build_object('message', left(p_error, 10000))
      else w.error_info end
  where w.id = p_id and w.status in ('active', 'paused');
  if found then
    return true;
  elsif exists (select from platform.workflow_states w where w.id = p_id and w.status = p_status) then
    return false;
  end if;
  perform platform.refuse_workflow(p_id);
end
$$;
comment on function platform.finish_workflow(uuid, text, text) is 'End a workflow; true when it ended now.';

create or replace function platform.end_overdue_workflow(p_id uuid) returns boolean
language sql volatile as $$
-- An active workflow whose next step did not come in time becomes `timeout`; null when it is not so (any
-- more). Locks the row.
  update platform.workflow_states w
  set status = 'timeout',
    error_info = jsonb_build_object('message',
      format('no step after %L until %s', w.current_step, w.timeout_at))
  where w.id = p_id and w.status = 'active' and w.timeout_at <= clock_timestamp()
  returning true;
$$;
comment on function platform.end_overdue_workflow(uuid) is
  'An active workflow past its time becomes timeout.';

create or replace function platform.mark_timed_out_workflows(p_limit integer default 1000) returns integer
language plpgsql as $$
-- End up to p_limit (1..100000; null: all) active workflows whose next step did not come in time, longest
-- overdue first; rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with overdue as materialized (
    select w.id from platform.workflow_states w
    where w.status = 'active' and w.timeout_at <= v_now
    order by w.timeout_at
    limit p_limit
    for update skip locked
  )
  select count(platform.end_overdue_workflow(o.id)) into v_count from overdue o;
  return v_count;
end
$$;
comment on function platform.mark_timed_out_workflows(integer) is
  'End a batch of workflows that ran past their time; returns how many.';

-- Workflows of several steps (SPEC C7, M2).
--
-- A workflow is timed out when mark_timed_out_workflows() says so, and not before: a step that comes late
-- but earlier than that is proof of life. Rows that have finished never change again.

create or replace function platform.start_workflow(
  p_workflow_type text, p_step text, p_timeout interval default '30 minutes', p_data jsonb default '{}',
  p_conversation_key text default null, p_correlation_id text default null
) returns uuid
language plpgsql as $$
-- Start a workflow at its first step; the next step must come within p_timeout (1 second to 366 days).
-- Returns its id. Raises PH001.
declare
  v_id uuid;
begin
  perform platform.check_text('workflow_type', p_workflow_type, 100);
  perform platform.check_text('step', p_step, 100);
  perform platform.check_span('timeout', p_timeout, interval '1 second', interval '366 days');
  perform platform.check_object('data', p_data);
  if p_conversation_key is not null then
    perform platform.check_text('conversation_key', p_conversation_key, 500);
  end if;
  insert into platform.workflow_states (workflow_type, step, data, conversation_key, correlation_id, timeout_at)
  values (p_workflow_type, p_step, p_data, p_conversation_key, p_correlation_id, clock_timestamp() + p_timeout)
  returning id into v_id;
  return v_id;
end
$$;
comment on function platform.start_workflow(text, text, interval, jsonb, text, text) is 'Start a workflow; returns its id.';

create or replace function platform.refuse_workflow(p_id uuid) returns void
language plpgsql stable as $$
-- Raise PH004 or PH005: why a workflow could not be changed.
declare
  v_status text := (select w.status from platform.workflow_states w where w.id = p_id);
begin
  if v_status is null then
    raise exception using errcode = 'PH004', column = 'id', message = format('id: there is no workflow %s', p_id);
  end if;
  raise exception using errcode = 'PH005', column = 'id', message = format('id: the workflow is %s', v_status);
end
$$;
comment on function platform.refuse_workflow(uuid) is 'Raise why a workflow could not be changed.';

create or replace function platform.advance_workflow(p_id uuid, p_step text, p_data jsonb default '{}', p_timeout interval default '30 minutes') returns integer
language plpgsql as $$
-- Go on to the next step: the keys of p_data are put into its data, the step that ends into its history (the
-- last 50), and the timeout starts anew. Returns the step's number. Locks the row.
-- Raises PH001, PH004 (no such workflow), PH005 (it has finished).
declare
  v_now constant timestamptz := clock_timestamp();
  v_number integer;
begin
  perform platform.check_text('step', p_step, 100);
  perform platform.check_object('data', p_data);
  perform platform.check_span('timeout', p_timeout, interval '1 second', interval '366 days');
  update platform.workflow_states w
  set history = platform.append_entry(w.history, jsonb_build_object('step', w.step, 'ended_at', v_now), 50),
      step = p_step, step_number = w.step_number + 1, data = w.data || p_data, timeout_at = v_now + p_timeout
  where w.id = p_id and w.status = 'running'
  returning w.step_number into v_number;
  if not found then
    perform platform.refuse_workflow(p_id);
  end if;
  return v_number;
end
$$;
comment on function platform.advance_workflow(uuid, text, jsonb, interval) is 'Go on to the next step of a workflow; returns its number.';

create or replace function platform.finish_workflow(p_id uuid, p_status text default 'completed', p_error text default null) returns boolean
language plpgsql as $$
-- End a running workflow as completed, failed or cancelled. True when it ended now, false when it had ended
-- so before. Locks the row. Raises PH001, PH004 (no such workflow), PH005 (it ended in another way).
begin
  if p_status is null or p_status not in ('completed', 'failed', 'cancelled') then
    perform packhorse.refuse_argument('status', format('%L is no end of a workflow', left(p_status, 60)), 'completed, failed or cancelled.');
  end if;
  update platform.workflow_states w set status = p_status, error = left(p_error, 10000), finished_at = clock_timestamp()
  where w.id = p_id and w.status = 'running';
  if found then
    return true;
  elsif exists (select from platform.workflow_states w where w.id = p_id and w.status = p_status) then
    return false;
  end if;
  perform platform.refuse_workflow(p_id);
end
$$;
comment on function platform.finish_workflow(uuid, text, text) is 'End a workflow; true when it ended now.';

create or replace function platform.mark_timed_out_workflows(p_limit integer default 1000) returns integer
language plpgsql as $$
-- End up to p_limit (1..100000) running workflows whose next step did not come in time, longest overdue
-- first; rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with overdue as materialized (
    select w.id from platform.workflow_states w
    where w.status = 'running' and w.timeout_at <= v_now
    order by w.timeout_at
    limit p_limit
    for update skip locked
  )
  update platform.workflow_states w
  set status = 'timed_out', finished_at = v_now, error = format('no step after %L until %s', w.step, w.timeout_at)
  from overdue o where w.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.mark_timed_out_workflows(integer) is 'End a batch of workflows that ran past their timeout; returns how many.';

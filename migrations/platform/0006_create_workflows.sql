-- Workflows of several steps, each with a time by which the next step must come (SPEC C7, M2).
--
-- A workflow is timed out when mark_timed_out_workflows() says so, and not before: a step that comes late
-- but earlier than that is proof of life. Rows that have finished never change again.
-- Lock and duration: new objects only, milliseconds.

create table platform.workflow_states (
  id               uuid         not null default gen_random_uuid(),
  workflow_type    text         not null,
  status           text         not null default 'running',
  step             text         not null,
  step_number      integer      not null default 1,
  data             packhorse.message_json not null default '{}',
  history          jsonb        not null default '[]',
  conversation_key packhorse.message_key,
  correlation_id   text,
  error            text,
  timeout_at       timestamptz  not null,
  created_at       timestamptz  not null default clock_timestamp(),
  updated_at       timestamptz  not null default clock_timestamp(),
  finished_at      timestamptz,
  constraint workflow_states_pkey primary key (id),
  constraint workflow_states_type_length check (length(workflow_type) between 1 and 100),
  constraint workflow_states_step_length check (length(step) between 1 and 100),
  constraint workflow_states_status_known check (status in ('running', 'completed', 'failed', 'cancelled', 'timed_out')),
  constraint workflow_states_finished_when_over check ((finished_at is null) = (status = 'running')),
  constraint workflow_states_history_is_array check (jsonb_typeof(history) = 'array')
) with (fillfactor = 70);
create index workflow_states_timeout_idx on platform.workflow_states (timeout_at) where status = 'running';
create index workflow_states_finished_idx on platform.workflow_states (finished_at) where finished_at is not null;
create index workflow_states_conversation_idx on platform.workflow_states (conversation_key) where conversation_key is not null;
comment on table platform.workflow_states is 'Workflows of several steps; one that runs past its timeout is found and marked.';

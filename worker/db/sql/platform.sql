-- name: platform_open_session
-- The id of the active session of a phone with an agent, made when there is none.
select platform.get_or_create_agent_session(p_user_phone => %(user_phone)s::text,
  p_agent_type => %(agent_type)s::text, p_user_id => %(user_id)s::uuid,
  p_agent_id => %(agent_id)s::uuid) as id;

-- name: platform_session
-- One session.
select s.id, s.user_phone::text as user_phone, s.agent_type, s.context::text as context, s.status,
  s.conversation_history::text as conversation_history, s.created_at, s.updated_at, s.expires_at
from platform.agent_chat_sessions s where s.id = %(id)s::uuid;

-- name: platform_add_message
-- Append a message to a session; false when it is over or not there.
select platform.add_agent_message(p_session_id => %(session_id)s::uuid, p_role => %(role)s::text,
  p_content => %(content)s::text, p_metadata => %(metadata)s::text::jsonb) as done;

-- name: platform_update_context
-- Put another context in the place of a session's; no row when it is over or not there.
update platform.agent_chat_sessions s set context = %(context)s::text::jsonb
where s.id = %(session_id)s::uuid and s.status in ('active', 'paused')
  and (s.expires_at is null or s.expires_at > clock_timestamp())
returning true as done;

-- name: platform_end_session
-- End a session that is not over; no row when it is, or is not there.
update platform.agent_chat_sessions s set status = %(status)s::text
where s.id = %(session_id)s::uuid and s.status in ('active', 'paused')
returning true as done;

-- name: platform_conversation
-- The last messages of a session and its context, as JSON; null when there is none.
select platform.get_agent_conversation(p_session_id => %(session_id)s::uuid,
  p_limit => %(limit)s::integer)::text as conversation;

-- name: platform_memory
-- What an agent remembers of a person.
select m.id, m.session_id, m.user_phone::text as user_phone, m.agent_type,
  m.conversation_history::text as conversation_history,
  m.context::text as context, m.last_interaction
from platform.get_or_create_conversation_memory(p_user_phone => %(user_phone)s::text,
  p_agent_type => %(agent_type)s::text, p_session_id => %(session_id)s::uuid) m;

-- name: platform_update_memory
-- Remember one more message, and put keys into the context; false when there is no such memory.
select platform.update_conversation_memory(p_memory_id => %(memory_id)s::uuid,
  p_message => %(message)s::text::jsonb, p_context => %(context)s::text::jsonb) as done;

-- name: platform_start_workflow
-- Start a workflow at its first step.
select platform.start_workflow(p_workflow_type => %(workflow_type)s::text, p_step => %(step)s::text,
  p_timeout => %(timeout_seconds)s::double precision * interval '1 second', p_data => %(data)s::text::jsonb,
  p_conversation_key => %(conversation_key)s::text, p_correlation_id => %(correlation_id)s::text,
  p_user_phone => %(user_phone)s::text, p_agent_type => %(agent_type)s::text) as id;

-- name: platform_advance_workflow
-- The next step of a workflow; its number.
select platform.advance_workflow(p_id => %(workflow_id)s::uuid, p_step => %(step)s::text,
  p_data => %(data)s::text::jsonb,
  p_timeout => %(timeout_seconds)s::double precision * interval '1 second') as number;

-- name: platform_finish_workflow
-- End a workflow; true when it ended now.
select platform.finish_workflow(p_id => %(workflow_id)s::uuid, p_status => %(status)s::text,
  p_error => %(error)s::text) as done;

-- name: platform_is_new_message
-- True for the first caller with this id.
select packhorse.is_new_message(p_external_id => %(message_id)s::text,
  p_correlation_id => %(correlation_id)s::text,
  p_reclaim_after => %(window_seconds)s::double precision * interval '1 second') as done;

-- name: platform_mark_processed
-- The message with this id was processed.
select packhorse.mark_message_processed(p_external_id => %(message_id)s::text,
  p_correlation_id => %(correlation_id)s::text, p_processing_ms => %(processing_ms)s::integer) as done;

-- name: platform_take_turn
-- One more turn of a key, when its bucket has one: no row, else the row says how many seconds it is early.
-- value: when the bucket will be full, in microseconds since 1970; each turn moves it on by interval_us, and
-- it may be ahead of now by burst turns at most.
with now as (
  select floor(extract(epoch from clock_timestamp()) * 1000000.0)::bigint as us
), taken as (
  insert into packhorse.rate_limiters as l (limiter_key, value, expires_at)
  select %(key)s::text, n.us + %(interval_us)s::bigint,
    clock_timestamp() + %(keep_seconds)s::double precision * interval '1 second' from now n
  on conflict (limiter_key) do update
  set value = greatest(l.value, (select n.us from now n)) + %(interval_us)s::bigint,
    expires_at = excluded.expires_at
  where greatest(l.value, (select n.us from now n)) + %(interval_us)s::bigint <= (select n.us from now n)
    + %(burst)s::bigint * %(interval_us)s::bigint
  returning 1
)
select greatest(coalesce((select l.value from packhorse.rate_limiters l where l.limiter_key = %(key)s::text),
  n.us + %(burst)s::bigint * %(interval_us)s::bigint)
  + %(interval_us)s::bigint - %(burst)s::bigint * %(interval_us)s::bigint - n.us, 1000)::double precision
  / 1000000::double precision as seconds
from now n where not exists (select from taken);

-- name: platform_record_webhook
-- What came in or went out at a webhook.
insert into platform.webhook_events (event_category, event_type, webhook_id, source, destination, payload,
  headers, status, error_code, error_message, delivered_at, metadata, correlation_id)
values (%(event_category)s::text, %(event_type)s::text, %(webhook_id)s::text, %(source)s::text,
  %(destination)s::text, %(payload)s::text::jsonb, %(headers)s::text::jsonb, %(status)s::text,
  %(error_code)s::text, %(error_message)s::text,
  case when %(status)s::text = 'delivered' then clock_timestamp() end, %(metadata)s::text::jsonb,
    %(correlation_id)s::text)
returning id;

-- name: platform_export_person
-- What is kept about a person, as JSON.
select platform.export_person_data(p_user_id => %(user_id)s::uuid, p_phone => %(phone)s::text)::text as data;

-- name: platform_erase_person
-- Erase a person; a row per table and what was done there.
select e.table_name, e.action, e.rows
from platform.erase_person_data(p_user_id => %(user_id)s::uuid, p_phone => %(phone)s::text,
  p_reason => %(reason)s::text) e;

-- The functions that callers outside know, in a schema where PostgREST and old code find them (SPEC N2): each
-- calls the one of its name.
--
-- They run with the rights of the caller, who needs those of a producer or worker for what they call.

create or replace function platform.enqueue_message(p_queue text, p_message_type text,
  p_payload jsonb default '{}', p_options jsonb default '{}', p_priority integer default 5,
  p_delay interval default null, p_run_at timestamptz default null, p_max_attempts integer default null,
  p_conversation_key text default null, p_dedup_key text default null,
  p_dedup_window interval default '5 minutes', p_correlation_id text default null,
  p_trace_context text default null, p_expires_at timestamptz default null,
  p_concurrency_key text default null, p_pending_key text default null, p_when_pending text default null,
  p_debounce interval default null, p_max_wait interval default null, p_fairness_key text default null,
  out message_id bigint, out duplicate boolean, out merged boolean)
language sql volatile as $$
  select *
  from packhorse.enqueue_message(p_queue => p_queue, p_message_type => p_message_type, p_payload => p_payload,
    p_options => p_options, p_priority => p_priority, p_delay => p_delay, p_run_at => p_run_at,
    p_max_attempts => p_max_attempts, p_conversation_key => p_conversation_key, p_dedup_key => p_dedup_key,
    p_dedup_window => p_dedup_window, p_correlation_id => p_correlation_id,
    p_trace_context => p_trace_context, p_expires_at => p_expires_at, p_concurrency_key => p_concurrency_key,
    p_pending_key => p_pending_key, p_when_pending => p_when_pending, p_debounce => p_debounce,
    p_max_wait => p_max_wait, p_fairness_key => p_fairness_key);
$$;
comment on function platform.enqueue_message(text, text, jsonb, jsonb, integer, interval, timestamptz,
  integer, text, text, interval, text, text, timestamptz, text, text, text, interval, interval, text)
  is 'packhorse.enqueue_message, for callers that look in this schema.';

create or replace function platform.enqueue_messages(p_messages jsonb)
returns table (message_id bigint, duplicate boolean)
language sql volatile as $$
  select * from packhorse.enqueue_messages(p_messages => p_messages);
$$;
comment on function platform.enqueue_messages(jsonb) is
  'packhorse.enqueue_messages, for callers that look in this schema.';

create or replace function platform.enqueue_payloads(p_queue text, p_message_type text, p_payloads jsonb,
  p_options jsonb default '{}', p_priority integer default 5, p_delay interval default null,
  p_run_at timestamptz default null, p_max_attempts integer default null,
  p_conversation_key text default null, p_correlation_id text default null,
  p_trace_context text default null, p_expires_at timestamptz default null,
  p_concurrency_key text default null, p_fairness_key text default null, out message_count bigint)
language sql volatile as $$
  select *
  from packhorse.enqueue_payloads(p_queue => p_queue, p_message_type => p_message_type,
    p_payloads => p_payloads, p_options => p_options, p_priority => p_priority, p_delay => p_delay,
    p_run_at => p_run_at, p_max_attempts => p_max_attempts, p_conversation_key => p_conversation_key,
    p_correlation_id => p_correlation_id, p_trace_context => p_trace_context,
    p_expires_at => p_expires_at, p_concurrency_key => p_concurrency_key, p_fairness_key => p_fairness_key);
$$;
comment on function platform.enqueue_payloads(text, text, jsonb, jsonb, integer, interval, timestamptz,
  integer, text, text, text, timestamptz, text, text)
  is 'packhorse.enqueue_payloads, for callers that look in this schema.';

create or replace function platform.cancel_own_message(p_id bigint, p_reason text default null) returns text
language sql volatile as $$
  select packhorse.cancel_own_message(p_id => p_id, p_reason => p_reason);
$$;
comment on function platform.cancel_own_message(bigint, text) is
  'packhorse.cancel_own_message, for callers that look in this schema.';

create or replace function platform.is_new_message(p_external_id text, p_correlation_id text default null,
  p_reclaim_after interval default '5 minutes') returns boolean
language sql volatile as $$
  select packhorse.is_new_message(p_external_id => p_external_id, p_correlation_id => p_correlation_id,
    p_reclaim_after => p_reclaim_after);
$$;
comment on function platform.is_new_message(text, text, interval) is
  'packhorse.is_new_message, for callers that look in this schema.';

create or replace function platform.mark_message_processed(p_external_id text,
  p_correlation_id text default null, p_processing_ms integer default null) returns void
language sql volatile as $$
  select packhorse.mark_message_processed(p_external_id => p_external_id,
    p_correlation_id => p_correlation_id, p_processing_ms => p_processing_ms);
$$;
comment on function platform.mark_message_processed(text, text, integer) is
  'packhorse.mark_message_processed, for callers that look in this schema.';

create or replace function platform.acquire_conversation_lock(p_conversation_key text, p_holder text,
  p_lease interval default '5 minutes') returns boolean
language sql volatile as $$
  select packhorse.acquire_conversation_lock(p_conversation_key => p_conversation_key, p_holder => p_holder,
    p_lease => p_lease);
$$;
comment on function platform.acquire_conversation_lock(text, text, interval) is
  'packhorse.acquire_conversation_lock, for callers that look in this schema.';

create or replace function platform.release_conversation_lock(p_conversation_key text, p_holder text)
returns boolean
language sql volatile as $$
  select packhorse.release_conversation_lock(p_conversation_key => p_conversation_key, p_holder => p_holder);
$$;
comment on function platform.release_conversation_lock(text, text) is
  'packhorse.release_conversation_lock, for callers that look in this schema.';

create or replace function platform.get_message_result(p_key text) returns jsonb
language sql stable as $$
  select packhorse.get_message_result(p_key => p_key);
$$;
comment on function platform.get_message_result(text) is
  'packhorse.get_message_result, for callers that look in this schema.';

create or replace function platform.get_next_queue_message(p_queue text,
  p_holder uuid default gen_random_uuid(), p_lease interval default '5 minutes')
  returns setof packhorse.claimed_message
language sql volatile as $$
  select *
  from packhorse.get_next_queue_message(p_queue => p_queue, p_holder => p_holder, p_lease => p_lease);
$$;
comment on function platform.get_next_queue_message(text, uuid, interval) is
  'packhorse.get_next_queue_message, for callers that look in this schema.';

create or replace function platform.acquire_message_lock(p_id bigint, p_holder uuid,
  p_lease interval default '5 minutes') returns bigint
language sql volatile as $$
  select packhorse.acquire_message_lock(p_id => p_id, p_holder => p_holder, p_lease => p_lease);
$$;
comment on function platform.acquire_message_lock(bigint, uuid, interval) is
  'packhorse.acquire_message_lock, for callers that look in this schema.';

create or replace function platform.release_message_lock(p_id bigint, p_token bigint) returns boolean
language sql volatile as $$
  select packhorse.release_message_lock(p_id => p_id, p_token => p_token);
$$;
comment on function platform.release_message_lock(bigint, bigint) is
  'packhorse.release_message_lock, for callers that look in this schema.';

create or replace function platform.complete_messages(p_ids bigint[], p_tokens bigint[]) returns bigint[]
language sql volatile as $$
  select packhorse.complete_messages(p_ids => p_ids, p_tokens => p_tokens);
$$;
comment on function platform.complete_messages(bigint[], bigint[]) is
  'packhorse.complete_messages, for callers that look in this schema.';

create or replace function platform.fail_message(p_id bigint, p_token bigint, p_error_class text,
  p_error_message text, p_traceback text default null, p_frame text default null,
  p_max_attempts integer default null, p_delay interval default null,
  p_backoff_initial interval default null, p_backoff_max interval default null, p_details jsonb default null,
  p_options jsonb default null)
returns text
language sql volatile as $$
  select packhorse.fail_message(p_id => p_id, p_token => p_token, p_error_class => p_error_class,
    p_error_message => p_error_message, p_traceback => p_traceback, p_frame => p_frame,
    p_max_attempts => p_max_attempts, p_delay => p_delay, p_backoff_initial => p_backoff_initial,
    p_backoff_max => p_backoff_max, p_details => p_details, p_options => p_options);
$$;
comment on function platform.fail_message(bigint, bigint, text, text, text, text, integer, interval, interval,
  interval, jsonb, jsonb) is 'packhorse.fail_message, for callers that look in this schema.';

create or replace function platform.schedule_message_retry(p_id bigint, p_token bigint,
  p_delay interval default null, p_error_class text default null, p_error_message text default null,
  p_backoff_initial interval default null, p_backoff_max interval default null,
  p_backoff_multiplier double precision default null, p_details jsonb default null,
  p_traceback text default null, p_options jsonb default null) returns timestamptz
language sql volatile as $$
  select packhorse.schedule_message_retry(p_id => p_id, p_token => p_token, p_delay => p_delay,
    p_error_class => p_error_class, p_error_message => p_error_message,
    p_backoff_initial => p_backoff_initial, p_backoff_max => p_backoff_max,
    p_backoff_multiplier => p_backoff_multiplier, p_details => p_details, p_traceback => p_traceback,
    p_options => p_options);
$$;
comment on function platform.schedule_message_retry(bigint, bigint, interval, text, text, interval, interval,
  double precision, jsonb, text, jsonb)
  is 'packhorse.schedule_message_retry, for callers that look in this schema.';

create or replace function platform.extend_message_lease(p_id bigint, p_token bigint,
  p_lease interval default '5 minutes') returns timestamptz
language sql volatile as $$
  select packhorse.extend_message_lease(p_id => p_id, p_token => p_token, p_lease => p_lease);
$$;
comment on function platform.extend_message_lease(bigint, bigint, interval) is
  'packhorse.extend_message_lease, for callers that look in this schema.';

create or replace function platform.cleanup_old_messages(p_limit integer default 5000) returns integer
language sql volatile as $$
  select packhorse.cleanup_old_messages(p_limit => p_limit);
$$;
comment on function platform.cleanup_old_messages(integer) is
  'packhorse.cleanup_old_messages, for callers that look in this schema.';

create or replace function platform.cleanup_stale_message_locks(p_limit integer default 500) returns integer
language sql volatile as $$
  select packhorse.cleanup_stale_message_locks(p_limit => p_limit);
$$;
comment on function platform.cleanup_stale_message_locks(integer) is
  'packhorse.cleanup_stale_message_locks, for callers that look in this schema.';

create or replace function platform.cleanup_stuck_webhook_conversations(
  p_after interval default '5 minutes', p_limit integer default 5000) returns integer
language sql volatile as $$
  select packhorse.cleanup_stuck_webhook_conversations(p_after => p_after, p_limit => p_limit);
$$;
comment on function platform.cleanup_stuck_webhook_conversations(interval, integer) is
  'packhorse.cleanup_stuck_webhook_conversations, for callers that look in this schema.';

create or replace function platform.public_api_rights() returns setof text
language sql stable as $$
-- Statements that make the rights on these functions what is written here; none when they are. service_role,
-- the host's own servers, keeps what the host gave it.
  select d.* from (
    select n.oid as schema,
      (select array_agg(o.name) from packhorse.packhorse_migrations m
        cross join lateral unnest(m.objects) as o (name)
      where m.name like 'public-api/%') as names
    from pg_namespace n where n.nspname = (parse_ident('platform.x'))[1]) h
  cross join lateral packhorse.differing_rights(h.schema, h.names, jsonb_build_array(
    jsonb_build_object('role', 'packhorse_worker', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'), 'names', jsonb_build_array('public_api_rights')),
    jsonb_build_object('role', 'packhorse_producer', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('enqueue_message', 'enqueue_messages', 'enqueue_payloads',
        'cancel_own_message', 'is_new_message', 'mark_message_processed', 'acquire_conversation_lock',
        'release_conversation_lock', 'get_message_result', 'message_uuid', 'message_id_of'))),
    array['service_role']) d;
$$;
comment on function platform.public_api_rights() is
  'Statements that make rights on the public API what SECURITY.md lists; none when they are.';

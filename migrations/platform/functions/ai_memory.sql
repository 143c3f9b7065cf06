-- What an AI agent remembers of a conversation (SPEC C7, M3). After 30 quiet minutes the next touch starts a new session in the same row.

create or replace function platform.get_or_create_ai_memory(
  p_conversation_key text, p_agent_type text default 'default',
  out session_id uuid, out is_new_session boolean, out messages jsonb, out context jsonb, out message_count bigint
)
language plpgsql as $$
-- What is remembered of a conversation, and a new session when there was none or the last touch was 30
-- minutes ago. Counts as a touch. One statement: callers at the same instant get the same session, and one
-- of them is_new_session = true. message_count counts over all sessions. Locks the row. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_new constant uuid := gen_random_uuid();
begin
  perform platform.check_text('conversation_key', p_conversation_key, 500);
  perform platform.check_text('agent_type', p_agent_type, 100);
  insert into platform.ai_conversation_memory as m (conversation_key, agent_type, session_id)
  values (p_conversation_key, p_agent_type, v_new)
  on conflict on constraint ai_conversation_memory_pkey do update
  set session_id = case when m.last_activity_at <= v_now - interval '30 minutes' then v_new else m.session_id end,
      messages = case when m.last_activity_at <= v_now - interval '30 minutes' then '[]' else m.messages end,
      context = case when m.last_activity_at <= v_now - interval '30 minutes' then '{}' else m.context end,
      session_count = m.session_count + case when m.last_activity_at <= v_now - interval '30 minutes' then 1 else 0 end,
      session_started_at = case when m.last_activity_at <= v_now - interval '30 minutes' then v_now else m.session_started_at end,
      last_activity_at = greatest(m.last_activity_at, v_now)
  returning m.session_id, m.session_id = v_new, m.messages, m.context, m.message_count
  into session_id, is_new_session, messages, context, message_count;
end
$$;
comment on function platform.get_or_create_ai_memory(text, text) is 'What an agent remembers of a conversation; a new session after 30 quiet minutes.';

create or replace function platform.add_ai_memory_message(
  p_conversation_key text, p_role text, p_content text, p_agent_type text default 'default', p_metadata jsonb default '{}'
) returns bigint
language plpgsql as $$
-- Remember one more message; of more than 20 the oldest is forgotten. Returns how many messages the
-- conversation has had. Starts a session where get_or_create_ai_memory would. Locks the row. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count bigint;
begin
  perform platform.check_role(p_role);
  perform platform.check_text('content', p_content, 32768);
  perform platform.check_object('metadata', p_metadata);
  perform platform.get_or_create_ai_memory(p_conversation_key, p_agent_type);
  update platform.ai_conversation_memory m
  set messages = platform.append_entry(m.messages, jsonb_build_object(
        'role', p_role, 'content', p_content, 'metadata', p_metadata, 'sent_at', v_now), 20),
      message_count = m.message_count + 1
  where m.conversation_key = p_conversation_key and m.agent_type = p_agent_type
  returning m.message_count into v_count;
  return v_count;
end
$$;
comment on function platform.add_ai_memory_message(text, text, text, text, jsonb) is 'Remember one more message of a conversation; the last 20 stay.';

create or replace function platform.merge_ai_memory_context(p_conversation_key text, p_context jsonb, p_agent_type text default 'default') returns jsonb
language plpgsql as $$
-- Put the keys of p_context into what is remembered (a null value removes its key). Returns the whole context.
-- Starts a session where get_or_create_ai_memory would. Locks the row. Raises PH001.
declare
  v_context jsonb;
begin
  perform platform.check_object('context', p_context);
  perform platform.get_or_create_ai_memory(p_conversation_key, p_agent_type);
  update platform.ai_conversation_memory m set context = jsonb_strip_nulls(m.context || p_context)
  where m.conversation_key = p_conversation_key and m.agent_type = p_agent_type
  returning m.context into v_context;
  return v_context;
end
$$;
comment on function platform.merge_ai_memory_context(text, jsonb, text) is 'Put keys into the context of a conversation; returns the whole.';

create or replace function platform.cleanup_inactive_ai_memory(p_older_than interval default '7 days', p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) memories that nobody has touched for p_older_than (30 minutes, so that no
-- living session is met, to ten years), oldest first; rows that somebody works on are left for the next call.
-- Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '30 minutes', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with quiet as materialized (
    select m.conversation_key, m.agent_type from platform.ai_conversation_memory m
    where m.last_activity_at <= v_before
    order by m.last_activity_at
    limit p_limit
    for update skip locked
  )
  delete from platform.ai_conversation_memory m using quiet q
  where m.conversation_key = q.conversation_key and m.agent_type = q.agent_type;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_inactive_ai_memory(interval, integer) is 'Delete a batch of memories nobody has touched for 7 days; returns how many.';

-- What an AI agent remembers of a conversation: the last 20 messages and a context (SPEC C7, M3).
--
-- One row per conversation and agent, so that get-or-create is one statement. After 30 quiet minutes the
-- next touch starts a new session in the same row: messages and context are empty again.
-- Lock and duration: new objects only, milliseconds.

create table ai_conversation_memory (
  conversation_key   message_key  not null,
  agent_type         text         not null,
  session_id         uuid         not null default gen_random_uuid(),
  messages           jsonb        not null default '[]',
  context            message_json not null default '{}',
  message_count      bigint       not null default 0,
  session_count      bigint       not null default 1,
  session_started_at timestamptz  not null default clock_timestamp(),
  last_activity_at   timestamptz  not null default clock_timestamp(),
  created_at         timestamptz  not null default clock_timestamp(),
  updated_at         timestamptz  not null default clock_timestamp(),
  constraint ai_conversation_memory_pkey primary key (conversation_key, agent_type),
  constraint ai_conversation_memory_agent_type_length check (length(agent_type) between 1 and 100),
  constraint ai_conversation_memory_twenty_messages check (jsonb_typeof(messages) = 'array' and jsonb_array_length(messages) <= 20)
) with (fillfactor = 70);
create index ai_conversation_memory_activity_idx on ai_conversation_memory (last_activity_at);
create trigger ai_conversation_memory_touch before update on ai_conversation_memory for each row execute function touch_updated_at();
comment on table ai_conversation_memory is 'The last 20 messages of a conversation with an agent, forgotten after 30 quiet minutes.';

create function get_or_create_ai_memory(
  p_conversation_key text, p_agent_type text default 'default',
  out session_id uuid, out is_new_session boolean, out messages jsonb, out context jsonb, out message_count bigint
)
language plpgsql set search_path from current as $$
-- What is remembered of a conversation, and a new session when there was none or the last touch was 30
-- minutes ago. Counts as a touch. One statement: callers at the same instant get the same session, and one
-- of them is_new_session = true. message_count counts over all sessions. Locks the row. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_new constant uuid := gen_random_uuid();
begin
  perform check_text('conversation_key', p_conversation_key, 500);
  perform check_text('agent_type', p_agent_type, 100);
  insert into ai_conversation_memory as m (conversation_key, agent_type, session_id)
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
comment on function get_or_create_ai_memory(text, text) is 'What an agent remembers of a conversation; a new session after 30 quiet minutes.';

create function add_ai_memory_message(
  p_conversation_key text, p_role text, p_content text, p_agent_type text default 'default', p_metadata jsonb default '{}'
) returns bigint
language plpgsql set search_path from current as $$
-- Remember one more message; of more than 20 the oldest is forgotten. Returns how many messages the
-- conversation has had. Starts a session where get_or_create_ai_memory would. Locks the row. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count bigint;
begin
  perform check_role(p_role);
  perform check_text('content', p_content, 32768);
  perform check_object('metadata', p_metadata);
  perform get_or_create_ai_memory(p_conversation_key, p_agent_type);
  update ai_conversation_memory m
  set messages = append_entry(m.messages, jsonb_build_object(
        'role', p_role, 'content', p_content, 'metadata', p_metadata, 'sent_at', v_now), 20),
      message_count = m.message_count + 1
  where m.conversation_key = p_conversation_key and m.agent_type = p_agent_type
  returning m.message_count into v_count;
  return v_count;
end
$$;
comment on function add_ai_memory_message(text, text, text, text, jsonb) is 'Remember one more message of a conversation; the last 20 stay.';

create function merge_ai_memory_context(p_conversation_key text, p_context jsonb, p_agent_type text default 'default') returns jsonb
language plpgsql set search_path from current as $$
-- Put the keys of p_context into what is remembered (a null value removes its key). Returns the whole context.
-- Starts a session where get_or_create_ai_memory would. Locks the row. Raises PH001.
declare
  v_context jsonb;
begin
  perform check_object('context', p_context);
  perform get_or_create_ai_memory(p_conversation_key, p_agent_type);
  update ai_conversation_memory m set context = jsonb_strip_nulls(m.context || p_context)
  where m.conversation_key = p_conversation_key and m.agent_type = p_agent_type
  returning m.context into v_context;
  return v_context;
end
$$;
comment on function merge_ai_memory_context(text, jsonb, text) is 'Put keys into the context of a conversation; returns the whole.';

create function cleanup_inactive_ai_memory(p_older_than interval default '7 days', p_limit integer default 5000) returns integer
language plpgsql set search_path from current as $$
-- Delete up to p_limit (1..100000) memories that nobody has touched for p_older_than (30 minutes, so that no
-- living session is met, to ten years), oldest first; rows that somebody works on are left for the next call.
-- Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform check_span('older_than', p_older_than, interval '30 minutes', interval '3660 days');
  perform check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with quiet as materialized (
    select m.conversation_key, m.agent_type from ai_conversation_memory m
    where m.last_activity_at <= v_before
    order by m.last_activity_at
    limit p_limit
    for update skip locked
  )
  delete from ai_conversation_memory m using quiet q
  where m.conversation_key = q.conversation_key and m.agent_type = q.agent_type;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function cleanup_inactive_ai_memory(interval, integer) is 'Delete a batch of memories nobody has touched for 7 days; returns how many.';

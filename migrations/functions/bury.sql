-- Bury: a message becomes a dead letter (SPEC Q4, P5).

create or replace function packhorse.move_to_dead_letters(
  p_ids bigint[], p_tokens bigint[], p_reason text, p_error_class text, p_error_message text,
  p_traceback text, p_frame text, p_details jsonb default null
) returns bigint[]
language plpgsql as $$
-- The only way into dead_letters, whatever the cause. With tokens: running messages whose lease still
-- holds. Without (null): messages that no process runs. Promotes the conversations unless the queue says
-- on_dead = 'block'. Returns the ids moved.
declare
  v_ids bigint[];
  v_keys text[];
  v_code text;
  v_details jsonb;
begin
  perform set_config('packhorse_queue.promotes', 'on', true);
  if p_details is not null then
    select f.error_code, f.error_details into v_code, v_details from packhorse.failure_details(p_details) f;
  end if;
  with buried as (
    delete from packhorse.message_queue m
    where m.id = any (p_ids)
      and (case when p_tokens is null then m.state <> 'running' or m.completion_refused_at is not null
        else m.lease_token = any (p_tokens) and m.state = 'running' end)
    returning m.*
  ), moved as (
    insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason,
      error_class, error_message, error_code, error_details, traceback, fingerprint, attempt, max_attempts,
      crashes, conversation_key, concurrency_key, fairness_key, correlation_id, trace_context, history, steps,
      lease_holder, blocks_conversation, created_at)
    select b.id, b.queue, b.message_type, b.payload, b.options, b.priority, p_reason,
      packhorse.bounded_text(p_error_class, 200), packhorse.bounded_text(p_error_message, 10000), v_code,
      v_details, packhorse.bounded_text(p_traceback, 50000),
      packhorse.error_fingerprint(b.message_type, coalesce(p_error_class, p_reason), p_error_message,
        p_frame),
      b.attempt, b.max_attempts, b.crashes, b.conversation_key, b.concurrency_key, b.fairness_key,
      b.correlation_id, b.trace_context,
      packhorse.append_history(b.history, b.attempt, p_reason, p_error_class, p_error_message, b.lease_holder,
        v_code, p_traceback),
      b.steps, b.lease_holder, b.conversation_key is not null and coalesce(q.on_dead = 'block', false),
      b.created_at
    -- a row may name a queue that nobody has declared
    from buried b left join packhorse.queues q on q.name = b.queue
    returning dead_letters.id, dead_letters.conversation_key, dead_letters.blocks_conversation
  )
  select array_agg(d.id),
    array_agg(distinct d.conversation_key)
      filter (where d.conversation_key is not null and not d.blocks_conversation)
  into v_ids, v_keys from moved d;
  if v_keys is not null then
    perform packhorse.promote_conversations(v_keys);
  end if;
  perform set_config('packhorse_queue.promotes', 'off', true);
  return coalesce(v_ids, '{}');
end
$$;
comment on function packhorse.move_to_dead_letters(bigint[], bigint[], text, text, text, text, text, jsonb)
  is 'Used by bury, fail, rescue: the one way into dead_letters.';

create or replace function packhorse.bury_message(
  p_id bigint, p_token bigint default null, p_reason text default 'buried',
  p_error_class text default null, p_error_message text default null, p_traceback text default null,
  p_frame text default null, p_details jsonb default null
) returns boolean
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Give the message up: it becomes a dead letter. With a token: a running message of that lease; without:
-- one that does not run. False when it was not there or the lease was lost. p_reason is one of a closed
-- set (say the rest in p_error_message), else PH001. p_details: see failure_details.
begin
  if p_reason is null or p_reason
    not in ('failed', 'rejected', 'quarantined', 'undecodable', 'unknown_type', 'buried') then
    perform packhorse.refuse_argument('reason', format('%L is not a reason', left(p_reason, 60)),
      'failed, rejected, quarantined, undecodable, unknown_type or buried; put words of your own into p_error_message.');
  end if;
  return cardinality(packhorse.move_to_dead_letters(array[p_id],
    case when p_token is null then null else array[p_token] end, p_reason, p_error_class, p_error_message,
      p_traceback, p_frame, p_details)) = 1;
end
$$;
comment on function packhorse.bury_message(bigint, bigint, text, text, text, text, text, jsonb) is
  'Give a message up; false when the lease was lost.';

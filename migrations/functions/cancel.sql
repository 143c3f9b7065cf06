-- Cancel and expire: messages that are not to be done (SPEC Q5).

create or replace function packhorse.archive_cancelled(p_ids bigint[], p_tokens bigint[], p_reason text)
returns table (id bigint, conversation_key text)
language sql volatile as $$
-- Delete messages and archive them as cancelled; the fence is finish_cancelled's.
  with gone as (
    delete from packhorse.message_queue m
    where m.id = any (p_ids)
      and (case when p_tokens is null then m.state <> 'running' or m.completion_refused_at is not null
        else m.lease_token = any (p_tokens) and m.state = 'running' end)
    returning m.*
  ), kept as (
    insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, reason,
      attempt, crashes, conversation_key, correlation_id, trace_context, error, history, steps, lease_holder,
      created_at, claimed_at)
    select g.id, g.queue, g.message_type, g.payload, g.options, g.priority, 'cancelled',
      packhorse.bounded_text(p_reason, 1000), g.attempt, g.crashes, g.conversation_key, g.correlation_id,
      g.trace_context, g.error, g.history, g.steps, g.lease_holder, g.created_at,
      g.claimed_at
    from gone g
  )
  select g.id, g.conversation_key::text from gone g;
$$;
comment on function packhorse.archive_cancelled(bigint[], bigint[], text) is
  'Used by finish_cancelled: delete messages and archive them as cancelled.';

create or replace function packhorse.finish_cancelled(p_ids bigint[], p_tokens bigint[], p_reason text)
returns bigint[]
language plpgsql as $$
-- The only way to `cancelled`: with tokens for running messages, without for those that do not run. A
-- missing archive partition is made and the statement repeated. Returns the ids.
declare
  v_ids bigint[];
  v_keys text[];
begin
  perform set_config('packhorse_queue.promotes', 'on', true);
  begin
    select array_agg(a.id),
      array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into v_ids, v_keys from packhorse.archive_cancelled(p_ids, p_tokens, p_reason) a;
  exception when check_violation then
    perform packhorse.ensure_message_archive_partitions();
    select array_agg(a.id),
      array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into v_ids, v_keys from packhorse.archive_cancelled(p_ids, p_tokens, p_reason) a;
  end;
  if v_keys is not null then
    perform packhorse.promote_conversations(v_keys);
  end if;
  perform set_config('packhorse_queue.promotes', 'off', true);
  return coalesce(v_ids, '{}');
end
$$;
comment on function packhorse.finish_cancelled(bigint[], bigint[], text) is
  'Used by cancel and expire: the one way to cancelled.';

create or replace function packhorse.cancel_message(
  p_id bigint, p_reason text default null, p_operator text default current_user, p_token bigint default null
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Stop and do not retry. Returns 'cancelled' (it did not run), 'requested' (it runs: the worker interrupts
-- the handler), 'gone' (nothing alive has this id). With p_token: the holder itself ends its message.
begin
  if p_token is not null then
    return case when cardinality(packhorse.finish_cancelled(array[p_id], array[p_token], p_reason)) = 1
      then 'cancelled' else 'gone' end;
  end if;
  loop
    if cardinality(packhorse.finish_cancelled(array[p_id], null, p_reason)) = 1 then
      insert into packhorse.operator_actions (action, operator, reason, message_id)
      values ('cancel', p_operator, p_reason, p_id);
      return 'cancelled';
    end if;
    update packhorse.message_queue set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
    where id = p_id and state = 'running';
    if found then
      insert into packhorse.operator_actions (action, operator, reason, message_id)
      values ('request_cancel', p_operator, p_reason, p_id);
      return 'requested';
    elsif not exists (select from packhorse.message_queue where id = p_id) then
      return 'gone';
    end if;
    -- its holder gave it back between the two statements: look again
  end loop;
end
$$;
comment on function packhorse.cancel_message(bigint, text, text, bigint) is
  'Stop a message: cancelled, requested (it runs) or gone.';

create or replace function packhorse.cancel_own_message(p_id bigint, p_reason text default null) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- For producers: cancel_message for a message that the same login has enqueued; 'gone' for any other, so that
-- nobody learns of it.
begin
  if not exists (select from packhorse.message_queue m where m.id = p_id and m.enqueued_by = session_user)
  then
    return 'gone';
  end if;
  return packhorse.cancel_message(p_id, p_reason, session_user);
end
$$;
comment on function packhorse.cancel_own_message(bigint, text) is
  'Stop a message that this login has enqueued: cancelled, requested or gone.';

create or replace function packhorse.expire_messages(p_limit integer default 1000) returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Messages past expires_at that do not run become cancelled with reason "expired"; at most p_limit. One whose
-- successor in its conversation is locked by somebody waits for that, alone.
declare
  v_ids bigint[];
  v_id bigint;
  v_count integer := 0;
begin
  perform packhorse.check_batch(p_limit);
  v_ids := array(
    select m.id from packhorse.message_queue m
    where m.expires_at <= clock_timestamp() and m.state <> 'running'
    order by m.expires_at limit p_limit for update skip locked);
  begin
    return cardinality(packhorse.finish_cancelled(v_ids, null, 'expired'));
  exception when lock_not_available then
    perform set_config('lock_timeout', '1ms', true); -- waited once for all of them
  end;
  foreach v_id in array v_ids loop
    begin
      v_count := v_count + cardinality(packhorse.finish_cancelled(array[v_id], null, 'expired'));
    exception when lock_not_available then
      null;
    end;
  end loop;
  return v_count;
end
$$;
comment on function packhorse.expire_messages(integer) is
  'Cancel messages that are not worth doing after expires_at; returns how many.';

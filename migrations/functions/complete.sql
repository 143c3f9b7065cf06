-- Complete: running messages become done (SPEC P1, P2, Q2). Every verb of an end is one UPDATE or DELETE that
-- names the state and the lease token; zero rows means "somebody else owns it".
--
-- Lock order everywhere: message rows by id, then blocked rows of their conversations. lock_timeout: a row
-- that somebody keeps locked (an open psql session) stops the verb after half a second with an error, and the
-- caller goes on with its other messages. A caller that gave up by its own clock would leave a session behind
-- that waits on, and holds what it has locked already.

create or replace function packhorse.archive_messages(
  p_ids bigint[], p_tokens bigint[], out done_ids bigint[], out keys text[]
)
language plpgsql as $$
-- running -> done, for every pair (id, token) that still holds its lease. Tokens are unique per claimed
-- message, so two plain ANY conditions are an exact fence. Queues with keep_done = 0 keep nothing. keys: the
-- conversations of these messages.
begin
  with done as (
    delete from packhorse.message_queue m
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning m.id, m.queue, m.message_type, m.payload, m.options, m.priority, m.attempt, m.crashes,
      m.conversation_key, m.correlation_id, m.trace_context, m.error, m.history, m.steps, m.lease_holder,
      m.created_at, m.claimed_at
  ), kept as (
    insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state,
      attempt, crashes, conversation_key, correlation_id, trace_context, error, history, steps, lease_holder,
      created_at, claimed_at)
    select d.id, d.queue, d.message_type, d.payload, d.options, d.priority, 'done', d.attempt, d.crashes,
      d.conversation_key, d.correlation_id, d.trace_context, d.error, d.history, d.steps, d.lease_holder,
      d.created_at, d.claimed_at
    from done d
    where d.queue <> all (array(select q.name::text from packhorse.queues q where q.keep_done = interval '0'))
  )
  select coalesce(array_agg(d.id), '{}'),
    -- each once: one message of a conversation runs
    array_agg(d.conversation_key::text) filter (where d.conversation_key is not null)
  into done_ids, keys from done d;
end
$$;
comment on function packhorse.archive_messages(bigint[], bigint[]) is
  'Used by complete: delete running messages by lease token and archive them as done.';

create or replace function packhorse.finish_done(p_ids bigint[], p_tokens bigint[], out done_ids bigint[],
  out promoted_ids bigint[])
language plpgsql as $$
-- Complete messages and promote their conversations. A missing archive partition is made and the
-- statement repeated: finished work is never lost for want of a table.
declare
  v_done record;
  v_promotes text; -- assigned, for a PERFORM is a statement of its own to the executor
begin
  if exists (select from packhorse.scopes s where s.failures > 0) then
    perform packhorse.note_success(p_ids, p_tokens);
  end if;
  v_promotes := set_config('packhorse_queue.promotes', 'on', true); -- this does: see promote_after_delete
  begin
    v_done := packhorse.archive_messages(p_ids, p_tokens);
  exception when check_violation then
    perform packhorse.ensure_message_archive_partitions();
    v_done := packhorse.archive_messages(p_ids, p_tokens);
  end;
  done_ids := v_done.done_ids;
  if v_done.keys is not null then
    promoted_ids := packhorse.promote_conversations(v_done.keys);
  end if;
  v_promotes := set_config('packhorse_queue.promotes', 'off', true);
end
$$;
comment on function packhorse.finish_done(bigint[], bigint[]) is
  'Used by complete_messages and complete_and_claim_messages.';

create or replace function packhorse.complete_messages(p_ids bigint[], p_tokens bigint[]) returns bigint[]
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- running -> done for each pair of message id and lease token; returns the ids that were completed.
-- An id that is missing from the answer was lost: its lease expired and somebody else owns it.
-- Locks the message rows. Arrays of equal length, at most 10000, else PH001.
begin
  if cardinality(p_ids) is distinct from cardinality(p_tokens) or cardinality(p_ids) > 10000 then
    perform packhorse.refuse_argument('tokens', 'ids and tokens must have the same length, at most 10000');
  end if;
  return (packhorse.finish_done(p_ids, p_tokens)).done_ids;
end
$$;
comment on function packhorse.complete_messages(bigint[], bigint[]) is
  'running -> done, fenced by lease tokens; returns the ids completed.';

create or replace function packhorse.mark_completion_refused(p_ids bigint[], p_tokens bigint[], p_detail text)
returns integer
language sql volatile set lock_timeout = '500ms' as $$
-- The handlers of these messages are done, the database refuses to write that, and their process has to stop.
-- They must not run again, so their leases do not end: each stays `running`, and holds its conversation,
-- until its completion works (complete_refused_messages) or an operator decides: release_message runs it
-- again, bury_message and cancel_message end it. Returns how many were still held by these leases.
  with marked as (
    update packhorse.message_queue m
    set completion_refused_at = clock_timestamp(), lease_expires_at = 'infinity',
        error = jsonb_build_object('class', 'CompletionRefused',
          'message', packhorse.bounded_text(p_detail, 2000), 'at', clock_timestamp()),
        history = packhorse.append_history(m.history, m.attempt, 'completion_refused', 'CompletionRefused',
          p_detail, m.lease_holder)
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning 1
  )
  select count(*)::integer from marked;
$$;
comment on function packhorse.mark_completion_refused(bigint[], bigint[], text)
  is 'Messages whose handlers are done and whose completion is refused: not to be run again; returns how many.';

create or replace function packhorse.complete_refused_messages(p_limit integer default 100) returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Complete messages that were marked by mark_completion_refused, one by one; at most p_limit. Stops when
-- three are still refused, and looks from a place found by chance on: one that is refused for ever hides no
-- other. Returns how many were completed.
declare
  v_refused integer := 0;
  v_row record;
  v_from bigint;
  v_count integer := 0;
begin
  perform packhorse.check_batch(p_limit);
  if not exists (select from packhorse.message_queue m where m.completion_refused_at is not null) then
    return 0;
  end if;
  select m.id into v_from from packhorse.message_queue m where m.completion_refused_at is not null
  order by random() limit 1;
  for v_row in
    select m.id, m.lease_token from packhorse.message_queue m
    where m.completion_refused_at is not null and m.state = 'running'
    order by m.id < v_from, m.id limit p_limit for update skip locked
  loop
    begin
      perform packhorse.finish_done(array[v_row.id], array[v_row.lease_token]);
      v_count := v_count + 1;
    exception when others then
      v_refused := v_refused + 1;
      exit when v_refused = 3;
    end;
  end loop;
  return v_count;
end
$$;
comment on function packhorse.complete_refused_messages(integer) is
  'Complete messages whose completion was refused before; returns how many.';

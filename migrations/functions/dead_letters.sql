-- The dead-letter workbench (SPEC Q4): redrive, edit, purge; every act is recorded.

create or replace function packhorse.redrive_dead_letters(
  p_ids bigint[] default null, p_fingerprint text default null, p_queue text default null,
  p_limit integer default 1000, p_operator text default current_user, p_reason text default null,
  p_fresh boolean default false
) returns bigint[]
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- Enqueue dead letters again, oldest first, with their own id (so a conversation goes on at its place) and
-- fresh attempts. By ids, fingerprint, queue (all given ones must match); at least one is required. Returns
-- the ids. Works in batches of 500: what one statement locks, sorts and keeps in memory has a bound, whatever
-- p_limit is. The steps that a message has stored go with it, and are not run again; with p_fresh they are
-- forgotten. Locks the dead letters by id and waits for those that somebody else looks at: skipping them
-- would leave a message behind without a word. Those whose id a live message has (a sequence that was left
-- behind by a failover) stay, and hold up no other. Raises PH001.
declare
  v_all bigint[] := '{}';
  v_ids bigint[];
  v_keys text[];
  v_queues text[];
begin
  if p_ids is null and p_fingerprint is null and p_queue is null then
    perform packhorse.refuse_argument('ids', 'give ids, a fingerprint or a queue');
  elsif p_limit is null or p_limit not between 0 and 1000000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', p_limit), '0 to 1000000.');
  end if;
  loop
    with chosen as (
      select d.id from packhorse.dead_letters d
      where (p_ids is null or d.id = any (p_ids)) and (p_fingerprint is null or d.fingerprint = p_fingerprint)
        and (p_queue is null or d.queue = p_queue)
        and d.id > coalesce(v_all[cardinality(v_all)], -9223372036854775808)
        and not exists (select from packhorse.message_queue m where m.id = d.id)
      order by d.id limit least(500, p_limit - cardinality(v_all)) for update of d
    ), taken as (
      delete from packhorse.dead_letters d using chosen c where d.id = c.id returning d.*
    ), enqueued as (
      insert into packhorse.message_queue (id, queue, message_type, payload, options, priority,
        max_attempts, conversation_key, concurrency_key, fairness_key, correlation_id, trace_context,
        history, steps, created_at)
      select t.id, t.queue, t.message_type, t.payload, t.options, t.priority, t.max_attempts,
        t.conversation_key, t.concurrency_key, t.fairness_key, t.correlation_id, t.trace_context,
        packhorse.append_history(t.history, 0, 'redrive', null, coalesce(p_reason, ''), null),
        case when not coalesce(p_fresh, false) then t.steps end, t.created_at from taken t order by t.id
      returning message_queue.id, message_queue.queue, message_queue.conversation_key
    ), recorded as (
      insert into packhorse.operator_actions (action, operator, reason, message_id, details)
      select 'redrive', p_operator, p_reason, t.id, jsonb_strip_nulls(jsonb_build_object(
        'fingerprint', t.fingerprint, 'reason', t.reason, 'fresh', case when p_fresh then true end))
      from taken t
    )
    select array_agg(e.id order by e.id),
      array_agg(distinct e.conversation_key) filter (where e.conversation_key is not null),
      array_agg(distinct e.queue::text)
    into v_ids, v_keys, v_queues from enqueued e;
    exit when v_ids is null;
    v_all := v_all || v_ids;
    if v_keys is not null then
      perform packhorse.promote_conversations(v_keys);
    end if;
    perform packhorse.wake_queue(q.name) from unnest(v_queues) as q (name);
  end loop;
  return v_all;
end
$$;
comment on function packhorse.redrive_dead_letters(bigint[], text, text, integer, text, text, boolean)
  is 'Enqueue dead letters again with their own ids and fresh attempts; returns the ids.';

create or replace function packhorse.edit_dead_letter(
  p_id bigint, p_payload jsonb, p_operator text default current_user, p_reason text default null,
  p_before jsonb default null
) returns boolean
language plpgsql as $$
-- Replace the payload of a dead letter before it is redriven. What is recorded has no values
-- (payload_change). p_before: the payload that the editor has seen; when somebody has changed it meanwhile,
-- PH005 and nothing happens.
declare
  v_old jsonb;
begin
  perform packhorse.check_edited_payload(p_payload);
  select d.payload into v_old from packhorse.dead_letters d where d.id = p_id for update;
  if not found then
    return false;
  elsif v_old <> p_before then
    raise exception using errcode = 'PH005', column = 'payload',
      message = format('payload: somebody else has edited dead letter %s meanwhile', p_id);
  end if;
  update packhorse.dead_letters set payload = p_payload, edited_at = clock_timestamp() where id = p_id;
  insert into packhorse.operator_actions (action, operator, reason, message_id, details)
  values ('edit_dead_letter', p_operator, p_reason, p_id, packhorse.payload_change(v_old, p_payload));
  return true;
end
$$;
comment on function packhorse.edit_dead_letter(bigint, jsonb, text, text, jsonb) is
  'Replace the payload of a dead letter; which keys differ is recorded.';

create or replace function packhorse.purge_dead_letters(
  p_ids bigint[] default null, p_fingerprint text default null, p_queue text default null,
  p_older_than interval default null, p_limit integer default 1000, p_operator text default current_user,
  p_reason text default null
) returns bigint[]
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan as $$
-- Delete dead letters for good, oldest first; filters as in redrive plus an age. Blocked conversations go on.
declare
  v_ids bigint[];
  v_keys text[];
begin
  if p_ids is null and p_fingerprint is null and p_queue is null and p_older_than is null then
    perform packhorse.refuse_argument('ids', 'give ids, a fingerprint, a queue or an age');
  elsif p_limit is null or p_limit not between 0 and 1000000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', p_limit), '0 to 1000000.');
  elsif p_older_than is not null then
    perform packhorse.check_age('older_than', p_older_than);
  end if;
  with chosen as (
    select d.id from packhorse.dead_letters d
    where (p_ids is null or d.id = any (p_ids)) and (p_fingerprint is null or d.fingerprint = p_fingerprint)
      and (p_queue is null or d.queue = p_queue)
      -- by age alone none goes that holds its conversation: somebody has to act on that one
      and (p_older_than is null
        or (d.dead_at < clock_timestamp() - p_older_than and not (p_ids is null and d.blocks_conversation)))
    order by d.id limit p_limit for update
  ), gone as (
    delete from packhorse.dead_letters d using chosen c where d.id = c.id returning d.*
  ), recorded as (
    insert into packhorse.operator_actions (action, operator, reason, message_id, details)
    select 'purge', p_operator, p_reason, g.id,
      jsonb_build_object('queue', g.queue, 'message_type', g.message_type,
      'reason', g.reason, 'dead_at', g.dead_at) from gone g
  )
  select array_agg(g.id order by g.id),
    array_agg(distinct g.conversation_key) filter (where g.blocks_conversation)
  into v_ids, v_keys from gone g;
  if v_keys is not null then
    perform packhorse.promote_conversations(v_keys);
  end if;
  return coalesce(v_ids, '{}');
end
$$;
comment on function packhorse.purge_dead_letters(bigint[], text, text, interval, integer, text, text) is
  'Delete dead letters for good; returns the ids.';

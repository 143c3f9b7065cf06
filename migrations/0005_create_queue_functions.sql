-- Queue settings as functions: declare, set, pause, resume (SPEC Q8), and the wake-up hint (SPEC Q10).
--
-- Refusals of the whole SQL API carry private SQLSTATEs:
--   PH001 bad argument (its name in COLUMN)   PH002 unknown queue   PH003 lease lost
--   PH004 no such message                     PH005 not possible in the message's state
-- Lock and duration: new objects only, milliseconds.

create function declare_queue(p_queue text) returns boolean
language plpgsql set search_path from current as $$
-- Make the queue known; true when it is new. Safe to repeat. Locks nothing when the queue exists.
begin
  if exists (select from queues where name = p_queue) then
    return false;
  end if;
  if p_queue is null or p_queue !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    raise exception using errcode = 'PH001', column = 'queue',
      message = format('queue: %L is not a queue name', left(p_queue, 120)),
      hint = 'Use a letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.';
  end if;
  insert into queues (name) values (p_queue) on conflict do nothing;
  insert into queue_wakeups (queue) values (p_queue) on conflict do nothing;
  return true;
end
$$;
comment on function declare_queue(text) is 'Make a queue known; true when it is new.';

create function require_queue(p_queue text) returns void
language plpgsql stable set search_path from current as $$
-- Raise PH002 with the nearest known name unless the queue exists; 42501 when no queue would be seen whatever exists.
declare
  v_near text;
begin
  if exists (select from queues where name = p_queue) then
    return;
  elsif p_queue is null then
    raise exception using errcode = 'PH002', column = 'queue', message = 'queue: must not be null';
  elsif row_security_active('queues') and not exists (select from queues)
    and not pg_has_role('packhorse_producer', 'usage') and not pg_has_role('packhorse_worker', 'usage') then
    raise exception using errcode = '42501', column = 'queue', message = format('queue: role %I has no rights of packhorse_producer', current_user),
      hint = 'Grant packhorse_producer to it (a role with NOINHERIT does not get its rights by that), or call from a security definer function.';
  end if;
  select name into v_near from queues
  order by (left(name, 3) = left(p_queue, 3)) desc, abs(length(name) - length(p_queue)), name limit 1;
  raise exception using errcode = 'PH002', column = 'queue',
    message = format('queue: unknown queue %L', left(p_queue, 120)),
    hint = case when v_near is null then 'No queue exists yet. ' else format('Did you mean %L? ', v_near) end
      || 'A new queue is made by: select declare_queue('
      || case when p_queue ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then quote_literal(p_queue) else 'name' end || ')';
end
$$;
comment on function require_queue(text) is 'Raise PH002, naming a near miss, unless the queue exists.';

create function set_queue(p_queue text, p_settings jsonb, p_operator text default current_user) returns queues
language plpgsql set search_path from current as $$
-- Change settings of one queue; keys are column names of `queues`, null resets a limit to "none".
-- Locks the queue's row. Unknown keys and values out of range raise PH001, which names the key, and change nothing.
declare
  v_known constant text[] := array['max_concurrency', 'max_concurrency_per_key', 'rate_limit', 'rate_interval',
    'rate_burst', 'keep_done', 'max_attempts', 'crash_limit', 'backoff_initial', 'backoff_multiplier',
    'backoff_max', 'backoff_jitter', 'on_dead'];
  v_unknown text;
  v_key text;
  v_constraint text;
  v_new_rate constant boolean := p_settings ?| array['rate_limit', 'rate_interval', 'rate_burst'];
  v_row queues;
begin
  perform require_queue(p_queue);
  if p_settings is null or jsonb_typeof(p_settings) <> 'object' then
    raise exception using errcode = 'PH001', column = 'settings', message = 'settings: must be a JSON object';
  end if;
  select key into v_unknown from jsonb_object_keys(p_settings) as k(key) where key <> all (v_known) limit 1;
  if found then
    raise exception using errcode = 'PH001', column = v_unknown,
      message = format('%s: not a queue setting', left(v_unknown, 60)),
      hint = 'Known settings: ' || array_to_string(v_known, ', ');
  end if;
  select * into v_row from queues where name = p_queue for update;
  begin
    for v_key in select jsonb_object_keys(p_settings) loop -- one by one: the error of a value has no name in it
      v_row := jsonb_populate_record(v_row, jsonb_build_object(v_key, p_settings -> v_key));
    end loop;
    v_key := null;
    update queues set
      max_concurrency = v_row.max_concurrency, max_concurrency_per_key = v_row.max_concurrency_per_key,
      rate_limit = v_row.rate_limit, rate_interval = v_row.rate_interval, rate_burst = v_row.rate_burst,
      -- a changed rate starts with a full bucket; any other change leaves the bucket as it is
      rate_tokens = case when v_new_rate then coalesce(v_row.rate_burst, v_row.rate_limit, 0) else rate_tokens end,
      rate_refilled_at = case when v_new_rate then clock_timestamp() else rate_refilled_at end,
      keep_done = v_row.keep_done, max_attempts = v_row.max_attempts, crash_limit = v_row.crash_limit,
      backoff_initial = v_row.backoff_initial, backoff_multiplier = v_row.backoff_multiplier,
      backoff_max = v_row.backoff_max, backoff_jitter = v_row.backoff_jitter, on_dead = v_row.on_dead,
      updated_at = clock_timestamp()
    where name = p_queue returning * into v_row;
  exception when check_violation or not_null_violation or data_exception then
    get stacked diagnostics v_unknown = column_name, v_constraint = constraint_name;
    v_key := coalesce(v_key, nullif(v_unknown, ''), substring(v_constraint from '^queues_(.*)_[a-z]+$'), 'settings');
    raise exception using errcode = 'PH001', column = v_key, message = format('%s: %s', v_key, case sqlstate
        when '23514' then format('%s is out of range', left(p_settings ->> v_key, 60)) when '23502' then 'must not be null' else sqlerrm end),
      hint = coalesce((select 'Allowed: ' || regexp_replace(pg_get_constraintdef(c.oid), '^CHECK |::\w+( precision)?|[()]', '', 'g')
        from pg_constraint c where c.conrelid = 'queues'::regclass and c.conname = v_constraint),
        'Numbers as JSON numbers, intervals as texts like "5 minutes".');
  end;
  insert into operator_actions (action, operator, details)
  values ('set_queue', p_operator, jsonb_build_object('queue', p_queue, 'settings', p_settings));
  perform wake_queue(p_queue); -- a wider limit lets messages start
  return v_row;
end
$$;
comment on function set_queue(text, jsonb, text) is 'Change settings of a queue; works within seconds, no restart.';

create function pause_queue(p_queue text, p_operator text default current_user) returns boolean
language plpgsql set search_path from current as $$
-- No claim takes messages of a paused queue; running ones finish. True when it was not paused before.
begin
  perform require_queue(p_queue);
  update queues set paused_at = clock_timestamp(), paused_by = p_operator where name = p_queue and paused_at is null;
  if not found then
    return false;
  end if;
  insert into operator_actions (action, operator, details)
  values ('pause_queue', p_operator, jsonb_build_object('queue', p_queue));
  return true;
end
$$;
comment on function pause_queue(text, text) is 'Stop claims from a queue; true when it was not paused before.';

create function wake_queue(p_queue text) returns void
language plpgsql set search_path from current as $$
-- Tell sleeping workers that the queue has work: one NOTIFY, only when somebody sleeps and nobody watches (SPEC Q10).
begin
  if exists (select from queue_wakeups where queue = p_queue and wake_until > clock_timestamp()
      and (attended_until is null or attended_until <= clock_timestamp())) then
    perform pg_notify('packhorse_wake', p_queue);
  end if;
end
$$;
comment on function wake_queue(text) is 'Wake sleeping workers of a queue; for producers that insert rows themselves.';

create function resume_queue(p_queue text, p_operator text default current_user) returns boolean
language plpgsql set search_path from current as $$
-- Let claims take from the queue again; true when it was paused.
begin
  perform require_queue(p_queue);
  update queues set paused_at = null, paused_by = null where name = p_queue and paused_at is not null;
  if not found then
    return false;
  end if;
  insert into operator_actions (action, operator, details)
  values ('resume_queue', p_operator, jsonb_build_object('queue', p_queue));
  perform wake_queue(p_queue);
  return true;
end
$$;
comment on function resume_queue(text, text) is 'Let claims take from the queue again; true when it was paused.';

create function announce_sleep(p_queues text[], p_for interval default '10 seconds') returns void
language sql set search_path from current as $$
-- A worker that found nothing asks producers for a NOTIFY until now + p_for. It must claim once more
-- afterwards: a producer that committed just before did not see the announcement. While it sleeps it asks again
-- before half of p_for has passed: when nobody listens any more, NOTIFY ends with the last request.
  update queue_wakeups set wake_until = clock_timestamp() + p_for
  where queue = any (p_queues)
    and (wake_until is null or wake_until < clock_timestamp() + p_for / 2);
$$;
comment on function announce_sleep(text[], interval) is 'A sleeping worker asks for NOTIFY; claim once more afterwards.';

create function attend_queues(p_queues text[], p_types text[], p_for interval default '1 second') returns text[]
language plpgsql set search_path from current as $$
-- One awake worker watches these queues until now + p_for: it looks every few milliseconds, and producers need not
-- NOTIFY. Returns the queues that it has got: those that nobody else watches, and on which no live worker of the
-- fleet runs a type that this one (p_types) does not. keep_attending goes on, hand_over_queues ends it.
-- Waits for nobody: a queue whose row is locked is left out.
declare
  v_got text[];
begin
  with free as (
    select w.queue from queue_wakeups w
    where w.queue = any (p_queues) and (w.attended_until is null or w.attended_until <= clock_timestamp())
      and not exists (select from workers o where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.last_seen_at > clock_timestamp() - interval '1 minute')
    for no key update of w skip locked
  ), taken as (
    update queue_wakeups w set attended_until = clock_timestamp() + p_for from free where w.queue = free.queue returning w.queue
  ) select coalesce(array_agg(queue), '{}') into v_got from taken;
  return v_got;
end
$$;
comment on function attend_queues(text[], text[], interval) is 'One awake worker watches queues, so that producers need no NOTIFY; returns those that it has got.';

create function keep_attending(p_queues text[], p_types text[], p_for interval default '1 second') returns text[]
language plpgsql set search_path from current as $$
-- The worker that watches these queues goes on until now + p_for. Returns those that it has to leave: a worker is there
-- now that runs other types, so NOTIFY begins again. Waits for nobody: a queue whose row is locked stays as it is.
declare
  v_left text[];
begin
  with mine as (
    select w.queue, exists (select from workers o where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.last_seen_at > clock_timestamp() - interval '1 minute') as shared
    from queue_wakeups w where w.queue = any (p_queues) for no key update of w skip locked
  ), kept as (
    update queue_wakeups w set attended_until = case when not mine.shared then clock_timestamp() + p_for end
    from mine where w.queue = mine.queue returning w.queue, mine.shared
  ) select coalesce(array_agg(queue) filter (where shared), '{}') into v_left from kept;
  perform pg_notify('packhorse_wake', q) from unnest(v_left) q;
  return v_left;
end
$$;
comment on function keep_attending(text[], text[], interval) is 'Watch queues for longer; returns those that this worker has to leave.';

create function hand_over_queues(p_queues text[], p_wake boolean default true, p_leave boolean default true) returns void
language plpgsql set search_path from current as $$
-- For a worker that watches these queues. p_leave: it watches no longer, and producers NOTIFY again; it must claim once
-- more afterwards, like after announce_sleep. p_wake: wake those that sleep, once, for there is more than it can start.
begin
  if p_leave then
    update queue_wakeups set attended_until = null
    where queue in (select queue from queue_wakeups where queue = any (p_queues) and attended_until is not null order by queue for no key update);
  end if;
  if p_wake then
    perform pg_notify('packhorse_wake', queue) from queue_wakeups where queue = any (p_queues) and wake_until > clock_timestamp();
  end if;
end
$$;
comment on function hand_over_queues(text[], boolean, boolean) is 'A watching worker wakes the sleepers once, or watches no longer, or both.';

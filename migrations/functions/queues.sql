-- Queues and their settings: declare, set, pause, resume (SPEC Q8).

create or replace function packhorse.declare_queue(p_queue text) returns boolean
language plpgsql as $$
-- Make the queue known; true when it is new. Safe to repeat. Locks nothing when the queue exists.
begin
  if exists (select from packhorse.queues where name = p_queue) then
    return false;
  end if;
  if p_queue is null or p_queue !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    raise exception using errcode = 'PH001', column = 'queue',
      message = format('queue: %L is not a queue name', left(p_queue, 120)),
      hint = 'Use a letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.';
  end if;
  insert into packhorse.queues (name) values (p_queue) on conflict do nothing;
  insert into packhorse.queue_wakeups (queue) values (p_queue) on conflict do nothing;
  return true;
end
$$;
comment on function packhorse.declare_queue(text) is 'Make a queue known; true when it is new.';

create or replace function packhorse.require_queue(p_queue text) returns void
language plpgsql stable as $$
-- Raise PH002 with the nearest known name unless the queue exists.
declare
  v_near text;
begin
  if exists (select from packhorse.queues where name = p_queue) then
    return;
  elsif p_queue is null then
    raise exception using errcode = 'PH002', column = 'queue', message = 'queue: must not be null';
  end if;
  select name into v_near from packhorse.queues
  order by (left(name, 3) = left(p_queue, 3)) desc, abs(length(name) - length(p_queue)), name limit 1;
  raise exception using errcode = 'PH002', column = 'queue',
    message = format('queue: unknown queue %L', left(p_queue, 120)),
    hint = case when v_near is null then 'No queue exists yet. ' else format('Did you mean %L? ', v_near) end
      || 'A new queue is made by: select packhorse.declare_queue('
      || case when p_queue ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then quote_literal(p_queue) else 'name' end
        || ')';
end
$$;
comment on function packhorse.require_queue(text) is
  'Raise PH002, naming a near miss, unless the queue exists.';

create or replace function packhorse.check_queue_settings(p_settings jsonb) returns void
language plpgsql immutable as $$
-- Raise PH001, which names the key, unless this is an object of settings of a queue. Values are checked by
-- the table.
declare
  v_known constant text[] := array['fair_share', 'max_concurrency', 'max_concurrency_per_key',
    'rate_limit', 'rate_interval', 'rate_burst', 'rate_limit_per_key', 'rate_interval_per_key',
    'rate_burst_per_key', 'keep_done', 'max_attempts', 'crash_limit', 'backoff_initial',
    'backoff_multiplier', 'backoff_max', 'backoff_jitter', 'on_dead', 'failure_breaker', 'forward'];
  v_unknown text;
begin
  if p_settings is null or jsonb_typeof(p_settings) <> 'object' then
    perform packhorse.refuse_argument('settings', 'must be a JSON object');
  end if;
  select k.key into v_unknown from jsonb_object_keys(p_settings) as k (key)
  where k.key <> all (v_known) limit 1;
  if found then
    perform packhorse.refuse_argument(left(v_unknown, 60), 'not a queue setting',
      'Known settings: ' || array_to_string(v_known, ', '));
  end if;
end
$$;
comment on function packhorse.check_queue_settings(jsonb) is
  'Raise PH001 unless these are settings that a queue has.';

create or replace function packhorse.set_queue(p_queue text, p_settings jsonb,
  p_operator text default current_user, p_reason text default null) returns packhorse.queues
language plpgsql as $$
-- Change settings of one queue; keys are column names of `queues`, null resets a limit to "none". Locks the
-- queue's row. Unknown keys and values out of range raise PH001, which names the key, and change nothing.
declare
  v_key text;
  v_column text;
  v_constraint text;
  v_new_rate constant boolean := p_settings ?| array['rate_limit', 'rate_interval', 'rate_burst'];
  v_row packhorse.queues;
begin
  perform packhorse.require_queue(p_queue);
  perform packhorse.check_queue_settings(p_settings);
  select * into v_row from packhorse.queues where name = p_queue for update;
  begin
    -- one by one: the error of a value has no name in it
    for v_key in select jsonb_object_keys(p_settings) loop
      v_row := jsonb_populate_record(v_row, jsonb_build_object(v_key, p_settings -> v_key));
    end loop;
    v_key := null;
    update packhorse.queues set
      fair_share = v_row.fair_share, rate_limit_per_key = v_row.rate_limit_per_key,
      rate_interval_per_key = v_row.rate_interval_per_key, rate_burst_per_key = v_row.rate_burst_per_key,
      max_concurrency = v_row.max_concurrency, max_concurrency_per_key = v_row.max_concurrency_per_key,
      rate_limit = v_row.rate_limit, rate_interval = v_row.rate_interval, rate_burst = v_row.rate_burst,
      -- a changed rate starts with a full bucket; any other change leaves the bucket as it is
      rate_tokens = case when v_new_rate then coalesce(v_row.rate_burst, v_row.rate_limit, 0)
        else rate_tokens end,
      rate_refilled_at = case when v_new_rate then clock_timestamp() else rate_refilled_at end,
      keep_done = v_row.keep_done, max_attempts = v_row.max_attempts, crash_limit = v_row.crash_limit,
      backoff_initial = v_row.backoff_initial, backoff_multiplier = v_row.backoff_multiplier,
      backoff_max = v_row.backoff_max, backoff_jitter = v_row.backoff_jitter, on_dead = v_row.on_dead,
      failure_breaker = v_row.failure_breaker, forward = v_row.forward, updated_at = clock_timestamp()
    where name = p_queue returning * into v_row;
  exception when check_violation or not_null_violation or data_exception then
    get stacked diagnostics v_column = column_name, v_constraint = constraint_name;
    v_key := coalesce(v_key, nullif(v_column, ''), substring(v_constraint from '^queues_(.*)_[a-z]+$'),
      'settings');
    raise exception using errcode = 'PH001', column = v_key, message = format('%s: %s', v_key, case sqlstate
        when '23514' then format('%s is out of range', left(p_settings ->> v_key, 60))
        when '23502' then 'must not be null' else sqlerrm end),
      hint = coalesce((select 'Allowed: '
        || regexp_replace(pg_get_constraintdef(c.oid), '^CHECK |::\w+( precision)?|[()]', '', 'g')
        from pg_constraint c
        where c.conrelid = 'packhorse.queues'::regclass::oid and c.conname = v_constraint),
        'Numbers as JSON numbers, intervals as texts like "5 minutes".');
  end;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('set_queue', p_operator, p_reason, jsonb_build_object('queue', p_queue, 'settings', p_settings));
  insert into packhorse.queue_turns (queue) select p_queue where packhorse.takes_turns(v_row)
  on conflict do nothing;
  if p_settings ?| array['rate_limit_per_key', 'rate_interval_per_key', 'rate_burst_per_key'] then
    delete from packhorse.key_rates k where k.queue = p_queue; -- all buckets are full
  end if;
  if p_settings ? 'failure_breaker' then
    perform packhorse.lift_removed_breakers();
  end if;
  -- a wider limit lets messages start; who watches a queue that goes elsewhere now is not one who takes them
  perform packhorse.hand_over_queues(array[p_queue], true, p_settings ? 'forward');
  return v_row;
end
$$;
comment on function packhorse.set_queue(text, jsonb, text, text) is
  'Change settings of a queue; works within seconds, no restart.';

create or replace function packhorse.pause_queue(p_queue text, p_operator text default current_user,
  p_reason text default null) returns boolean
language plpgsql as $$
-- No claim takes messages of a paused queue; running ones finish. True when it was not paused before, or with
-- all others only: then resume_all_queues() leaves it paused.
begin
  perform packhorse.require_queue(p_queue);
  update packhorse.queues
  set paused_at = coalesce(paused_at, clock_timestamp()), paused_by = p_operator, paused_with_all = false
  where name = p_queue and (paused_at is null or paused_with_all);
  if not found then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('pause_queue', p_operator, p_reason, jsonb_build_object('queue', p_queue));
  return true;
end
$$;
comment on function packhorse.pause_queue(text, text, text) is
  'Stop claims from a queue; true when it was not paused before.';

create or replace function packhorse.resume_queue(p_queue text, p_operator text default current_user,
  p_reason text default null) returns boolean
language plpgsql as $$
-- Let claims take from the queue again; true when it was paused.
begin
  perform packhorse.require_queue(p_queue);
  update packhorse.queues set paused_at = null, paused_by = null, paused_with_all = false
  where name = p_queue and paused_at is not null;
  if not found then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('resume_queue', p_operator, p_reason, jsonb_build_object('queue', p_queue));
  perform packhorse.wake_queue(p_queue);
  return true;
end
$$;
comment on function packhorse.resume_queue(text, text, text) is
  'Let claims take from the queue again; true when it was paused.';

create or replace function packhorse.pause_all_queues(p_operator text default current_user,
  p_reason text default null) returns text[]
language plpgsql as $$
-- A maintenance window: pause every queue that is not paused; returns which. A queue that is declared later
-- is not paused. Locks their rows by name.
declare
  v_names text[];
begin
  perform 1 from packhorse.queues q where q.paused_at is null order by q.name for no key update;
  with paused as (
    update packhorse.queues set paused_at = clock_timestamp(), paused_by = p_operator, paused_with_all = true
    where paused_at is null returning name::text
  ) select coalesce(array_agg(name order by name), '{}') into v_names from paused;
  if v_names <> '{}' then
    insert into packhorse.operator_actions (action, operator, reason, details)
    values ('pause_all_queues', p_operator, p_reason, jsonb_build_object('queues', v_names));
  end if;
  return v_names;
end
$$;
comment on function packhorse.pause_all_queues(text, text) is
  'Pause every queue that is not paused; returns which.';

create or replace function packhorse.resume_all_queues(p_operator text default current_user,
  p_reason text default null) returns text[]
language plpgsql as $$
-- The end of a maintenance window: resume what pause_all_queues() paused; returns which. What somebody paused
-- singly, before or since, stays paused.
declare
  v_names text[];
begin
  perform 1 from packhorse.queues q where q.paused_with_all order by q.name for no key update;
  with resumed as (
    update packhorse.queues set paused_at = null, paused_by = null, paused_with_all = false
    where paused_with_all returning name::text
  ) select coalesce(array_agg(name order by name), '{}') into v_names from resumed;
  if v_names <> '{}' then
    insert into packhorse.operator_actions (action, operator, reason, details)
    values ('resume_all_queues', p_operator, p_reason, jsonb_build_object('queues', v_names));
  end if;
  perform packhorse.wake_queue(q.name) from unnest(v_names) as q (name);
  return v_names;
end
$$;
comment on function packhorse.resume_all_queues(text, text) is
  'Resume the queues that pause_all_queues() paused; returns which.';

create or replace function packhorse.delete_queue(p_queue text, p_operator text default current_user,
  p_reason text default null) returns void
language plpgsql as $$
-- Remove a queue that nothing uses, with its settings. Raises PH005, with the counts, while messages or dead
-- letters are on it, a schedule names it or a live worker serves it; PH002 when there is none. What has ended
-- stays in the archive. A message that somebody enqueues in a transaction that is open at this moment ends up
-- on a queue that nobody has declared, which `health` tells.
declare
  v_live bigint;
  v_dead bigint;
  v_schedules bigint;
  v_workers bigint;
begin
  perform packhorse.require_queue(p_queue);
  if p_queue = 'default' then
    raise exception using errcode = 'PH005', column = 'queue',
      message = 'queue: default cannot be deleted: messages without a queue go there';
  end if;
  perform 1 from packhorse.queues q where q.name = p_queue for update;
  select count(*) into v_live from packhorse.message_queue m where m.queue = p_queue;
  select count(*) into v_dead from packhorse.dead_letters d where d.queue = p_queue;
  select count(*) into v_schedules from packhorse.schedules s where s.queue = p_queue;
  select count(*) into v_workers from packhorse.workers w
  where p_queue = any (w.queues) and clock_timestamp() - w.last_seen_at <= w.lease_duration;
  if v_live + v_dead + v_schedules + v_workers > 0 then
    raise exception using errcode = 'PH005', column = 'queue', message = format(
      'queue: %s is in use: %s live message(s), %s dead letter(s), %s schedule(s), %s worker process(es)',
      p_queue, v_live, v_dead, v_schedules, v_workers);
  end if;
  delete from packhorse.scopes s where s.queue = p_queue;
  delete from packhorse.claim_marks c where c.queue = p_queue;
  delete from packhorse.queue_turns t where t.queue = p_queue;
  delete from packhorse.key_rates k where k.queue = p_queue;
  delete from packhorse.queue_wakeups w where w.queue = p_queue;
  delete from packhorse.queues q where q.name = p_queue;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('delete_queue', p_operator, p_reason, jsonb_build_object('queue', p_queue));
end
$$;
comment on function packhorse.delete_queue(text, text, text) is
  'Remove a queue that nothing uses; refused while something does.';

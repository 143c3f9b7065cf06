-- Messages that were relayed to RabbitMQ and are handled from there: what is noted here of them, and how one
-- becomes a dead letter (docs/rabbitmq.md). Its row in message_queue is gone, and with it every lease:
-- RabbitMQ says who holds it.

create or replace function packhorse.note_forwarded_attempt(
  p_id bigint, p_attempt integer, p_delay interval default null, p_history jsonb default null
) returns void
language sql volatile as $$
-- p_attempt attempts are spent; it waits for the next one for p_delay. p_history: all that there is of it.
  insert into packhorse.forwarded_messages as f (id, attempt, next_at, history)
  values (p_id, p_attempt, clock_timestamp() + packhorse.bounded_delay(p_delay), p_history)
  on conflict (id) do update set attempt = greatest(f.attempt, excluded.attempt), next_at = excluded.next_at,
    history = coalesce(excluded.history, f.history), noted_at = clock_timestamp();
$$;
comment on function packhorse.note_forwarded_attempt(bigint, integer, interval, jsonb) is
  'By workers on RabbitMQ: attempts of a relayed message that waits where it is.';

create or replace function packhorse.note_forwarded_done(p_ids bigint[]) returns void
language sql volatile as $$
-- Their handlers are done. Whoever gets one of them again acknowledges it.
  insert into packhorse.forwarded_messages (id, is_done)
  select distinct i.id, true from unnest(p_ids) as i (id)
  on conflict (id) do update set is_done = true, noted_at = clock_timestamp();
$$;
comment on function packhorse.note_forwarded_done(bigint[]) is
  'By workers on RabbitMQ: messages that are done and could not be acknowledged.';

create or replace function packhorse.note_forwarded_crashes(p_ids bigint[], p_detail text) returns integer
language sql volatile as $$
-- A process has died while these ran. Returns how many.
  with noted as (
    insert into packhorse.forwarded_messages as f (id, crashes, history)
    select distinct i.id, 1, packhorse.append_history(null, null, 'crash', 'WorkerLost', p_detail, null)
    from unnest(p_ids) as i (id)
    on conflict (id) do update set crashes = least(f.crashes + 1, 32767), noted_at = clock_timestamp(),
      history = packhorse.append_history(f.history, null, 'crash', 'WorkerLost', p_detail, null)
    returning 1
  )
  select count(*)::integer from noted;
$$;
comment on function packhorse.note_forwarded_crashes(bigint[], text) is
  'By the parent of workers on RabbitMQ: relayed messages that ran in a process that died; returns how many.';

create or replace function packhorse.note_forwarded_overdue(p_id bigint, p_attempt integer) returns void
language sql volatile as $$
-- Its attempt number p_attempt has ignored its time limit until its process was replaced: it is spent.
  insert into packhorse.forwarded_messages as f (id, attempt, history)
  values (p_id, p_attempt, packhorse.append_history(null, p_attempt, 'retry', 'TimeLimitExceeded',
    'the handler ignored its time limit; its process was replaced', null))
  on conflict (id) do update set attempt = greatest(f.attempt, excluded.attempt),
    noted_at = clock_timestamp(), history = packhorse.append_history(f.history, p_attempt, 'retry',
      'TimeLimitExceeded', 'the handler ignored its time limit; its process was replaced', null);
$$;
comment on function packhorse.note_forwarded_overdue(bigint, integer) is
  'By the parent of workers on RabbitMQ: an attempt that only the end of its process has ended.';

create or replace function packhorse.forwarded_notes(p_ids bigint[])
returns table (id bigint, attempt integer, crashes integer, is_over boolean, wait_seconds double precision,
  history text)
language sql stable as $$
-- What is known of messages that RabbitMQ delivers again; no row of one of which nothing is. is_over: it is
-- done, or a dead letter by now. wait_seconds: until its next attempt.
  select i.id, coalesce(f.attempt, 0), coalesce(f.crashes, 0), coalesce(f.is_done, false) or d.id is not null,
    greatest(coalesce(extract(epoch from f.next_at - clock_timestamp())::float8, 0), 0), f.history::text
  from unnest(p_ids) as i (id)
  left join packhorse.forwarded_messages f on f.id = i.id
  left join packhorse.dead_letters d on d.id = i.id
  where f.id is not null or d.id is not null;
$$;
comment on function packhorse.forwarded_notes(bigint[]) is
  'By workers on RabbitMQ: what is known of messages that come again.';

create or replace function packhorse.bury_forwarded_message(
  p_id bigint, p_message jsonb, p_reason text, p_error_class text default null,
  p_error_message text default null, p_traceback text default null, p_frame text default null,
  p_details jsonb default null, p_holder uuid default null
) returns boolean
language plpgsql set lock_timeout = '500ms' as $$
-- A relayed message becomes a dead letter. p_message: queue, message_type, payload, options, priority,
-- attempt, max_attempts, crashes, conversation_key, correlation_id, trace_context, history, age (seconds).
-- p_id null: it never was a message of ours, and gets an id. It counted as done since it was relayed; that is
-- taken back. False when it is a dead letter already: whoever is not sure calls again. Redriven, it goes the
-- way of its queue once more.
declare
  v_id constant bigint := coalesce(p_id,
    nextval(pg_get_serial_sequence('packhorse.message_queue', 'id')::regclass));
  v record;
  v_details record;
begin
  select m.* into v from jsonb_to_record(p_message) as m (queue text, message_type text, payload jsonb,
    options jsonb, priority integer, attempt integer, max_attempts integer, crashes integer,
    conversation_key text, correlation_id text, trace_context text, history jsonb, age double precision);
  select f.* into v_details from packhorse.failure_details(p_details) f;
  delete from packhorse.forwarded_messages f where f.id = v_id;
  insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason,
    error_class, error_message, error_code, error_details, traceback, fingerprint, attempt, max_attempts,
    crashes, conversation_key, correlation_id, trace_context, history, lease_holder, created_at)
  values (v_id, v.queue, v.message_type, coalesce(v.payload, '{}'), coalesce(v.options, '{}'),
    least(greatest(coalesce(v.priority, 5), 1), 10), p_reason, packhorse.bounded_text(p_error_class, 200),
    packhorse.bounded_text(p_error_message, 10000), v_details.error_code, v_details.error_details,
    packhorse.bounded_text(p_traceback, 50000), packhorse.error_fingerprint(v.message_type,
      coalesce(p_error_class, p_reason), p_error_message, p_frame), coalesce(v.attempt, 0), v.max_attempts,
    least(coalesce(v.crashes, 0), 32767), v.conversation_key, v.correlation_id, v.trace_context,
    packhorse.append_history(v.history, v.attempt, p_reason, p_error_class, p_error_message, p_holder,
      v_details.error_code, p_traceback), p_holder,
    clock_timestamp() - make_interval(secs => least(greatest(coalesce(v.age, 0), 0), 3e9)))
  on conflict (id) do nothing;
  if not found then
    return false;
  end if;
  delete from packhorse.message_archive a where a.id = v_id and a.state = 'done';
  return true;
end
$$;
comment on function packhorse.bury_forwarded_message(bigint, jsonb, text, text, text, text, text, jsonb, uuid)
  is 'By workers on RabbitMQ: a relayed message becomes a dead letter; false when it is one already.';

create or replace function packhorse.park_forwarded_scope(
  p_id bigint, p_type text, p_for interval, p_scope text default null, p_reason text default null
) returns text
language plpgsql set lock_timeout = '500ms' as $$
-- What a relayed message calls asked for a pause: park_message, without a row. The scope that this call has
-- parked; null when none, for it names none or rests so long already. Raises PH001.
declare
  v_scope constant text := coalesce(p_scope, packhorse.only_service(p_type));
  v_before timestamptz;
  v_until timestamptz;
begin
  if v_scope is null then
    return null;
  end if;
  select s.parked_until into v_before from packhorse.scopes s
  where s.name = v_scope and s.ends_at > clock_timestamp();
  v_until := packhorse.park_scope(v_scope,
    greatest(least(p_for, interval '1 day'), interval '100 milliseconds'), p_reason, array[p_type],
    p_by => format('message %s', p_id));
  return case when v_until is distinct from v_before then v_scope end;
end
$$;
comment on function packhorse.park_forwarded_scope(bigint, text, interval, text, text) is
  'By workers on RabbitMQ: a scope rests for some time; the scope when it did not already.';

create or replace function packhorse.count_forwarded_failure(
  p_id bigint, p_type text, p_queue text, p_error_class text, p_error_message text,
  p_frame text default null, p_probes text[] default '{}', out outcome text,
  out wait_seconds double precision
)
language plpgsql set lock_timeout = '500ms' as $$
-- An attempt of a relayed message failed: rest_after_failure, without a row. outcome null: it fails as usual;
-- else no attempt is spent, and it waits for wait_seconds: parked (this failure parked a scope) or snooze.
-- p_probes: scopes of which it was the probe of its process; where those of several fail, the first parks.
declare
  v_limits record;
  v_counted record;
begin
  select p.failure_breaker as actor, q.failure_breaker as queue into v_limits
  from packhorse.failure_policy(p_type, '{}') p left join packhorse.queues q on q.name = p_queue;
  update packhorse.scopes s set probe_id = p_id, probe_at = clock_timestamp()
  where s.name = any (p_probes) and s.next_park is not null and s.probe_id is null
    and s.parked_until <= clock_timestamp();
  select * into v_counted from packhorse.count_failures(p_id, p_type, p_queue, p_error_class, p_error_message,
    p_frame, v_limits.actor, v_limits.queue);
  if v_counted.rests then
    outcome := case when v_counted.parked then 'parked' else 'snooze' end;
    select coalesce(greatest(max(extract(epoch from s.parked_until - clock_timestamp())::float8), 1), 1)
    into wait_seconds from packhorse.scopes s
    where s.name in ('actor:' || p_type, 'queue:' || p_queue) and s.next_park is not null;
  end if;
end
$$;
comment on function packhorse.count_forwarded_failure(bigint, text, text, text, text, text, text[]) is
  'By workers on RabbitMQ: a failure whose cause has parked its actor or queue spends no attempt.';

create or replace function packhorse.note_forwarded_success(p_scopes text[]) returns void
language sql volatile as $$
-- A relayed message of these scopes (actor:..., queue:...) is done: what counts their failures starts over.
  update packhorse.scopes s set failures = 0, fingerprint = null
  where s.name = any (p_scopes) and s.next_park is null;
$$;
comment on function packhorse.note_forwarded_success(text[]) is
  'By workers on RabbitMQ: a success starts the count of a failure breaker over.';

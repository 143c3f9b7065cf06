-- What people look at: one view over all messages, blocked conversations, queue health, explain (SPEC Q1,
-- Q7, Q8b). Views are security_invoker: row-level security applies to the one who looks. (PostgreSQL 14
-- does not know the option; the views are then closed to all but their owner and the reader roles.)
--
-- Lock and duration: new objects only, milliseconds.

create view all_messages as
  select m.id, m.queue::text, m.message_type::text, m.state::text, m.priority::integer, m.attempt,
    m.max_attempts::integer, m.crashes::integer, m.conversation_key::text, m.correlation_id::text, m.run_at, m.created_at, m.claimed_at,
    null::timestamptz as finished_at, m.lease_holder, m.lease_expires_at, m.error ->> 'class' as error_class,
    m.error ->> 'message' as error_message, m.payload::jsonb, m.options::jsonb, m.history, null::text as reason
  from message_queue m
  union all
  select a.id, a.queue, a.message_type, a.state, a.priority::integer, a.attempt, null, a.crashes::integer,
    a.conversation_key, a.correlation_id, null, a.created_at, a.claimed_at, a.finished_at, a.lease_holder, null,
    a.error ->> 'class', a.error ->> 'message', a.payload, a.options, a.history, a.reason
  from message_archive a
  union all
  select d.id, d.queue, d.message_type, 'dead', d.priority::integer, d.attempt, d.max_attempts, d.crashes::integer,
    d.conversation_key, d.correlation_id, null, d.created_at, null, d.dead_at, d.lease_holder, null, d.error_class,
    d.error_message, d.payload, d.options, d.history, d.reason
  from dead_letters d;
comment on view all_messages is 'Every message that is known: live, archived and dead, as one.';

create view blocked_conversations as
  select w.conversation_key, w.waiting, w.since, h.holder_kind, h.holder_id
  from (
    -- from when it was due, not only there: a redriven message keeps its created_at
    select m.conversation_key, count(*) as waiting, min(greatest(m.created_at, m.run_at)) as since, min(m.id) as first_id
    from message_queue m where m.state = 'blocked' group by m.conversation_key) w
  left join lateral (
    select c.holder_kind, c.holder_id from conversation_holders(w.conversation_key, 9223372036854775807) c
    order by c.holder_kind = 'running' desc, c.holder_kind = 'dead' desc, c.holder_id limit 1) h on true;
comment on view blocked_conversations is 'Conversations with waiting messages: how many, since when, and the message that blocks each.';

create view message_queue_health as
  select coalesce(q.name, m.queue, d.queue)::text as queue, q.paused_at is not null as paused,
    coalesce(m.pending, 0) as pending, coalesce(m.delayed, 0) as delayed, coalesce(m.blocked, 0) as blocked,
    coalesce(m.running, 0) as running, coalesce(d.dead, 0) as dead,
    coalesce(extract(epoch from clock_timestamp() - m.oldest_due), 0)::double precision as oldest_due_seconds,
    coalesce(extract(epoch from clock_timestamp() - m.oldest_running), 0)::double precision as oldest_running_seconds
  from queues q
  -- a row that was inserted by hand may name a queue that nobody has declared: the more it has to be seen
  full join (
    select queue::text, count(*) filter (where state = 'pending' and run_at <= clock_timestamp()) as pending,
      count(*) filter (where state = 'pending' and run_at > clock_timestamp()) as delayed,
      count(*) filter (where state = 'blocked') as blocked, count(*) filter (where state = 'running') as running,
      min(run_at) filter (where state = 'pending' and run_at <= clock_timestamp()) as oldest_due,
      min(claimed_at) filter (where state = 'running') as oldest_running
    from message_queue group by queue) m on m.queue = q.name::text
  full join (select queue, count(*) as dead from dead_letters group by queue) d on d.queue = coalesce(q.name::text, m.queue);
comment on view message_queue_health is 'One row per queue: depth by state and the age of the oldest.';

create view dead_letter_groups as
  select d.fingerprint, d.queue, d.message_type, d.reason, d.error_class,
    (array_agg(left(d.error_message, 200) order by d.dead_at desc))[1] as error_message,
    count(*) as count, min(d.dead_at) as first_dead_at, max(d.dead_at) as last_dead_at, min(d.id) as oldest_id
  from dead_letters d
  group by d.fingerprint, d.queue, d.message_type, d.reason, d.error_class;
comment on view dead_letter_groups is 'Dead letters by cause.';

do $$
declare
  v_view text;
begin
  if current_setting('server_version_num')::integer >= 150000 then
    foreach v_view in array array['all_messages', 'blocked_conversations', 'message_queue_health', 'dead_letter_groups'] loop
      execute format('alter view %I set (security_invoker = true)', v_view);
    end loop;
  end if;
end
$$;

create function explain_message(p_id bigint)
returns table (gate text, passed boolean, detail text, earliest_start timestamptz)
language plpgsql stable set search_path from current as $$
-- Why is this message not running? The gates in the order in which the claim meets them, each passed or
-- not, with the holder and the earliest start where it is known (SPEC Q8b). Nothing is locked.
declare
  v_now constant timestamptz := clock_timestamp();
  v_m message_queue;
  v_q queues;
  v_holder record;
  v_running bigint;
  v_rank bigint;
  v_isolation boolean;
  v_end text;
begin
  select * into v_m from message_queue where id = p_id;
  if not found then
    select a.state || ' at ' || a.finished_at || coalesce(': ' || a.reason, '') into v_end from message_archive a where a.id = p_id limit 1;
    if v_end is null then
      select format('dead at %s: %s', d.dead_at, d.reason) into v_end from dead_letters d where d.id = p_id;
    end if;
    return query select 'exists', false, coalesce(v_end, 'no message with this id'), null::timestamptz;
    return;
  end if;
  select * into v_q from queues where name = v_m.queue;
  return query select 'exists', true, format('type %s on queue %s', v_m.message_type, v_m.queue), null::timestamptz;
  if v_m.completion_refused_at is not null then
    return query select 'state', false, format('its handler was done at %s and the database refused to write that: %s. It does not run again: '
      'the completion is tried again, until it works or an operator runs, buries or cancels it', v_m.completion_refused_at, v_m.error ->> 'message'),
      null::timestamptz;
    return;
  elsif v_m.state = 'running' then
    return query select 'state', true, format('it runs: held by %s, attempt %s, lease until %s%s%s', v_m.lease_holder, v_m.attempt,
      v_m.lease_expires_at, case when v_m.lease_expires_at < v_now then ', which is over: its holder is gone or out of contact, and rescue returns it' else '' end,
      case when v_m.cancel_requested_at is not null then ', cancel requested' else '' end), null::timestamptz;
    return;
  end if;
  return query select 'state', v_m.state = 'pending', v_m.state::text, null::timestamptz;
  return query select 'run_at', v_m.run_at <= v_now,
    case when v_m.run_at <= v_now then 'due' else format('due at %s%s', v_m.run_at,
      case when v_m.attempt > 0 then format(' (retry after attempt %s)', v_m.attempt) else '' end) end,
    case when v_m.run_at > v_now then v_m.run_at end;
  if v_m.expires_at is not null then
    return query select 'expires_at', v_m.expires_at > v_now, format('not worth doing after %s', v_m.expires_at), null::timestamptz;
  end if;
  return query select 'queue', v_q.name is not null and v_q.paused_at is null,
    case when v_q.name is null then format('nobody has declared it: select declare_queue(%L)', v_m.queue)
      when v_q.paused_at is null then 'not paused' else format('paused at %s by %s', v_q.paused_at, v_q.paused_by) end,
    null::timestamptz;
  if v_m.conversation_key is not null then
    select h.* into v_holder from conversation_holders(v_m.conversation_key, v_m.id) h
    order by h.holder_kind = 'running' desc, h.holder_kind = 'dead' desc, h.holder_id limit 1;
    return query select 'conversation', not found and v_m.state = 'pending',
      case when found then format('held by message %s (%s)', v_holder.holder_id, v_holder.holder_kind)
        when v_m.state = 'blocked' then 'waits for its turn in the conversation'
        else 'first in its conversation' end,
      (select h.run_at from message_queue h where h.id = v_holder.holder_id and h.state = 'pending' and h.run_at > v_now);
  end if;
  if v_q.max_concurrency is not null then
    select count(*) into v_running from message_queue r where r.queue = v_m.queue and r.state = 'running' and r.lease_token is not null;
    return query select 'max_concurrency', v_running < v_q.max_concurrency,
      format('%s of %s running', v_running, v_q.max_concurrency), null::timestamptz;
  end if;
  if v_q.max_concurrency_per_key is not null and v_m.concurrency_key is not null then
    select count(*) into v_running from message_queue r
    where r.queue = v_m.queue and r.state = 'running' and r.concurrency_key = v_m.concurrency_key;
    return query select 'max_concurrency_per_key', v_running < v_q.max_concurrency_per_key,
      format('%s of %s running with this key', v_running, v_q.max_concurrency_per_key), null::timestamptz;
  end if;
  if v_q.rate_limit is not null then
    return query select 'rate_limit', rate_tokens_at(v_q, v_now) >= 1,
      format('%s starts per %s', v_q.rate_limit, v_q.rate_interval),
      case when rate_tokens_at(v_q, v_now) < 1
        then v_now + (1 - rate_tokens_at(v_q, v_now)) * v_q.rate_interval / v_q.rate_limit end;
  end if;
  select count(*) filter (where not w.isolation), coalesce(bool_or(w.isolation), false) into v_running, v_isolation from workers w
  where v_now - w.last_seen_at <= w.lease_duration and w.state = 'running'
    and v_m.message_type::text = any (w.message_types) and v_m.queue::text = any (w.queues);
  return query select 'worker', v_running > 0,
    case when v_running > 0 then format('%s live worker(s) register the type', v_running)
      else 'no live worker registers this type on this queue' end, null::timestamptz;
  if v_m.crashes >= 2 then -- these stand in a line of their own
    return query select 'isolation', v_isolation,
      format('it was there when %s processes died, so it runs apart from all others: %s', v_m.crashes,
        case when v_isolation then 'a process for such messages runs' else 'a worker starts a process for such messages' end), null::timestamptz;
    select count(*) into v_rank from (
      select from message_queue e
      where e.queue = v_m.queue and e.state = 'pending' and e.crashes >= 2 and e.run_at <= v_now and (e.run_at, e.id) < (v_m.run_at, v_m.id)
      limit 10000) ahead;
  else
    select count(*) into v_rank from (
      select from message_queue e
      where e.queue = v_m.queue and e.state = 'pending' and e.crashes < 2 and e.run_at <= v_now
        and (e.priority, e.run_at, e.id) < (v_m.priority, v_m.run_at, v_m.id)
      limit 10000) ahead;
  end if;
  return query select 'rank', v_rank = 0, case when v_rank >= 10000 then 'more than 10000' else v_rank::text end || ' ahead in its queue',
    null::timestamptz;
end
$$;
comment on function explain_message(bigint) is 'Why is this message not running? Gates in order, passed or not.';

-- Settle: what becomes of a claimed message (SPEC P1, P2, Q2-Q5). One function per verb, each one
-- UPDATE or DELETE that names the state and the lease token; zero rows means "somebody else owns it".
--
-- Lock order everywhere: message rows by id, then blocked rows of their conversations.
-- lock_timeout: a row that somebody keeps locked (an open psql session) stops the verb after half a second with
-- an error, and the caller goes on with its other messages. A caller that gave up by its own clock would leave
-- a session behind that waits on, and holds what it has locked already.
-- Lock and duration: new objects only, milliseconds.

create function promote_conversations(p_keys text[]) returns bigint[]
language plpgsql set search_path from current as $$
-- After messages left these conversations: the first blocked message of each becomes pending.
-- Must be a statement of its own after the one that removed them: its snapshot has to see what was
-- blocked while that one waited (0007). Returns the ids promoted.
-- Under a snapshot that lasts for the whole transaction it would not see them, and the conversation would
-- wait for ever: refused with PH001.
declare
  v_key text;
  v_id bigint;
  v_queue text;
  v_promoted bigint[] := '{}';
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform refuse_argument('transaction_isolation', 'messages with a conversation_key leave it in READ COMMITTED only',
      'begin transaction isolation level read committed');
  end if;
  -- most conversations have nothing that waits: find those that have with one look each. Not with EXISTS: planned while
  -- the table was empty, that is a join which reads the blocked messages of all conversations
  for v_key in
    select k.key from unnest(p_keys) as k (key)
    cross join lateral (
      select m.id from message_queue m where m.conversation_key = k.key and m.state = 'blocked' limit 1) b
  loop
    loop
      select m.id into v_id from message_queue m
      where m.conversation_key = v_key and m.state = 'blocked'
        and not exists (select from dead_letters d where d.conversation_key = v_key and d.blocks_conversation)
      order by m.id limit 1;
      exit when not found;
      update message_queue m set state = 'pending'
      where m.id = v_id and m.state = 'blocked' returning m.queue into v_queue;
      if found then
        v_promoted := v_promoted || v_id;
        perform wake_queue(v_queue);
        exit;
      end if;
      -- cancelled by somebody in the meantime: look for the next one
    end loop;
  end loop;
  return v_promoted;
end
$$;
comment on function promote_conversations(text[]) is 'The first blocked message of each conversation becomes pending.';

create function ensure_message_archive_partitions(p_days_ahead integer default 7) returns integer
language plpgsql security definer set search_path from current set lock_timeout = '500ms' as $$
-- Make the archive's partitions from today to p_days_ahead (0..60) days ahead, UTC; returns how many are new.
-- SECURITY DEFINER with a pinned search_path: only the owner of the table may make partitions.
-- Attaching takes SHARE UPDATE EXCLUSIVE on the parent: readers and writers go on. While somebody else has that for long
-- (DETACH CONCURRENTLY behind a dump) it fails with 55P03, and the next call makes them.
declare
  v_day date;
  v_name text;
  v_made integer := 0;
begin
  if p_days_ahead is null or p_days_ahead not between 0 and 60 then
    perform refuse_argument('days_ahead', 'must be between 0 and 60');
  end if;
  perform pg_advisory_xact_lock(hashtext('packhorse.message_archive'));
  for v_day in select d::date from generate_series((clock_timestamp() at time zone 'UTC')::date,
      (clock_timestamp() at time zone 'UTC')::date + p_days_ahead, interval '1 day') d loop
    continue when partition_covers('message_archive', v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
    v_name := 'message_archive_' || to_char(v_day, 'YYYYMMDD');
    for v_other in 2..100 loop -- a table that was detached has the name still: completions do not wait for somebody to look at it
      exit when to_regclass(v_name) is null;
      v_name := 'message_archive_' || to_char(v_day, 'YYYYMMDD') || '_' || v_other;
    end loop;
    perform create_partition_table('message_archive', current_schema(), v_name);
    execute format('alter table message_archive attach partition %I for values from (%L) to (%L)',
      v_name, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
    perform finish_partition('message_archive', v_name::regclass);
    v_made := v_made + 1;
  end loop;
  return v_made;
end
$$;
comment on function ensure_message_archive_partitions(integer) is 'Make the archive''s daily partitions ahead; returns how many are new.';

create function archive_messages(p_ids bigint[], p_tokens bigint[]) returns table (id bigint, conversation_key text)
language plpgsql set search_path from current as $$
-- running -> done, for every pair (id, token) that still holds its lease. Tokens are unique per claimed
-- message, so two plain ANY conditions are an exact fence. Queues with keep_done = 0 keep nothing.
declare
  v_unkept text[] := array(select q.name::text from queues q where q.keep_done = interval '0');
begin
  perform set_config('packhorse.promotes', 'on', true); -- the caller does: see promote_after_delete
  return query
  with done as (
    delete from message_queue m
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning m.id, m.queue, m.message_type, m.payload, m.options, m.priority, m.attempt, m.crashes, m.conversation_key,
      m.correlation_id, m.trace_context, m.error, m.history, m.lease_holder, m.created_at, m.claimed_at
  ), kept as (
    insert into message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes,
      conversation_key, correlation_id, trace_context, error, history, lease_holder, created_at, claimed_at)
    select d.id, d.queue, d.message_type, d.payload, d.options, d.priority, 'done', d.attempt, d.crashes,
      d.conversation_key, d.correlation_id, d.trace_context, d.error, d.history, d.lease_holder, d.created_at, d.claimed_at
    from done d where d.queue <> all (v_unkept)
  )
  select d.id, d.conversation_key::text from done d;
end
$$;
comment on function archive_messages(bigint[], bigint[]) is 'Used by complete: delete running messages by lease token and archive them as done.';

create function settle_done(p_ids bigint[], p_tokens bigint[], out done_ids bigint[], out promoted_ids bigint[])
language plpgsql set search_path from current as $$
-- Complete messages and promote their conversations. A missing archive partition is made and the
-- statement repeated: finished work is never lost for want of a table.
declare
  v_keys text[];
begin
  begin
    select array_agg(a.id), array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into done_ids, v_keys from archive_messages(p_ids, p_tokens) a;
  exception when check_violation then
    perform ensure_message_archive_partitions();
    select array_agg(a.id), array_agg(distinct a.conversation_key) filter (where a.conversation_key is not null)
    into done_ids, v_keys from archive_messages(p_ids, p_tokens) a;
  end;
  done_ids := coalesce(done_ids, '{}');
  if v_keys is not null then
    promoted_ids := promote_conversations(v_keys);
  end if;
  perform set_config('packhorse.promotes', 'off', true);
end
$$;
comment on function settle_done(bigint[], bigint[]) is 'Used by complete_messages and complete_and_claim_messages.';

create function complete_messages(p_ids bigint[], p_tokens bigint[]) returns bigint[]
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- running -> done for each pair of message id and lease token; returns the ids that were completed.
-- An id that is missing from the answer was lost: its lease expired and somebody else owns it.
-- Locks the message rows. Arrays of equal length, at most 10000, else PH001.
begin
  if cardinality(p_ids) is distinct from cardinality(p_tokens) or cardinality(p_ids) > 10000 then
    perform refuse_argument('tokens', 'ids and tokens must have the same length, at most 10000');
  end if;
  return (select s.done_ids from settle_done(p_ids, p_tokens) s);
end
$$;
comment on function complete_messages(bigint[], bigint[]) is 'running -> done, fenced by lease tokens; returns the ids completed.';

create function claim_one_by_one(
  p_ids bigint[], p_holder uuid, p_now timestamptz, p_lease interval, p_sqlstate text, p_error text
) returns setof claimed_message
language plpgsql set search_path from current as $$
-- Used by the claim when the database refuses to lease a batch, with p_sqlstate and p_error: each row alone. One whose
-- own values or whose own trigger is the reason (data errors, constraints, RAISE) can never run and becomes a dead
-- letter `rejected`. One that is refused for another reason is left with a warning. When that goes for all of them, it
-- is no row that is at fault: the error is raised.
declare
  v_id bigint;
  v_row claimed_message;
  v_ended integer := 0;
begin
  for v_id in select m.id from message_queue m where m.id = any (p_ids) order by m.priority, m.run_at, m.id loop
    begin
      update message_queue m
      set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
          lease_token = nextval('message_lease_token_seq'), lease_expires_at = p_now + p_lease, claimed_at = p_now
      where m.id = v_id and m.state = 'pending'
      returning 'claimed', m.id, m.lease_token, m.queue, m.message_type, m.payload, m.options, m.priority, m.attempt, m.max_attempts,
        m.crashes, m.conversation_key, m.correlation_id, m.trace_context, m.run_at, m.created_at, m.lease_expires_at
      into v_row;
      if found then
        v_ended := v_ended + 1;
        return next v_row;
      end if;
    exception
      when unique_violation then
        v_ended := v_ended + 1; -- another message of its conversation has just started
      when others then
        begin
          if left(sqlstate, 2) not in ('22', '23', '44', 'P0') then
            raise;
          end if;
          perform move_to_dead_letters(array[v_id], null, 'rejected', 'UnclaimableMessage',
            format('the database refuses to lease it: %s (%s)', sqlerrm, sqlstate), null, null);
          v_ended := v_ended + 1;
        exception when others then
          raise warning using errcode = sqlstate, message = format('message %s cannot be claimed: %s', v_id, sqlerrm);
        end;
    end;
  end loop;
  if v_ended = 0 then
    raise exception using errcode = p_sqlstate, message = p_error;
  end if;
end
$$;
comment on function claim_one_by_one(bigint[], uuid, timestamptz, interval, text, text)
  is 'Used by the claim: lease each row of a refused batch alone; one that can never be leased becomes a dead letter.';

create function complete_and_claim_messages(
  p_ids      bigint[],
  p_tokens   bigint[],
  p_holder   uuid,
  p_queues   text[],
  p_limit    integer,
  p_lease    interval      default '5 minutes',
  p_types    text[]        default null,
  p_cursor   timestamptz[] default null,
  p_isolated boolean       default false,
  p_first    bigint[]      default '{}',
  p_until    timestamptz[] default null
) returns setof claimed_message
language plpgsql set search_path from current set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Complete these, claim those: one round trip, one commit. Rows by (priority, run_at, id), `outcome` is
--   claimed  a message, leased to p_holder until lease_expires_at
--   lost     a completion came too late: only id and lease_token are set
--   promoted a conversation went on, but its message was not claimed now: pass its id in p_first next time
--   isolated messages that were there when two processes died could start: claim them where nothing else runs,
--            with p_isolated = true, which claims no others
--   next     nothing was claimed; look again at run_at (which created_at repeats): a message will be due, a rate limit
--            will allow a start, or, when that is now, something was in the way that will not be next time
-- p_queues in order of preference; p_limit 0..10000; p_types null means every type;
-- p_cursor, p_until: ten timestamps per queue (one per priority), look from there up to, not including, there;
-- null looks from the start and without an end, see the head of 0007. p_first: messages to look at wherever they
-- are; those whose conversation goes on with this very call are among them anyway.
declare
  v_now timestamptz;
  v_done record;
  v_first bigint[] := p_first;
  v_ids bigint[] := '{}';
  v_some bigint[];
  v_promoted bigint[];
  v_want integer;
  v_locked boolean := false; -- the row of a queue with limits
  v_since timestamptz[];
  v_until timestamptz[];
  v_index integer := 0;
  v_queue queues;
  v_name text;
  v_due timestamptz;
  v_next timestamptz;
begin
  if p_limit is null or p_limit not between 0 and 10000 then
    perform refuse_argument('limit', format('%s is out of range', p_limit), '0 to 10000.');
  elsif p_lease is null or p_lease not between interval '1 second' and interval '1 day' then
    perform check_lease(p_lease);
  elsif p_holder is null then
    perform refuse_argument('holder', 'must not be null', 'A uuid that is fresh for every process start.');
  elsif p_queues is null then
    perform refuse_argument('queues', 'must not be null', 'The names of the queues, preferred ones first.');
  end if;
  if cardinality(p_ids) > 0 then
    select * into v_done from settle_done(p_ids, p_tokens);
    if cardinality(v_done.done_ids) < cardinality(p_ids) then
      return query select 'lost', l.id, l.token, null::text, null::text, null::jsonb, null::jsonb, null::integer,
        null::integer, null::integer, null::integer, null::text, null::text, null::text,
        null::timestamptz, null::timestamptz, null::timestamptz
      from unnest(p_ids, p_tokens) as l (id, token) where l.id <> all (v_done.done_ids);
    end if;
    v_first := v_first || v_done.promoted_ids;
  end if;
  v_now := clock_timestamp();
  foreach v_name in array p_queues loop
    exit when p_limit <= cardinality(v_ids);
    v_since := p_cursor[v_index * 10 + 1 : v_index * 10 + 10];
    v_until := p_until[v_index * 10 + 1 : v_index * 10 + 10];
    v_index := v_index + 1;
    select * into v_queue from queues q where q.name = v_name;
    if not found then
      perform require_queue(v_name);
    end if;
    v_want := queue_allowance(v_queue, p_limit - cardinality(v_ids), v_now, not v_locked);
    if v_want is null then
      v_next := v_now + interval '50 milliseconds'; -- another claim looks at it; this one waits for no second queue
      continue;
    end if;
    v_locked := v_locked or v_queue.max_concurrency is not null or v_queue.max_concurrency_per_key is not null
      or v_queue.rate_limit is not null;
    if v_want <= 0 then
      if v_queue.rate_limit is not null then
        v_next := least(v_next, next_start_at(v_name, v_now)); -- nobody else tells when the next token is there
      end if;
      continue;
    end if;
    v_promoted := '{}';
    if cardinality(v_first) > 0 and not p_isolated
        and v_queue.max_concurrency is null and v_queue.max_concurrency_per_key is null and v_queue.rate_limit is null then
      -- they take their place among the others: served first, conversations that go on and on would starve all else, and
      -- the caller's cursor would go past messages that nobody has looked at
      v_promoted := pick_promoted_messages(v_first, v_name, v_want, p_types, v_now);
      if cardinality(v_promoted) = v_want then -- of the others, only what comes before the last of these matters
        select array_agg(case when l.priority < w.priority then v_until[l.priority]
          when l.priority = w.priority then least(v_until[l.priority], w.run_at) else '-infinity' end order by l.priority)
        into v_until from generate_series(1, 10) as l (priority), message_queue w where w.id = v_promoted[v_want];
      end if;
    end if;
    v_some := pick_due_messages(v_name, v_want, v_queue.max_concurrency_per_key, p_types, v_since, v_until, p_isolated, v_now);
    if v_some is null then
      v_next := v_now; -- the next call gets further
    end if;
    if cardinality(v_some) > 0 then
      if v_queue.rate_limit is not null then
        update queues q set rate_tokens = rate_tokens_at(q, v_now) - cardinality(v_some), rate_refilled_at = v_now
        where q.name = v_name and q.rate_limit is not null;
      end if;
    end if;
    if cardinality(v_promoted) > 0 then
      v_some := array(
        select m.id from message_queue m where m.id = any (v_some || v_promoted) order by m.priority, m.run_at, m.id limit v_want);
    end if;
    v_ids := v_ids || v_some;
  end loop;
  if cardinality(v_ids) > 0 then
    begin
      return query
      with claimed as (
        update message_queue m
        set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder,
            lease_token = nextval('message_lease_token_seq'), lease_expires_at = v_now + p_lease, claimed_at = v_now
        where m.id = any (v_ids) and m.state = 'pending'
        returning m.id, m.lease_token, m.queue, m.message_type, m.payload, m.options, m.priority, m.attempt, m.max_attempts,
          m.crashes, m.conversation_key, m.correlation_id, m.trace_context, m.run_at, m.created_at, m.lease_expires_at
      )
      select 'claimed', c.id, c.lease_token, c.queue::text, c.message_type::text, c.payload::jsonb, c.options::jsonb,
        c.priority::integer, c.attempt, c.max_attempts::integer, c.crashes::integer, c.conversation_key::text, c.correlation_id::text,
        c.trace_context::text, c.run_at, c.created_at, c.lease_expires_at
      from claimed c order by c.priority, c.run_at, c.id;
    exception
      when unique_violation then
        -- two claims started different messages of one conversation in the same instant (a late commit
        -- with a smaller id); the other one won, this batch is still pending and is found by the next claim
        v_ids := '{}';
        v_next := v_now;
      when others then
        -- one row that cannot be leased must not keep the others from it
        return query select c.* from claim_one_by_one(v_ids, p_holder, v_now, p_lease, sqlstate, sqlerrm) c;
        v_next := v_now;
    end;
  end if;
  if cardinality(v_first) > 0 then
    return query select 'promoted', m.id, null::bigint, null::text, null::text, null::jsonb, null::jsonb,
      null::integer, null::integer, null::integer, null::integer, null::text, null::text, null::text,
      null::timestamptz, null::timestamptz, null::timestamptz
    from message_queue m
    where m.id = any (v_first) and m.id <> all (v_ids) and m.state = 'pending' and m.run_at <= v_now
      and m.queue = any (p_queues) and (p_types is null or m.message_type = any (p_types));
  end if;
  if cardinality(v_ids) = 0 and p_limit > 0 and not p_isolated then -- who got something is back before he sleeps
    select min(d.run_at) into v_due
    from unnest(p_queues) as q (name)
    cross join generate_series(0, 10) as level (priority) -- 0 stands for the isolated ones
    cross join lateral (
      (select m.run_at from message_queue m
       where level.priority > 0 and m.queue = q.name and m.state = 'pending' and m.crashes < 2
         and m.priority = level.priority and m.run_at > v_now
       order by m.run_at limit 1)
      union all
      (select m.run_at from message_queue m
       where level.priority = 0 and m.queue = q.name and m.state = 'pending' and m.crashes >= 2 and m.run_at > v_now
       order by m.run_at limit 1)) d;
    v_next := least(v_next, v_due);
    -- one that expired in front of its conversation holds it up, and workers that have nothing to do are the first to mind
    if cardinality(p_ids) = 0 and exists (select from message_queue m where m.expires_at <= v_now and m.state <> 'running') then
      begin
        perform expire_messages(100);
      exception when others then
        null; -- no reason to claim nothing; the heartbeats, which expire all others, say what is wrong
      end;
    end if;
    if v_next is not null then
      return query select 'next', null::bigint, null::bigint, null::text, null::text, null::jsonb, null::jsonb,
        null::integer, null::integer, null::integer, null::integer, null::text, null::text, null::text,
        v_next, v_next, null::timestamptz;
    end if;
  end if;
  -- nearly always there is none; setting up the second look costs more than running it
  if not p_isolated and exists (select from message_queue m where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2) then
    if exists (
      select from message_queue m
      where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2 and m.run_at <= v_now
        and (m.expires_at is null or m.expires_at > v_now)
        and (p_types is null or m.message_type = any (p_types))
        and exists (select from queues q where q.name = m.queue and q.paused_at is null
                    and (q.rate_limit is null or rate_tokens_at(q, v_now) >= 1)
                    and (q.max_concurrency is null or q.max_concurrency > (
                      select count(*) from message_queue r where r.queue = q.name and r.state = 'running' and r.lease_token is not null))
                    and (m.concurrency_key is null or q.max_concurrency_per_key is null or q.max_concurrency_per_key > (
                      select count(*) from message_queue r
                      where r.queue = m.queue and r.state = 'running' and r.concurrency_key = m.concurrency_key)))
        and (m.conversation_key is null or not exists (select from conversation_holders(m.conversation_key, m.id)))) then
      return query select 'isolated', null::bigint, null::bigint, null::text, null::text, null::jsonb, null::jsonb,
        null::integer, null::integer, null::integer, null::integer, null::text, null::text, null::text,
        null::timestamptz, null::timestamptz, null::timestamptz;
    end if;
  end if;
end
$$;
comment on function complete_and_claim_messages(bigint[], bigint[], uuid, text[], integer, interval, text[], timestamptz[], boolean, bigint[],
  timestamptz[]) is 'Complete these, claim those: one round trip and one commit.';

create function claim_messages(
  p_holder   uuid,
  p_queues   text[],
  p_limit    integer       default 1,
  p_lease    interval      default '5 minutes',
  p_types    text[]        default null,
  p_cursor   timestamptz[] default null,
  p_isolated boolean       default null
) returns setof claimed_message
language plpgsql set search_path from current as $$
-- Take up to p_limit due messages and lease them to p_holder. Never waits for rows that others hold.
-- p_isolated null, for a caller that runs one message at a time: ordinary ones first, then one that was there when two
-- processes died; one of these that has been due for five seconds comes first, so that a backlog does not starve it.
begin
  if p_isolated is null and p_limit > 0 and exists (
      select from message_queue m where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2
        and m.run_at < clock_timestamp() - interval '5 seconds') then
    return query
    select c.* from complete_and_claim_messages('{}', '{}', p_holder, p_queues, 1, p_lease, p_types, null, true) c
    where c.outcome = 'claimed';
    if found then
      return;
    end if;
  end if;
  return query
  select c.* from complete_and_claim_messages('{}', '{}', p_holder, p_queues, p_limit, p_lease, p_types, p_cursor,
    coalesce(p_isolated, false)) c where c.outcome = 'claimed';
  if not found and p_isolated is null and p_limit > 0 then
    return query
    select c.* from complete_and_claim_messages('{}', '{}', p_holder, p_queues, 1, p_lease, p_types, null, true) c
    where c.outcome = 'claimed';
  end if;
end
$$;
comment on function claim_messages(uuid, text[], integer, interval, text[], timestamptz[], boolean)
  is 'Take due messages and lease them; by (priority, run_at, id); empty when nothing is due.';

-- Claim: take due messages and lease them, in one statement per batch (SPEC P2, P4, P5, Q8, Q10).
-- claim_pick.sql chooses and locks them, claim_hints.sql says what there is to say besides.
--
-- Plans. A worker that starts on an empty queue caches plans made for an empty table, where reading all of
-- it is the cheapest, and keeps them while a million rows arrive. So the functions that callers call set
-- enable_seqscan = off (for all that runs inside them), and jit = off: what no index serves, like the
-- few rows of `queues`, would look expensive enough to compile. plan_cache_mode = force_generic_plan: with
-- the cost of forbidden scans in them custom plans never look dearer than the generic one, and half of an
-- empty claim was planning.

create or replace function packhorse.check_claim_arguments(
  p_holder uuid, p_queues text[], p_limit integer, p_lease interval
) returns void
language plpgsql immutable as $$
-- Raise PH001 for the first bad argument of a claim.
begin
  if p_limit is null or p_limit not between 0 and 10000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', p_limit), '0 to 10000.');
  elsif p_holder is null then
    perform packhorse.refuse_argument('holder', 'must not be null',
      'A uuid that is fresh for every process start.');
  elsif p_queues is null then
    perform packhorse.refuse_argument('queues', 'must not be null',
      'The names of the queues, preferred ones first.');
  end if;
  perform packhorse.check_lease(p_lease);
end
$$;
comment on function packhorse.check_claim_arguments(uuid, text[], integer, interval)
  is 'Raise PH001 for the first bad argument of a claim.';

create or replace function packhorse.claim_one_by_one(
  p_ids bigint[], p_holder uuid, p_now timestamptz, p_lease interval, p_sqlstate text, p_error text
) returns setof packhorse.claimed_message
language plpgsql as $$
-- Used by the claim when the database refuses to lease a batch, with p_sqlstate and p_error: each row
-- alone. One whose own values or whose own trigger is the reason (data errors, constraints, RAISE) can never
-- run and becomes a dead letter `rejected`. One that is refused for another reason is left with a warning.
-- When that goes for all of them, it is no row that is at fault: the error is raised.
declare
  v_id bigint;
  v_row packhorse.claimed_message;
  v_ended integer := 0;
begin
  for v_id in
    select m.id from packhorse.message_queue m where m.id = any (p_ids) order by m.priority, m.run_at, m.id
  loop
    begin
      update packhorse.message_queue m
      set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder, claimed_at = p_now,
          lease_token = nextval('packhorse.message_lease_token_seq'), lease_expires_at = p_now + p_lease
      where m.id = v_id and m.state = 'pending'
      returning m.id, m.lease_token, m.queue, m.message_type, m.payload,
        case when m.attempt > 1 then packhorse.retried_options(m.options, m.history) else m.options end,
        m.priority, m.attempt, m.max_attempts, m.crashes, m.conversation_key, m.correlation_id,
        m.trace_context, m.run_at, m.created_at, m.lease_expires_at, m.steps
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
          perform packhorse.move_to_dead_letters(array[v_id], null, 'rejected', 'UnclaimableMessage',
            format('the database refuses to lease it: %s (%s)', sqlerrm, sqlstate), null, null);
          v_ended := v_ended + 1;
        exception when others then
          raise warning using errcode = sqlstate,
            message = format('message %s cannot be claimed: %s', v_id, sqlerrm);
        end;
    end;
  end loop;
  if v_ended = 0 then
    raise exception using errcode = p_sqlstate, message = p_error;
  end if;
end
$$;
comment on function packhorse.claim_one_by_one(bigint[], uuid, timestamptz, interval, text, text)
  is 'Used by the claim: lease each row of a refused batch alone; one that never can becomes a dead letter.';

create or replace function packhorse.finish_before_claim(
  p_ids bigint[], p_tokens bigint[], p_limit integer, p_types text[], p_first bigint[],
  out now timestamptz, out types text[], out lost bigint[], out first_ids bigint[], out ids bigint[],
  out next_at timestamptz
)
language plpgsql as $$
-- Used by the claim: everything before it chooses. types: p_types, patterns first. lost: of p_ids, those
-- whose completion came too late. first_ids: p_first and those whose conversation goes on now. ids, next_at:
-- null, nothing has been chosen (pick_from_queues).
declare
  v_done record;
begin
  types := p_types;
  first_ids := p_first;
  if cardinality(p_ids) > 0 then
    v_done := packhorse.finish_done(p_ids, p_tokens);
    if cardinality(v_done.done_ids) < cardinality(p_ids) then
      lost := array(select l.id from unnest(p_ids) as l (id) where l.id <> all (v_done.done_ids));
    end if;
    first_ids := first_ids || v_done.promoted_ids;
  end if;
  now := clock_timestamp();
  if p_limit > 0 then
    if packhorse.is_copy() then
      perform packhorse.refuse_copy();
    end if;
    if right(types[1], 1) <> '*' and types::text like '%*%' then
      types := packhorse.patterns_first(types);
    end if;
  end if;
end
$$;
comment on function packhorse.finish_before_claim(bigint[], bigint[], integer, text[], bigint[])
  is 'Used by the claim: complete what is done, before it chooses what may start.';

create or replace function packhorse.complete_and_claim_messages(
  p_ids bigint[], p_tokens bigint[], p_holder uuid, p_queues text[], p_limit integer,
  p_lease interval default '5 minutes', p_types text[] default null, p_cursor timestamptz[] default null,
  p_isolated boolean default false, p_first bigint[] default '{}', p_until timestamptz[] default null,
  p_forward text default null
) returns setof packhorse.claim_answer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Complete these, claim those: one round trip, one commit. A row per message, leased to p_holder until
-- lease_expires_at, in no order: the caller sorts by (priority, run_at, id), for a sort here copies each
-- row twice more. Then at most one row of hints (claim_hints). p_queues in order of preference; p_limit
-- 0..10000; p_types null: every type; `order.*`: see names_type. p_cursor, p_until: ten timestamps per
-- queue (one per priority), look from there up to, not including, there; null looks from the start and
-- without an end (claim_pick.sql). p_isolated: those that were there when two processes died, and no
-- others. p_first: to look at wherever they are; those whose conversation goes on with this call are among
-- them anyway. p_forward: see queue_goes_to.
declare
  v record; v_pick record; v_leased integer := 0; v_hints packhorse.claim_answer;
begin
  if (p_limit between 0 and 10000 and p_lease between interval '1 second' and interval '1 day'
      and p_holder is not null and p_queues is not null) is not true then
    perform packhorse.check_claim_arguments(p_holder, p_queues, p_limit, p_lease);
  end if;
  v := packhorse.finish_before_claim(p_ids, p_tokens, p_limit, p_types, p_first);
  v_pick := v; -- none yet
  if p_limit > 0 then
    begin -- the choice, too: locked outside and updated here a row has a multixact, and no scan marks it dead
      v_pick := packhorse.pick_from_queues(p_queues, p_limit, v.types, p_cursor, p_until, p_isolated,
        v.first_ids, p_forward, v.now);
      update packhorse.message_queue m
      set state = 'running', attempt = m.attempt + 1, lease_holder = p_holder, claimed_at = v.now,
          lease_token = nextval('packhorse.message_lease_token_seq'), lease_expires_at = v.now + p_lease
      where m.id = any (v_pick.ids) and m.state = 'pending';
      -- read once all are leased: what is returned stays so when the block is undone
      return query
      select null::jsonb, m.id, m.lease_token, m.queue::text, m.message_type::text, m.payload::jsonb,
        case when m.attempt > 1 then packhorse.retried_options(m.options, m.history)
          else m.options end::jsonb, m.priority::integer, m.attempt, m.max_attempts::integer,
        m.crashes::integer, m.conversation_key::text, m.correlation_id::text, m.trace_context::text, m.run_at,
        m.created_at, m.lease_expires_at, m.steps
      from packhorse.message_queue m where m.id = any (v_pick.ids) and m.lease_token is not null;
      get diagnostics v_leased = row_count;
    exception
      when unique_violation then null; -- two claims started different messages of one conversation at once
      when others then -- one row that cannot be leased must not keep the others from it
        v_pick := packhorse.pick_from_queues(
          p_queues, p_limit, v.types, p_cursor, p_until, p_isolated, v.first_ids, p_forward, v.now);
        return query select null::jsonb, c.*
        from packhorse.claim_one_by_one(v_pick.ids, p_holder, v.now, p_lease, sqlstate, sqlerrm) c;
        get diagnostics v_leased = row_count;
    end;
  end if;
  v_hints.hints := packhorse.claim_hints(
    v.lost, v.first_ids, case when v_leased > 0 then v_pick.ids else '{}' end, p_queues, v.types,
    p_limit, p_isolated, p_forward, cardinality(p_ids) = 0,
    -- what was in the way of a lease will not be next time
    case when v_leased < cardinality(v_pick.ids) then v.now else v_pick.next_at end, v.now);
  if v_hints.hints is not null then
    return next v_hints;
  end if;
end
$$;
comment on function packhorse.complete_and_claim_messages(bigint[], bigint[], uuid, text[], integer, interval,
  text[], timestamptz[], boolean, bigint[], timestamptz[], text)
  is 'Complete these, claim those: one round trip and one commit.';

create or replace function packhorse.claim_messages(
  p_holder   uuid,
  p_queues   text[],
  p_limit    integer       default 1,
  p_lease    interval      default '5 minutes',
  p_types    text[]        default null,
  p_cursor   timestamptz[] default null,
  p_isolated boolean       default null
) returns setof packhorse.claimed_message
language plpgsql as $$
-- Take up to p_limit due messages and lease them to p_holder. Never waits for rows that others hold.
-- p_isolated null, for a caller that runs one message at a time: ordinary ones first, then one that was
-- there when two processes died; one of these that has been due for five seconds comes first, so that a
-- backlog does not starve it.
declare
  v_one_by_one constant boolean := p_isolated is null and p_limit > 0;
  v_isolated boolean;
  v_turns boolean[] := array[coalesce(p_isolated, false)];
begin
  if v_one_by_one then
    v_turns := case when exists (
        select from packhorse.message_queue m
        where m.queue = any (p_queues) and m.state = 'pending' and m.crashes >= 2
          and m.run_at < clock_timestamp() - interval '5 seconds')
      then array[true, false] else array[false, true] end;
  end if;
  foreach v_isolated in array v_turns loop
    return query
    select c.id, c.lease_token, c.queue, c.message_type, c.payload, c.options, c.priority, c.attempt,
      c.max_attempts, c.crashes, c.conversation_key, c.correlation_id, c.trace_context, c.run_at,
      c.created_at, c.lease_expires_at, c.steps
    from packhorse.complete_and_claim_messages('{}', '{}', p_holder, p_queues,
      case when v_isolated and v_one_by_one then 1 else p_limit end,
      p_lease, p_types, case when not v_isolated then p_cursor end, v_isolated) c
    where c.hints is null order by c.priority, c.run_at, c.id;
    exit when found;
  end loop;
end
$$;
comment on function packhorse.claim_messages(uuid, text[], integer, interval, text[], timestamptz[], boolean)
  is 'Take due messages and lease them; by (priority, run_at, id); empty when nothing is due.';

-- Hints: what a claim says besides its messages (SPEC Q10).

create or replace function packhorse.next_due_at(p_queues text[], p_forward text, p_now timestamptz)
returns timestamptz
language plpgsql as $$
-- When the next message of these queues is due that is not due now; one look per queue and priority. Of those
-- that do not go to p_forward none is.
declare
  v_due timestamptz;
begin
  select min(d.run_at) into v_due
  from packhorse.queues q
  cross join generate_series(0, 10) as level (priority) -- 0 stands for the isolated ones
  cross join lateral (
    (select m.run_at from packhorse.message_queue m
     where level.priority > 0 and m.queue = q.name and m.state = 'pending' and m.crashes < 2
       and m.priority = level.priority and m.run_at > p_now
     order by m.run_at limit 1)
    union all
    (select m.run_at from packhorse.message_queue m
     where level.priority = 0 and m.queue = q.name and m.state = 'pending' and m.crashes >= 2
       and m.run_at > p_now
     order by m.run_at limit 1)) d
  where q.name = any (p_queues) and packhorse.queue_goes_to(q, p_forward);
  return v_due;
end
$$;
comment on function packhorse.next_due_at(text[], text, timestamptz)
  is 'Used by the claim: when the next message of these queues is due.';

create or replace function packhorse.isolated_could_start(p_queues text[], p_types text[], p_forward text,
  p_now timestamptz) returns boolean
language plpgsql as $$
-- Could a message that runs apart from all others start now? The gates of pick_isolated_messages, without a
-- lock.
begin
  return exists (
    select from packhorse.message_queue m join packhorse.queues q on q.name = m.queue
    where m.queue = any (p_queues) and m.state = 'pending' and packhorse.runs_apart(m.crashes)
      and packhorse.is_due(m.run_at, p_now) and packhorse.is_worth_doing(m.expires_at, p_now)
      and packhorse.is_wanted(m.message_type, p_types, null)
      and not exists (select from packhorse.resting_scopes(m.message_type, m.queue, p_now))
      and packhorse.queue_is_open(q) and packhorse.queue_goes_to(q, p_forward)
      and (q.rate_limit is null or packhorse.rate_tokens_at(q, p_now) >= 1::float8)
      and (q.max_concurrency is null or packhorse.queue_room(q) > 0)
      and exists (select from packhorse.key_allowance(q, m.concurrency_key, p_now) k
                  where coalesce(k.room, 1) > 0)
      and (m.conversation_key is null
           or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id))));
end
$$;
comment on function packhorse.isolated_could_start(text[], text[], text, timestamptz)
  is 'Used by the claim: could a message that runs apart start now?';

create or replace function packhorse.relay_hints(p_ids bigint[], p_forward text) returns jsonb
language plpgsql as $$
-- What a claim tells a relay only: see claim_hints. A message that leaves the database takes its end with it.
begin
  return jsonb_build_object(
    'forwarded', array(select q.name::text from packhorse.queues q
      where packhorse.queue_goes_to(q, p_forward) order by q.name),
    'expires', (select coalesce(jsonb_object_agg(m.id, extract(epoch from m.expires_at)), '{}')
      from packhorse.message_queue m where m.id = any (p_ids) and isfinite(m.expires_at)));
end
$$;
comment on function packhorse.relay_hints(bigint[], text)
  is 'Used by the claim: queues that are forwarded, and when the claimed messages expire.';

create or replace function packhorse.claim_hints(
  p_lost bigint[], p_first bigint[], p_ids bigint[], p_queues text[], p_types text[], p_limit integer,
  p_isolated boolean, p_forward text, p_idle boolean, p_next timestamptz, p_now timestamptz
) returns jsonb
language plpgsql as $$
-- What a claim has to say besides its messages; null when there is nothing:
--   lost      ids whose completion came too late
--   promoted  ids whose conversation went on and which were not claimed now: pass them in p_first next time
--   next_in   seconds until a look may find something, when nothing was claimed: a message will be due, a
--             rate limit will allow a start, or, when that is 0, what was in the way will not be next time
--   isolated  messages that were there when two processes died could start: claim them where nothing else
--             runs
--   forwarded with p_forward only: the names of all queues that go there
--   expires   with p_forward only: by id, when claimed messages are not worth doing any more (Unix seconds)
declare
  v_promoted bigint[];
  v_next timestamptz := p_next;
  v_isolated boolean;
begin
  if cardinality(p_first) > 0 then
    v_promoted := array(
      select m.id from packhorse.message_queue m
      where m.id = any (p_first) and m.id <> all (p_ids) and m.state = 'pending'
        and packhorse.is_due(m.run_at, p_now)
        and m.queue = any (p_queues) and packhorse.is_wanted(m.message_type, p_types, null)
        -- a claim whose keys take turns finds them by itself, and one for another place does not take them
        and not exists (select from packhorse.queues q
          where q.name = m.queue and (not packhorse.queue_goes_to(q, p_forward) or packhorse.takes_turns(q)
            and (packhorse.has_key_limit(q) or packhorse.turn_key(m) is not null))));
  end if;
  -- who got something is back before he sleeps
  if cardinality(p_ids) = 0 and p_limit > 0 and not p_isolated then
    v_next := least(p_next, packhorse.next_due_at(p_queues, p_forward, p_now));
    -- one that expired in front of its conversation holds it up; workers without work are the first to mind
    if p_idle and exists (
        select from packhorse.message_queue m where m.expires_at <= p_now and m.state <> 'running') then
      begin
        perform packhorse.expire_messages(100);
      exception when others then
        null; -- no reason to claim nothing; the heartbeats, which expire all others, say what is wrong
      end;
    end if;
  else
    v_next := null;
  end if;
  -- nearly always there is none; setting up the second look costs more than running it
  if not p_isolated and exists (
      select from packhorse.message_queue m where m.queue = any (p_queues)
        and m.state = 'pending' and m.crashes >= 2)
      and packhorse.isolated_could_start(p_queues, p_types, p_forward, p_now) then
    v_isolated := true;
  end if;
  if coalesce(p_lost, nullif(v_promoted, '{}')) is null and v_next is null and v_isolated is null
    and p_forward is null then
    return null;
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'lost', p_lost, 'promoted', nullif(to_jsonb(v_promoted), '[]'::jsonb), 'isolated', v_isolated,
    'next_in', case when v_next is not null
      then extract(epoch from least(v_next, timestamptz '9999-01-01') - clock_timestamp()) end))
    || case when p_forward is not null then packhorse.relay_hints(p_ids, p_forward) else '{}' end;
end
$$;
comment on function packhorse.claim_hints(bigint[], bigint[], bigint[], text[], text[], integer, boolean,
  text, boolean, timestamptz, timestamptz) is 'Used by the claim: what it has to say besides its messages.';

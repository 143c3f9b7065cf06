-- The wake-up hint: who sleeps, who watches, and when a producer sends a NOTIFY (SPEC Q10).

create or replace function packhorse.wake_queue(p_queue text) returns void
language plpgsql as $$
-- Tell sleeping workers that the queue has work: one NOTIFY, only when somebody sleeps and nobody watches
-- (SPEC Q10). By the number after the name they know whose turn it is to look, so that not all do; all
-- notifications of a transaction for a queue are one.
begin
  if exists (select from packhorse.queue_wakeups where queue = p_queue and wake_until > clock_timestamp()
      and (attended_until is null or attended_until <= clock_timestamp())) then
    perform pg_notify('packhorse_wake', p_queue || '@' || pg_current_xact_id());
  end if;
end
$$;
comment on function packhorse.wake_queue(text) is
  'Wake a sleeping worker of a queue, after rows were inserted by hand.';

create or replace function packhorse.call_workers(p_queues text[], p_numbers bigint[],
  p_passed integer default 0) returns text[]
language plpgsql as $$
-- For a worker that heard of a message and has no room for it, or that has more than it can start: wake those
-- whose turn these numbers (0..2^32-1) are, where somebody sleeps. p_passed: how often it has been passed on.
-- Returns what was notified, for those who hear by Redis.
declare
  v_words constant text[] := array(
    select format('%s@%s+%s', w.queue, n.number, p_passed)
    from packhorse.queue_wakeups w, unnest(p_numbers) as n (number)
    where w.queue = any (p_queues) and w.wake_until > clock_timestamp());
begin
  perform pg_notify('packhorse_wake', word) from unnest(v_words) as w (word);
  return v_words;
end
$$;
comment on function packhorse.call_workers(text[], bigint[], integer) is
  'A worker without room wakes others; returns what was notified.';

create or replace function packhorse.wake_channel(p_queue text default null) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
-- Where sleeping workers hear of new messages by Redis: its channel for this schema of this database. With a
-- queue: null unless a NOTIFY would be sent for it now, so that a producer learns with its enqueue whether to
-- publish after its commit.
  select format('packhorse:%s:%s', current_database(), 'packhorse.message_queue'::regclass::oid)
  where p_queue is null or exists (select from packhorse.queue_wakeups w
    where w.queue = p_queue and w.wake_until > clock_timestamp()
      and (w.attended_until is null or w.attended_until <= clock_timestamp()))
$$;
comment on function packhorse.wake_channel(text) is
  'The Redis channel of wake-ups; with a queue: null when nobody sleeps on it.';

create or replace function packhorse.announce_sleep(p_queues text[], p_for interval default '10 seconds')
returns void
language plpgsql as $$
-- A worker that found nothing asks producers for a NOTIFY until now + p_for. It must claim once more
-- afterwards: a producer that committed just before did not see the announcement. While it sleeps it asks
-- again before half of p_for has passed: when nobody listens any more, NOTIFY ends with the last request. A
-- row that somebody has locked is looked at again for 0.1 s; whoever keeps it longer keeps no worker from its
-- work.
declare
  v_look integer := 0;
begin
  loop
    update packhorse.queue_wakeups set wake_until = clock_timestamp() + p_for
    where queue in (
      select queue from packhorse.queue_wakeups
      where queue = any (p_queues)
        and (wake_until is null or wake_until < clock_timestamp() + p_for / 2::float8)
      for no key update skip locked);
    v_look := v_look + 1;
    exit when v_look = 10 or not exists (
      select from packhorse.queue_wakeups
      where queue = any (p_queues)
        and (wake_until is null or wake_until < clock_timestamp() + p_for / 2::float8));
    perform pg_sleep(0.01);
  end loop;
end
$$;
comment on function packhorse.announce_sleep(text[], interval) is
  'A sleeping worker asks for NOTIFY; claim once more afterwards.';

create or replace function packhorse.attend_queues(p_queues text[], p_types text[],
  p_for interval default '1 second', p_forward text default null) returns text[]
language plpgsql as $$
-- One awake worker watches these queues until now + p_for: it looks every few milliseconds, and producers
-- need not NOTIFY. Returns the queues that it has got: those that nobody else watches, and on which no live
-- worker of the fleet runs a type that this one (p_types) does not; p_forward as in a claim. keep_attending
-- goes on, hand_over_queues ends it. Waits for nobody: a queue whose row is locked is left out.
declare
  v_got text[];
begin
  with free as (
    select w.queue from packhorse.queue_wakeups w
    where w.queue = any (p_queues) and (w.attended_until is null or w.attended_until <= clock_timestamp())
      and exists (select from packhorse.queues q
        where q.name = w.queue and packhorse.queue_goes_to(q, p_forward))
      and not exists (select from packhorse.workers o
        where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.forward is not distinct from p_forward
        and o.last_seen_at > clock_timestamp() - interval '1 minute')
    for no key update of w skip locked
  ), taken as (
    update packhorse.queue_wakeups w set attended_until = clock_timestamp() + p_for from free
    where w.queue = free.queue returning w.queue
  ) select coalesce(array_agg(queue), '{}') into v_got from taken;
  return v_got;
end
$$;
comment on function packhorse.attend_queues(text[], text[], interval, text) is
  'One awake worker watches queues, so that producers need no NOTIFY; returns those that it has got.';

create or replace function packhorse.keep_attending(p_queues text[], p_types text[],
  p_for interval default '1 second', p_forward text default null) returns text[]
language plpgsql as $$
-- The worker that watches these queues goes on until now + p_for. Returns those that it has to leave: a
-- worker is there now that runs other types, or the queue goes elsewhere, so NOTIFY begins again. Waits for
-- nobody: a queue whose row is locked stays as it is.
declare
  v_left text[];
begin
  with mine as (
    select w.queue, exists (select from packhorse.workers o
      where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.forward is not distinct from p_forward
        and o.last_seen_at > clock_timestamp() - interval '1 minute')
      or not exists (select from packhorse.queues q
        where q.name = w.queue and packhorse.queue_goes_to(q, p_forward)) as shared
    from packhorse.queue_wakeups w where w.queue = any (p_queues) for no key update of w skip locked
  ), kept as (
    update packhorse.queue_wakeups w
    set attended_until = case when not mine.shared then clock_timestamp() + p_for end
    from mine where w.queue = mine.queue returning w.queue, mine.shared
  ) select coalesce(array_agg(queue) filter (where shared), '{}') into v_left from kept;
  perform pg_notify('packhorse_wake', q || '!') from unnest(v_left) q;
  return v_left;
end
$$;
comment on function packhorse.keep_attending(text[], text[], interval, text) is
  'Watch queues for longer; returns those that this worker has to leave.';

create or replace function packhorse.hand_over_queues(p_queues text[], p_wake boolean default true,
  p_leave boolean default true) returns void
language plpgsql as $$
-- For a worker that watches these queues. p_leave: it watches no longer, and producers NOTIFY again; it must
-- claim once more afterwards, like after announce_sleep. p_wake: wake those that sleep, all of them (the mark
-- after the name says so) and once, for there is more than it can start. A row that somebody has locked is
-- left: what is watched there ends by itself, soon.
begin
  if p_leave then
    update packhorse.queue_wakeups set attended_until = null
    where queue in (
      select queue from packhorse.queue_wakeups where queue = any (p_queues) and attended_until is not null
      order by queue for no key update skip locked);
  end if;
  if p_wake then
    perform pg_notify('packhorse_wake', queue || '!') from packhorse.queue_wakeups
    where queue = any (p_queues) and wake_until > clock_timestamp();
  end if;
end
$$;
comment on function packhorse.hand_over_queues(text[], boolean, boolean) is
  'A watching worker wakes the sleepers once, or watches no longer, or both.';

-- Limits of a queue: concurrency and rate, over the whole fleet (SPEC Q8).

create or replace function packhorse.is_limited(p_queue packhorse.queues) returns boolean
language sql immutable as $$
-- A claim of such a queue locks its row: what one starts counts for the next.
  select p_queue.max_concurrency is not null or p_queue.max_concurrency_per_key is not null
    or p_queue.rate_limit is not null;
$$;
comment on function packhorse.is_limited(packhorse.queues) is 'Has the queue a limit?';

create or replace function packhorse.queue_allowance(
  p_queue packhorse.queues, p_limit integer, p_now timestamptz, p_wait boolean default true
) returns integer
language plpgsql as $$
-- How many messages of the queue may start now: pause, fleet-wide concurrency and rate limit (SPEC Q8).
-- p_queue: its row. Locks and reads the row again when the queue has a limit: claims of a limited queue come
-- one by one. When somebody keeps the row (an open transaction with set_queue) for longer than the caller's
-- lock_timeout: none; the messages of other queues, which the same claim looks at, must not wait for that.
-- p_wait false, for who has such a row already: null when another claim has this one. Claims look at queues
-- in different orders, and two that waited for each other would do so for the whole lock_timeout.
declare
  v_queue packhorse.queues;
begin
  if not packhorse.queue_is_open(p_queue) then
    return 0;
  elsif not packhorse.is_limited(p_queue) then
    return p_limit;
  end if;
  select * into v_queue from packhorse.queues where name = p_queue.name for update skip locked;
  if not found and not p_wait then
    return null;
  elsif not found then
    -- apart from the usual case: the lock of a subtransaction makes the update of the tokens a multixact
    begin
      select * into v_queue from packhorse.queues where name = p_queue.name for update;
    exception when lock_not_available then
      return 0;
    end;
  end if;
  if v_queue.max_concurrency is not null then
    p_limit := least(p_limit, packhorse.queue_room(v_queue));
  end if;
  if v_queue.rate_limit is not null then
    p_limit := least(p_limit, floor(packhorse.rate_tokens_at(v_queue, p_now))::integer);
  end if;
  return greatest(p_limit, 0);
end
$$;
comment on function packhorse.queue_allowance(packhorse.queues, integer, timestamptz, boolean)
  is 'How many messages of a queue may start now.';

create or replace function packhorse.next_start_at(p_queue text, p_now timestamptz) returns timestamptz
language sql stable as $$
-- When the rate limit of the queue allows the next start; null when it allows one now, or has none, or the
-- queue is paused. Never sooner than in 10 ms: who waits for a fast bucket is not to ask for every token.
  select p_now + greatest(interval '10 milliseconds',
    (1::float8 - packhorse.rate_tokens_at(q, p_now)) / q.rate_limit::float8 * q.rate_interval)
  from packhorse.queues q
  where q.name = p_queue and q.rate_limit is not null and q.paused_at is null
    and packhorse.rate_tokens_at(q, p_now) < 1::float8;
$$;
comment on function packhorse.next_start_at(text, timestamptz)
  is 'When the rate limit of a queue allows the next start; null when it does not stand in the way.';

-- Limits of a queue: concurrency and rate, over the whole fleet (SPEC Q8).

create or replace function packhorse.is_limited(p_queue packhorse.queues) returns boolean
language sql immutable as $$
-- A claim of such a queue locks its row: what one starts counts for the next.
  select p_queue.max_concurrency is not null or p_queue.max_concurrency_per_key is not null
    or p_queue.rate_limit is not null or p_queue.rate_limit_per_key is not null;
$$;
comment on function packhorse.is_limited(packhorse.queues) is 'Has the queue a limit?';

create or replace function packhorse.has_key_limit(p_queue packhorse.queues) returns boolean
language sql immutable as $$
  select p_queue.max_concurrency_per_key is not null or p_queue.rate_limit_per_key is not null;
$$;
comment on function packhorse.has_key_limit(packhorse.queues) is 'Has the queue a limit per key?';

create or replace function packhorse.takes_turns(p_queue packhorse.queues) returns boolean
language sql immutable as $$
-- Where a claim looks: the first messages of all, from a cursor on, or those of each key (claim_turns.sql).
  select p_queue.fair_share or p_queue.max_concurrency_per_key is not null
    or p_queue.rate_limit_per_key is not null;
$$;
comment on function packhorse.takes_turns(packhorse.queues) is 'Do the keys of the queue take turns?';

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

create or replace function packhorse.next_start_of_keys_at(p_queue packhorse.queues, p_now timestamptz)
returns timestamptz
language sql stable as $$
-- When a concurrency key that has something to start gets its next token; null when none waits for one. Never
-- sooner than in 10 ms. Of tenants it is not known which of their keys wait: then any key will do.
  select p_now + greatest(interval '10 milliseconds', min(
    (1::float8 - t.tokens) / p_queue.rate_limit_per_key::float8 * p_queue.rate_interval_per_key))
  from packhorse.key_rates k cross join packhorse.key_tokens(p_queue, k.key, p_now) t
  where k.queue = p_queue.name and t.tokens < 1::float8
    and (exists (select from packhorse.message_queue m
        where m.queue = p_queue.name and m.state = 'pending'
          and packhorse.turn_key(m) = 'c' || k.key collate "C")
      or exists (select from packhorse.message_queue m
        where m.queue = p_queue.name and m.state = 'pending'
          and packhorse.turn_key(m) >= 't' collate "C"))
  having count(*) > 0;
$$;
comment on function packhorse.next_start_of_keys_at(packhorse.queues, timestamptz)
  is 'Used by the claim: when rate_limit_per_key allows a waiting key the next start.';

create or replace function packhorse.count_starts(p_queue packhorse.queues, p_ids bigint[], p_now timestamptz)
returns void
language plpgsql as $$
-- Take the tokens of these starts out of the buckets of the queue and of its keys. The caller has locked the
-- row of the queue.
begin
  if p_queue.rate_limit is not null then
    update packhorse.queues q
    set rate_tokens = packhorse.rate_tokens_at(q, p_now) - cardinality(p_ids)::float8,
        rate_refilled_at = greatest(q.rate_refilled_at, p_now) -- who waited for the row has an older time
    where q.name = p_queue.name and q.rate_limit is not null;
  end if;
  if p_queue.rate_limit_per_key is not null then
    insert into packhorse.key_rates as k (queue, key, tokens, refilled_at)
    select p_queue.name, s.key, t.tokens - s.starts, p_now
    from (select m.concurrency_key::text as key, count(*)::float8 as starts from packhorse.message_queue m
          where m.id = any (p_ids) and m.concurrency_key is not null group by m.concurrency_key) s
    cross join packhorse.key_tokens(p_queue, s.key, p_now) t
    on conflict on constraint key_rates_pkey do update
      set tokens = excluded.tokens, refilled_at = greatest(k.refilled_at, excluded.refilled_at);
  end if;
end
$$;
comment on function packhorse.count_starts(packhorse.queues, bigint[], timestamptz)
  is 'Take the tokens of these starts out of the buckets of queue and keys.';

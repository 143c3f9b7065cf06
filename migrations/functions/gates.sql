-- Gates: may a message start now, and what keeps it? Claim, lock by hand, conversations and explain ask these
-- and nothing else (SPEC Q8b): a gate is one edit, and explain tells what the claim does. Small SQL without a
-- SET, so that the planner folds it into the statement that asks.

create or replace function packhorse.is_due(p_run_at timestamptz, p_now timestamptz) returns boolean
language sql immutable as $$
  select p_run_at <= p_now;
$$;
comment on function packhorse.is_due(timestamptz, timestamptz) is 'Gate run_at: has its time come?';

create or replace function packhorse.is_worth_doing(p_expires_at timestamptz, p_now timestamptz)
returns boolean
language sql immutable as $$
  select p_expires_at is null or p_expires_at > p_now;
$$;
comment on function packhorse.is_worth_doing(timestamptz, timestamptz) is
  'Gate expires_at: is it worth doing still?';

create or replace function packhorse.runs_apart(p_crashes smallint) returns boolean
language sql immutable as $$
-- The same as in the predicates of the claim's indexes.
  select p_crashes >= 2;
$$;
comment on function packhorse.runs_apart(smallint) is
  'Gate isolation: was it there when two processes died (SPEC P5)?';

create or replace function packhorse.queue_is_open(p_queue packhorse.queues) returns boolean
language sql immutable as $$
  select p_queue.paused_at is null;
$$;
comment on function packhorse.queue_is_open(packhorse.queues) is 'Gate queue: is it not paused?';

create or replace function packhorse.queue_goes_to(p_queue packhorse.queues, p_forward text) returns boolean
language sql immutable as $$
-- p_forward: null for who runs messages, else where a relay takes them.
  select p_queue.forward is not distinct from p_forward;
$$;
comment on function packhorse.queue_goes_to(packhorse.queues, text)
  is 'Gate forward: are its messages for workers (null), or for the relays to this place?';

create or replace function packhorse.queue_room(p_queue packhorse.queues) returns integer
language sql stable as $$
-- For a queue with max_concurrency.
  select p_queue.max_concurrency - (
    select count(*) from packhorse.message_queue r
    where r.queue = p_queue.name and r.state = 'running' and r.lease_token is not null)::integer;
$$;
comment on function packhorse.queue_room(packhorse.queues) is
  'Gate max_concurrency: how many more may run over the whole fleet?';

create or replace function packhorse.key_room(p_queue packhorse.queues, p_key text)
returns table (room integer)
language sql stable as $$
-- One row; null when there is no such limit. A table, as the next two, for the planner folds no other kind of
-- function with a subquery into the statement that asks.
  select case when p_queue.max_concurrency_per_key is not null then p_queue.max_concurrency_per_key - (
    select count(*)::integer from packhorse.message_queue r
    where r.queue = p_queue.name and r.state = 'running' and r.concurrency_key = p_key) end;
$$;
comment on function packhorse.key_room(packhorse.queues, text)
  is 'Gate max_concurrency_per_key: how many more may run with this concurrency key?';

create or replace function packhorse.bucket_level(
  p_tokens double precision, p_refilled_at timestamptz, p_limit integer, p_interval interval, p_burst integer,
  p_now timestamptz
) returns double precision
language sql immutable as $$
-- Tokens in a bucket that is refilled continuously, p_limit per interval; at most p_burst, null: p_limit.
  select least(coalesce(p_burst, p_limit)::double precision,
    p_tokens + (greatest(extract(epoch from p_now - p_refilled_at), 0)
      * p_limit::numeric / extract(epoch from p_interval))::double precision);
$$;
comment on function packhorse.bucket_level(double precision, timestamptz, integer, interval, integer,
  timestamptz)
  is 'Tokens in a bucket at this moment.';

create or replace function packhorse.key_tokens(p_queue packhorse.queues, p_key text, p_now timestamptz)
returns table (tokens double precision)
language sql stable as $$
-- One row; null when there is no such limit.
  select case when p_queue.rate_limit_per_key is not null then coalesce((
    select packhorse.bucket_level(k.tokens, k.refilled_at, p_queue.rate_limit_per_key,
      p_queue.rate_interval_per_key, p_queue.rate_burst_per_key, p_now)
    from packhorse.key_rates k where k.queue = p_queue.name and k.key = p_key),
    coalesce(p_queue.rate_burst_per_key, p_queue.rate_limit_per_key)::double precision) end;
$$;
comment on function packhorse.key_tokens(packhorse.queues, text, timestamptz)
  is 'Gate rate_limit_per_key: starts that it allows this concurrency key at this moment.';

create or replace function packhorse.key_allowance(p_queue packhorse.queues, p_key text, p_now timestamptz)
returns table (room integer)
language sql stable as $$
-- One row: how many more may start with this concurrency key; null: no limit of the queue concerns it.
  select case when p_key is not null then least(r.room, floor(t.tokens)::integer) end
  from packhorse.key_room(p_queue, p_key) r cross join packhorse.key_tokens(p_queue, p_key, p_now) t;
$$;
comment on function packhorse.key_allowance(packhorse.queues, text, timestamptz)
  is 'Gates of a concurrency key: how many more may start with it?';

create or replace function packhorse.conversation_holders(p_conversation_key text, p_id bigint)
returns table (holder_kind text, holder_id bigint)
language sql stable
-- Who keeps message p_id of this conversation from starting: the running one, earlier pending ones, a
-- dead letter that blocks it. Empty: it may start. The one predicate of claim and explain; a body
-- without SET, so that the planner folds it into the claim query.
begin atomic
  select 'running', h.id from packhorse.message_queue h
  where h.conversation_key = p_conversation_key and h.state = 'running' and h.id <> p_id
  union all
  select 'earlier', h.id from packhorse.message_queue h
  where h.conversation_key = p_conversation_key and h.state = 'pending' and h.id < p_id
  union all
  select 'dead', d.id from packhorse.dead_letters d
  where d.conversation_key = p_conversation_key and d.blocks_conversation and d.id <> p_id;
end;
comment on function packhorse.conversation_holders(text, bigint) is
  'What keeps a message of a conversation from starting; empty when it may start.';

create or replace function packhorse.rate_tokens_at(p_queue packhorse.queues, p_now timestamptz)
returns double precision
language sql immutable as $$
-- For a queue with rate_limit.
  select packhorse.bucket_level(p_queue.rate_tokens, p_queue.rate_refilled_at, p_queue.rate_limit,
    p_queue.rate_interval, p_queue.rate_burst, p_now);
$$;
comment on function packhorse.rate_tokens_at(packhorse.queues, timestamptz) is
  'Starts that the rate limit of a queue allows at this moment.';

create or replace function packhorse.fits_pattern(p_names text[], p_type text) returns boolean
language plpgsql immutable as $$
-- Does a pattern among the names stand for the type, and none of the exceptions for it?
declare
  v_name text;
  v_fits boolean := false;
begin
  foreach v_name in array p_names loop
    if left(v_name, 1) = '!' then
      if packhorse.stands_for(substr(v_name, 2), p_type) then
        return false;
      end if;
    elsif right(v_name, 1) = '*' then
      v_fits := v_fits or starts_with(p_type, left(v_name, -1));
    end if;
  end loop;
  return v_fits;
end
$$;
comment on function packhorse.fits_pattern(text[], text) is
  'Used by names_type: does a pattern among the names stand for the type?';

create or replace function packhorse.stands_for(p_name text, p_type text) returns boolean
language sql immutable as $$
  select p_name = p_type or (right(p_name, 1) = '*' and starts_with(p_type, left(p_name, -1)));
$$;
comment on function packhorse.stands_for(text, text) is
  'Is this name the type, or a pattern (`order.*`) that it begins like?';

create or replace function packhorse.patterns_first(p_names text[]) returns text[]
language sql immutable as $$
  select array(select n.name from unnest(p_names) as n (name) order by right(n.name, 1) <> '*', n.name);
$$;
comment on function packhorse.patterns_first(text[]) is 'Names as names_type wants them.';

create or replace function packhorse.names_type(p_names text[], p_type text) returns boolean
language sql immutable as $$
-- A name is a type, a pattern such as `order.*`, or with a `!` in front of either an exception to the
-- patterns. The patterns stand first (patterns_first), so that who has none pays for one comparison.
  select coalesce(p_type = any (p_names)
    or (right(p_names[1], 1) = '*' and packhorse.fits_pattern(p_names, p_type)), false);
$$;
comment on function packhorse.names_type(text[], text) is
  'Is the type among the names, which may be patterns (SPEC W8)?';

create or replace function packhorse.scope_covers(p_scope packhorse.scopes, p_type text, p_queue text)
returns boolean
language sql immutable as $$
  select coalesce(p_scope.queue = p_queue, false) or packhorse.names_type(p_scope.message_types, p_type);
$$;
comment on function packhorse.scope_covers(packhorse.scopes, text, text) is
  'Does a message of this type and queue belong to the scope?';

create or replace function packhorse.scope_rests(p_scope packhorse.scopes, p_now timestamptz) returns boolean
language sql stable as $$
-- Its time is not over; or it is probing, and its probe runs.
  select p_scope.parked_until > p_now or (p_scope.probing and exists (
    select from packhorse.message_queue r
    where r.id = p_scope.probe_id and r.state = 'running'));
$$;
comment on function packhorse.scope_rests(packhorse.scopes, timestamptz) is
  'Gate scope: does it keep its messages from starting?';

create or replace function packhorse.resting_scopes(p_type text, p_queue text, p_now timestamptz)
returns setof packhorse.scopes
language sql stable as $$
  select s.* from packhorse.scopes s
  where s.ends_at > p_now and packhorse.scope_covers(s, p_type, p_queue) and packhorse.scope_rests(s, p_now);
$$;
comment on function packhorse.resting_scopes(text, text, timestamptz) is
  'Gate scope: what keeps a message of this type and queue from starting; empty when it may start.';

create or replace function packhorse.is_wanted(p_type text, p_types text[], p_held text[]) returns boolean
language sql immutable as $$
-- p_types: what a claim takes, see names_type, null for all; p_held: what rests (see what_rests), null while
-- nothing does.
  select (p_types is null or packhorse.names_type(p_types, p_type))
    and (p_held is null or not packhorse.names_type(p_held, p_type));
$$;
comment on function packhorse.is_wanted(text, text[], text[]) is
  'Does a claim take messages of this type now?';

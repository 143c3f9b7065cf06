-- name: store_result
-- Store a result of an actor.
select packhorse.store_message_result(%s, %s::jsonb, make_interval(secs => %s));

-- name: get_result
-- The stored result.
select packhorse.get_message_result(%s);

-- name: add_rate_limiter
-- Set a counter unless it exists.
select packhorse.add_rate_limiter(%s, %s, make_interval(secs => %s));

-- name: change_rate_limiter
-- Add to a counter within its range.
select packhorse.change_rate_limiter(%s, %s, %s, %s, make_interval(secs => %s), %s);

-- name: get_rate_limiter
-- The value of a counter.
select packhorse.get_rate_limiter(%s);

-- Rate limiters of dramatiq on Postgres (SPEC W1).

create or replace function packhorse.add_rate_limiter(p_key text, p_value bigint, p_ttl interval)
returns boolean
language sql volatile as $$
-- Set a counter unless it exists; true when it was set, null when not.
  insert into packhorse.rate_limiters as r (limiter_key, value, expires_at)
  values (p_key, p_value, clock_timestamp() + p_ttl)
  on conflict (limiter_key) do update set value = excluded.value, expires_at = excluded.expires_at
    where r.expires_at <= clock_timestamp()
  returning true;
$$;
comment on function packhorse.add_rate_limiter(text, bigint, interval) is 'Set a counter unless it exists.';

create or replace function packhorse.change_rate_limiter(p_key text, p_amount bigint, p_minimum bigint,
  p_maximum bigint, p_ttl interval, p_keys text[] default null)
returns boolean
language plpgsql as $$
-- Add p_amount (may be negative) unless the counter would leave p_minimum..p_maximum, or the sum over p_keys
-- plus the amount would exceed p_maximum. One writer per key at a time (advisory lock of the transaction).
declare
  v_value bigint;
  v_sum bigint;
begin
  perform pg_advisory_xact_lock(hashtext('packhorse rate_limiter'), hashtext(coalesce(p_keys[1], p_key)));
  select value into v_value from packhorse.rate_limiters
  where limiter_key = p_key and expires_at > clock_timestamp();
  v_value := coalesce(v_value, 0) + p_amount;
  if v_value < coalesce(p_minimum, v_value) or v_value > coalesce(p_maximum, v_value) then
    return false;
  end if;
  if p_keys is not null then
    select coalesce(sum(value), 0) into v_sum from packhorse.rate_limiters
    where limiter_key = any (p_keys) and expires_at > clock_timestamp();
    if v_sum + p_amount > p_maximum then
      return false;
    end if;
  end if;
  insert into packhorse.rate_limiters (limiter_key, value, expires_at)
  values (p_key, v_value, clock_timestamp() + p_ttl)
  on conflict (limiter_key) do update set value = excluded.value, expires_at = excluded.expires_at;
  return true;
end
$$;
comment on function packhorse.change_rate_limiter(text, bigint, bigint, bigint, interval, text[]) is
  'Add to a counter unless it would leave its range.';

create or replace function packhorse.get_rate_limiter(p_key text) returns bigint
language sql stable as $$
  select value from packhorse.rate_limiters where limiter_key = p_key and expires_at > clock_timestamp();
$$;
comment on function packhorse.get_rate_limiter(text) is 'The value of a counter, null when it is not there.';

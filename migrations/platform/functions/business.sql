-- Companies and what they offer (SPEC C6).

create or replace function platform.cleanup_expired_appointments_cache(p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) cache entries whose time is over, oldest first; rows that somebody works
-- on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with expired as materialized (
    select c.company_id, c.cache_key from platform.appointments_cache c
    where c.expires_at <= v_now
    order by c.expires_at
    limit p_limit
    for update skip locked
  )
  delete from platform.appointments_cache c using expired e where c.company_id = e.company_id and c.cache_key = e.cache_key;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_expired_appointments_cache(integer) is 'Delete a batch of expired cache entries; returns how many.';

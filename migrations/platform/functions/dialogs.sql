-- Cleaning of dialogs and WhatsApp keys (SPEC C6, M3).

create or replace function platform.cleanup_expired_dialog_contexts(p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) dialog contexts whose time is over, oldest first; rows that somebody works
-- on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with expired as materialized (
    select d.phone, d.company_id from platform.dialog_contexts d
    where d.expires_at <= v_now
    order by d.expires_at
    limit p_limit
    for update skip locked
  )
  delete from platform.dialog_contexts d using expired e where d.phone = e.phone and d.company_id = e.company_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_expired_dialog_contexts(integer) is 'Delete a batch of expired dialog contexts; returns how many.';

create or replace function platform.cleanup_expired_whatsapp_keys(p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) keys whose time is over, oldest first; those without an end stay, and rows
-- that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_limit(p_limit);
  with expired as materialized (
    select k.company_id, k.key_type, k.key_id from platform.whatsapp_keys k
    where k.expires_at <= v_now
    order by k.expires_at
    limit p_limit
    for update skip locked
  )
  delete from platform.whatsapp_keys k using expired e
  where k.company_id = e.company_id and k.key_type = e.key_type and k.key_id = e.key_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_expired_whatsapp_keys(integer) is 'Delete a batch of expired WhatsApp keys; returns how many.';

create or replace function platform.get_whatsapp_auth_stats()
returns table (total_companies bigint, total_keys bigint, expired_keys bigint, active_keys bigint, total_bytes bigint)
language sql volatile as $$
-- How many WhatsApp sessions and keys there are; one row. Counts the whole of both tables. Locks nothing.
  select (select count(*) from platform.whatsapp_auth), k.total, k.expired, k.total - k.expired,
    pg_total_relation_size('platform.whatsapp_auth') + pg_total_relation_size('platform.whatsapp_keys')
  from (select count(*) as total, count(*) filter (where expires_at <= clock_timestamp()) as expired from platform.whatsapp_keys) k;
$$;
comment on function platform.get_whatsapp_auth_stats() is 'How many WhatsApp sessions and keys there are, and how large.';

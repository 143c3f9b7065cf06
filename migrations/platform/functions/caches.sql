-- Cleaning of what says itself when it is over: dialogs, cached appointments, WhatsApp keys (SPEC C6, M3).
-- What has no end stays.

create or replace function platform.cleanup_expired_dialog_contexts(p_limit integer default null,
  out deleted_count bigint)
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) dialog contexts whose time is over, oldest first; rows that
-- somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  perform platform.check_limit(p_limit);
  with expired as materialized (
    select d.id from platform.dialog_contexts d
    where d.expires_at <= v_now
    order by d.expires_at
    limit p_limit
    for update skip locked
  )
  delete from platform.dialog_contexts d using expired e where d.id = e.id;
  get diagnostics deleted_count = row_count;
end
$$;
comment on function platform.cleanup_expired_dialog_contexts(integer) is
  'Delete expired dialog contexts; returns how many.';

create or replace function platform.cleanup_expired_appointments_cache(p_limit integer default null,
  out deleted_count bigint)
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) cache entries whose time is over, oldest first; rows that
-- somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
begin
  perform platform.check_limit(p_limit);
  with expired as materialized (
    select c.id from platform.appointments_cache c
    where c.expires_at <= v_now
    order by c.expires_at
    limit p_limit
    for update skip locked
  )
  delete from platform.appointments_cache c using expired e where c.id = e.id;
  get diagnostics deleted_count = row_count;
end
$$;
comment on function platform.cleanup_expired_appointments_cache(integer) is
  'Delete expired cache entries; returns how many.';

create or replace function platform.cleanup_expired_whatsapp_keys(p_limit integer default null,
  out deleted_count bigint)
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) keys whose time is over, oldest first; rows that somebody works
-- on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
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
  get diagnostics deleted_count = row_count;
end
$$;
comment on function platform.cleanup_expired_whatsapp_keys(integer) is
  'Delete expired WhatsApp keys; returns how many.';

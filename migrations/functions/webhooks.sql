-- Inbound webhooks that were seen (SPEC Q6).

create or replace function packhorse.is_new_message(
  p_external_id text, p_correlation_id text default null, p_reclaim_after interval default '5 minutes'
) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- True for exactly one caller per external id: call it in the transaction that enqueues. A caller that said
-- true and was never marked processed is forgotten after p_reclaim_after (0 to 1000 years), so a crash loses
-- nothing. p_correlation_id (at most 500 characters) is kept with the id. Raises PH001.
begin
  if p_external_id is null or length(p_external_id) not between 1 and 500 then
    perform packhorse.refuse_argument('external_id', 'must have 1 to 500 characters');
  elsif length(p_correlation_id) > 500 then
    perform packhorse.refuse_argument('correlation_id', 'must have at most 500 characters');
  elsif p_reclaim_after is null or p_reclaim_after not between interval '0' and interval '1000 years' then
    perform packhorse.refuse_argument('reclaim_after', 'must be between 0 and 1000 years');
  end if;
  insert into packhorse.processed_messages as p (external_id, correlation_id)
  values (p_external_id, p_correlation_id)
  on conflict (external_id) do update
    set first_seen_at = clock_timestamp(),
      correlation_id = coalesce(excluded.correlation_id, p.correlation_id)
    where p.processed_at is null and p.first_seen_at < clock_timestamp() - p_reclaim_after;
  return found;
end
$$;
comment on function packhorse.is_new_message(text, text, interval) is
  'True for the first caller with this external id.';

create or replace function packhorse.mark_message_processed(p_external_id text,
  p_correlation_id text default null, p_processing_ms integer default null)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Remember that this webhook was processed: the first time stays, what was missing is filled in. Raises
-- PH001.
begin
  if p_external_id is null or length(p_external_id) not between 1 and 500 then
    perform packhorse.refuse_argument('external_id', 'must have 1 to 500 characters');
  elsif p_processing_ms < 0 then
    perform packhorse.refuse_argument('processing_ms', 'must not be negative');
  end if;
  insert into packhorse.processed_messages as p (external_id, correlation_id, processed_at, processing_ms)
  values (p_external_id, p_correlation_id, clock_timestamp(), p_processing_ms)
  on conflict (external_id) do update
    set processed_at = coalesce(p.processed_at, excluded.processed_at),
        correlation_id = coalesce(excluded.correlation_id, p.correlation_id),
        processing_ms = coalesce(excluded.processing_ms, p.processing_ms);
end
$$;
comment on function packhorse.mark_message_processed(text, text, integer) is
  'The webhook with this external id was processed.';

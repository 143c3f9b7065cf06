-- Cleaning of windows that ended, webhook ids and dead letters (SPEC M2, M4).

create or replace function packhorse.cleanup_expired_windows(p_limit integer default 5000) returns integer
language plpgsql set lock_timeout = '500ms' as $$
-- The upkeep that every worker does: delete up to p_limit (1..100000) each of dedup windows, results, rate
-- limiters and scopes whose own time is over (scopes: since a day, notes of relayed messages: after seven
-- days), later or never where configuration says
-- so (retention_keep). What ages by policy is not touched. Returns how many rows went. Raises PH001.
declare
  v_windows constant timestamptz := clock_timestamp()
    - packhorse.retention_keep('message_dedup', interval '0');
  v_results constant timestamptz := clock_timestamp()
    - packhorse.retention_keep('message_results', interval '0');
  v_count integer := 0;
  v_some integer;
begin
  perform packhorse.check_batch(p_limit);
  delete from packhorse.message_dedup where (queue, dedup_key) in (
    select d.queue, d.dedup_key from packhorse.message_dedup d where d.expires_at < v_windows limit p_limit
    for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from packhorse.message_results where result_key in (
    select r.result_key from packhorse.message_results r where r.expires_at < v_results limit p_limit
    for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from packhorse.rate_limiters where limiter_key in (
    select r.limiter_key from packhorse.rate_limiters r where r.expires_at < clock_timestamp() limit p_limit
    for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from packhorse.scopes where name in (
    select s.name from packhorse.scopes s
    where coalesce(s.ends_at, '-infinity') < clock_timestamp() - interval '1 day'
      and coalesce(s.last_failed_at, '-infinity') < clock_timestamp() - interval '1 day'
    limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  -- a full bucket is as good as none; also where the limit is gone
  delete from packhorse.key_rates where (queue, key) in (
    select k.queue, k.key from packhorse.key_rates k left join packhorse.queues q on q.name = k.queue
    where q.rate_limit_per_key is null or packhorse.bucket_level(k.tokens, k.refilled_at,
        q.rate_limit_per_key, q.rate_interval_per_key, q.rate_burst_per_key, clock_timestamp())
      >= coalesce(q.rate_burst_per_key, q.rate_limit_per_key)::float8
    limit p_limit for update of k skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  delete from packhorse.forwarded_messages where id in (
    select f.id from packhorse.forwarded_messages f where f.noted_at < clock_timestamp() - interval '7 days'
    limit p_limit for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  return v_count;
end
$$;
comment on function packhorse.cleanup_expired_windows(integer) is
  'Delete dedup windows, results, rate limiters, scopes, full buckets and old notes; returns how many.';

create or replace function packhorse.cleanup_old_messages(p_limit integer default 5000) returns integer
language plpgsql set lock_timeout = '500ms' as $$
-- Known name, for callers who have a cron of their own: what cleanup_expired_windows() deletes, and by the
-- policies of retention webhook ids that were finished with, and dead letters; up to p_limit (1..100000) of
-- each. The policies are those that the scheduler last read from configuration; where none ever ran, 7 and 30
-- days. One that is switched off, or narrowed by SQL of its own, is left alone here. A dead letter that
-- blocks its conversation stays until somebody acts. Safe to repeat and to run anywhere. Returns how many
-- rows went. Raises PH001.
declare
  v_seen constant timestamptz := clock_timestamp()
    - packhorse.retention_keep('processed_messages', interval '7 days');
  v_dead constant interval := packhorse.retention_keep('dead_letters', interval '30 days');
  v_ids bigint[];
  v_count integer;
  v_some integer;
begin
  v_count := packhorse.cleanup_expired_windows(p_limit);
  delete from packhorse.processed_messages where external_id in (
    select p.external_id from packhorse.processed_messages p
    where p.first_seen_at < v_seen and (p.processed_at is null or p.processed_at < v_seen) limit p_limit
    for update skip locked);
  get diagnostics v_some = row_count; v_count := v_count + v_some;
  v_ids := array(select d.id from packhorse.dead_letters d
    where d.dead_at < clock_timestamp() - v_dead and not d.blocks_conversation order by d.id limit p_limit);
  if cardinality(v_ids) > 0 then
    begin
      v_count := v_count + cardinality(packhorse.purge_dead_letters(v_ids, p_older_than => v_dead,
        p_limit => p_limit, p_operator => 'retention', p_reason => format('older than %s', v_dead)));
    exception when lock_not_available then
      null; -- somebody works on one of them: next time
    end;
  end if;
  return v_count;
end
$$;
comment on function packhorse.cleanup_old_messages(integer) is
  'Delete windows that ended, and old webhook ids and dead letters by the policies of retention.';

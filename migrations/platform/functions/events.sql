-- What happened on the platform and at the webhooks: counts, funnel, cleaning (SPEC C2, C5, M4).

create or replace function platform.get_event_counts_by_type(
  p_start_date timestamptz default clock_timestamp() - interval '30 days',
  p_end_date timestamptz default clock_timestamp()
) returns table (event_type text, event_count bigint, users bigint, sessions bigint)
language plpgsql stable as $$
-- Events of a period by type, most frequent first; both ends belong to it. No row when there were none. Locks
-- nothing. Raises PH001.
begin
  perform platform.check_period(p_start_date, p_end_date);
  return query
  select e.event_type::text, count(*), count(distinct e.user_id), count(distinct e.session_id)
  from platform.platform_events e
  where e.created_at >= p_start_date and e.created_at <= p_end_date
  group by e.event_type
  order by 2 desc, 1;
end
$$;
comment on function platform.get_event_counts_by_type(timestamptz, timestamptz) is
  'Events of a period by type: how many, by how many users and sessions.';

create or replace function platform.get_conversion_funnel(
  p_start_date timestamptz default clock_timestamp() - interval '30 days',
  p_end_date timestamptz default clock_timestamp(),
  p_stages text[] default array['SearchStarted', 'ProfessionalViewed', 'CheckoutStarted', 'BookingConfirmed']
) returns table (stage text, unique_users bigint, conversion_rate numeric)
language plpgsql stable as $$
-- How many people reached each of p_stages (1..20 event types) in a period, both ends included; one row per
-- stage, in order. Each stage is counted by itself. A person is a user, else a session; events with neither
-- are nobody's. conversion_rate: percent of the first stage, two digits, null when that has nobody. Locks
-- nothing. Raises PH001.
begin
  perform platform.check_period(p_start_date, p_end_date);
  if p_stages is null or cardinality(p_stages) not between 1 and 20
    or array_position(p_stages, null) is not null then
    perform platform.refuse_value('stages', 'must be 1 to 20 event types');
  end if;
  return query
  with reached as (
    select e.event_type as type,
      count(distinct coalesce('user ' || e.user_id::text, 'session ' || e.session_id)) as people
    from platform.platform_events e
    where e.event_type = any (p_stages) and e.created_at >= p_start_date and e.created_at <= p_end_date
    group by e.event_type
  ), counted as (
    select s.name, s.place, coalesce(r.people, 0) as people
    from unnest(p_stages) with ordinality as s (name, place) left join reached r on r.type = s.name
  )
  select c.name, c.people,
    round(100.0 * c.people::numeric / nullif((select f.people from counted f where f.place = 1), 0)::numeric,
      2)
  from counted c
  order by c.place;
end
$$;
comment on function platform.get_conversion_funnel(timestamptz, timestamptz, text[]) is
  'How many people reached each stage of a funnel, and which percentage of the first.';

create or replace function platform.get_user_referral_credits(p_user_id uuid) returns integer
language sql stable as $$
-- What a user has been rewarded for referrals, in cents; 0 when nothing. Locks nothing.
  select coalesce(sum(r.referrer_credit_amount), 0)::integer from platform.referrals r
  where r.referrer_id = p_user_id and r.status = 'rewarded';
$$;
comment on function platform.get_user_referral_credits(uuid) is
  'What a user has been rewarded for referrals, in cents.';

create or replace function platform.cleanup_old_platform_events(p_older_than interval default '90 days',
  p_limit integer default null) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) events older than p_older_than (1 day to ten years), oldest
-- first; rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '1 day', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.platform_events e
    where e.created_at < v_before
    order by e.created_at
    limit p_limit
    for update skip locked
  )
  delete from platform.platform_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_platform_events(interval, integer) is
  'Delete events older than 90 days; returns how many.';

create or replace function platform.cleanup_old_webhook_events(p_older_than interval default '30 days',
  p_limit integer default null) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) webhooks that were delivered, or else made, p_older_than (1 day
-- to ten years) ago; those that are still `pending`, `sent` or `received` stay, however old, and rows that
-- somebody works on are left for the next call. Copies of a backfill stay until its clean-up. Returns how
-- many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '1 day', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.webhook_events e
    where coalesce(e.delivered_at, e.created_at) < v_before
      and coalesce(e.status, '') not in ('pending', 'sent', 'received')
      and not platform.is_unfinished_copy(e.metadata)
    order by e.created_at
    limit p_limit
    for update skip locked
  )
  delete from platform.webhook_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_webhook_events(interval, integer) is
  'Delete webhooks finished with 30 days ago; returns how many.';

create or replace function platform.cleanup_old_audit_events(p_older_than interval default '365 days',
  p_limit integer default null) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000; null: all) records older than p_older_than (30 days to ten years), oldest
-- first; those of the category security stay for ever, and rows that somebody works on are left for the next
-- call. Copies of a backfill stay until its clean-up. Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '30 days', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.audit_events e
    where e.created_at < v_before and e.event_category <> 'security'
      and not platform.is_unfinished_copy(e.metadata)
    order by e.created_at
    limit p_limit
    for update skip locked
  )
  delete from platform.audit_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_audit_events(interval, integer) is
  'Delete audit records older than a year, never those of security; returns how many.';

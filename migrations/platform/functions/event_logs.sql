-- What happened: on the platform, at the webhooks, and for the auditor (SPEC C2, C5, M4).

create or replace function platform.check_period(p_since timestamptz, p_until timestamptz) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a period has a beginning, and its end after that.
begin
  if p_since is null then
    perform packhorse.refuse_argument('since', 'must not be null');
  elsif p_until is null or p_until <= p_since then
    perform packhorse.refuse_argument('until', format('must be later than %s', p_since));
  end if;
end
$$;
comment on function platform.check_period(timestamptz, timestamptz) is 'Raise PH001 unless a period ends after it begins.';

create or replace function platform.get_event_counts_by_type(
  p_since timestamptz default clock_timestamp() - interval '30 days', p_until timestamptz default clock_timestamp()
) returns table (event_type text, events bigint, users bigint, sessions bigint, first_at timestamptz, last_at timestamptz)
language plpgsql stable as $$
-- Events of a period by type, most frequent first: from p_since, up to but without p_until. No row when there
-- were none. Locks nothing. Raises PH001.
begin
  perform platform.check_period(p_since, p_until);
  return query
  select e.event_type, count(*), count(distinct e.user_id), count(distinct e.session_id), min(e.created_at), max(e.created_at)
  from platform.platform_events e
  where e.created_at >= p_since and e.created_at < p_until
  group by e.event_type
  order by 2 desc, 1;
end
$$;
comment on function platform.get_event_counts_by_type(timestamptz, timestamptz) is 'Events of a period by type: how many, by how many users and sessions.';

create or replace function platform.get_conversion_funnel(
  p_steps text[] default array['page_view', 'signup_started', 'signup_completed', 'booking_created'],
  p_since timestamptz default clock_timestamp() - interval '30 days', p_until timestamptz default clock_timestamp()
) returns table (step integer, event_type text, people bigint, share_of_first double precision, share_of_previous double precision)
language plpgsql stable as $$
-- How many people went how far: one row per step of p_steps (1..20 event types), in order. A person counts
-- at a step after all earlier ones, in the order of time. A guest that became a user is one person, over all
-- its sessions; events without user and session are nobody's. Shares are 0..1, null when nobody came so far.
-- Reads the period once. Locks nothing. Raises PH001.
declare
  v_event record;
  v_person uuid;
  v_reached integer := 0;
  v_people bigint[];
begin
  if p_steps is null or cardinality(p_steps) not between 1 and 20 or array_position(p_steps, null) is not null then
    perform packhorse.refuse_argument('steps', 'must be 1 to 20 event types');
  end if;
  perform platform.check_period(p_since, p_until);
  v_people := array_fill(0::bigint, array[cardinality(p_steps)]);
  for v_event in
    select coalesce(e.user_id, g.converted_user_id, e.session_id) as person, e.event_type as type
    from platform.platform_events e left join platform.guest_sessions g on g.id = e.session_id
    where e.event_type = any (p_steps) and e.created_at >= p_since and e.created_at < p_until
      and num_nonnulls(e.user_id, e.session_id) > 0
    order by 1, e.created_at, e.id
  loop
    if v_event.person is distinct from v_person then
      v_person := v_event.person;
      v_reached := 0;
    end if;
    if v_reached < cardinality(p_steps) and v_event.type = p_steps[v_reached + 1] then
      v_reached := v_reached + 1;
      v_people[v_reached] := v_people[v_reached] + 1;
    end if;
  end loop;
  return query
  select s.place::integer, s.name, v_people[s.place], v_people[s.place]::double precision / nullif(v_people[1], 0)::float8,
    v_people[s.place]::double precision / nullif(v_people[greatest(s.place - 1, 1)], 0)::float8
  from unnest(p_steps) with ordinality as s (name, place)
  order by s.place;
end
$$;
comment on function platform.get_conversion_funnel(text[], timestamptz, timestamptz) is 'How many people went how far through a list of event types, in order.';

create or replace function platform.get_user_referral_credits(p_user_id uuid) returns numeric
language plpgsql stable as $$
-- What a user has earned by referrals less what was spent: the sum of `amount` over the events
-- referral_credit_earned and referral_credit_spent. 0 for a user without any. Locks nothing. Raises PH001.
begin
  if p_user_id is null then
    perform packhorse.refuse_argument('user_id', 'must not be null');
  end if;
  return (
    select coalesce(sum((e.properties ->> 'amount')::numeric * case e.event_type when 'referral_credit_earned' then 1.0 else -1.0 end), 0)
    from platform.platform_events e
    where e.user_id = p_user_id and e.event_type in ('referral_credit_earned', 'referral_credit_spent'));
end
$$;
comment on function platform.get_user_referral_credits(uuid) is 'The referral credits of a user: earned less spent.';

create or replace function platform.cleanup_old_platform_events(p_older_than interval default '90 days', p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) events older than p_older_than (1 day to ten years), oldest first; referral
-- credits stay, and rows that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '1 day', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.platform_events e
    where e.created_at < v_before and e.event_type not in ('referral_credit_earned', 'referral_credit_spent')
    order by e.created_at
    limit p_limit
    for update skip locked
  )
  delete from platform.platform_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_platform_events(interval, integer) is 'Delete a batch of events older than 90 days; returns how many.';

create or replace function platform.cleanup_old_webhook_events(p_older_than interval default '30 days', p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) webhooks that were finished with p_older_than (1 day to ten years) ago,
-- longest ago first; unprocessed ones stay, however old, and rows that somebody works on are left for the
-- next call. Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '1 day', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.webhook_events e
    where e.processed_at < v_before
    order by e.processed_at
    limit p_limit
    for update skip locked
  )
  delete from platform.webhook_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_webhook_events(interval, integer) is 'Delete a batch of webhooks finished with 30 days ago; returns how many.';

create or replace function platform.cleanup_old_audit_events(p_older_than interval default '365 days', p_limit integer default 5000) returns integer
language plpgsql as $$
-- Delete up to p_limit (1..100000) records older than p_older_than (30 days to ten years), oldest first; those
-- of the category security stay for ever, and rows that somebody works on are left for the next call.
-- Returns how many. Raises PH001.
declare
  v_before timestamptz;
  v_count integer;
begin
  perform platform.check_span('older_than', p_older_than, interval '30 days', interval '3660 days');
  perform platform.check_limit(p_limit);
  v_before := clock_timestamp() - p_older_than;
  with old as materialized (
    select e.id from platform.audit_events e
    where e.occurred_at < v_before and e.category <> 'security'
    order by e.occurred_at
    limit p_limit
    for update skip locked
  )
  delete from platform.audit_events e using old o where e.id = o.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.cleanup_old_audit_events(interval, integer) is 'Delete a batch of audit records older than a year, never those of security; returns how many.';

-- Health checks (SPEC O1) of what failed: dead letters, the share of errors, the most frequent ones. Bounds
-- as in health_queue.sql.

create or replace function packhorse.health_dead_letters(
  p_window interval default '1 hour', p_warn integer default 1, p_fail integer default 100,
  p_warn_age interval default '23 days', p_limit integer default 10000, p_warn_day integer default 10
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- Messages given up within p_window, by cause; a warning too for p_warn_day of them within 24 hours, and when
-- the oldest dead letter will soon be removed by age (30 days).
declare
  v_now constant timestamptz := clock_timestamp();
begin
  return query
  with recent as (
    select d.message_type, d.reason, d.error_class, d.fingerprint, d.id,
      d.attempt >= d.max_attempts as is_exhausted
    from packhorse.dead_letters d where d.dead_at > v_now - p_window order by d.dead_at desc limit p_limit
  ), causes as (
    select r.message_type, r.reason, r.error_class, r.fingerprint, count(*) as n, max(r.id) as last_id,
      row_number() over (order by count(*) desc, r.fingerprint) as place
    from recent r group by r.message_type, r.reason, r.error_class, r.fingerprint
  ), kept as (
    select (select count(*) from (select from packhorse.dead_letters limit p_limit) k) as n,
      (select min(d.dead_at) from packhorse.dead_letters d) as oldest_at,
      (select max(d.dead_at) from packhorse.dead_letters d) as newest_at,
      (select count(*) filter (where r.is_exhausted) from recent r) as exhausted,
      (select count(*) filter (where r.reason = 'quarantined') from recent r) as quarantined,
      (select count(*)
        from (select from packhorse.dead_letters d where d.blocks_conversation limit p_limit) b) as blocking,
      (select count(*)
        from (select from packhorse.dead_letters d
          where d.dead_at > v_now - interval '24 hours' limit p_limit) y) as day
  )
  select packhorse.health_worst(array[packhorse.health_level(coalesce(sum(c.n), 0)::float8, p_warn, p_fail),
    packhorse.health_level(k.day::float8, p_warn_day, null),
    case when k.oldest_at <= v_now - p_warn_age then 'warn' end]),
    format('%s in the last %s, %s kept%s%s', packhorse.health_count(coalesce(sum(c.n), 0)::bigint, p_limit),
      packhorse.health_duration(extract(epoch from p_window)::float8), packhorse.health_count(k.n, p_limit),
      case when k.blocking > 0 then format(', %s hold their conversation', k.blocking) end,
      case when k.oldest_at <= v_now - p_warn_age then format('; the oldest is %s old and goes after 30 days',
        packhorse.health_duration(extract(epoch from v_now - k.oldest_at)::float8)) end),
    jsonb_build_object('recent', coalesce(sum(c.n), 0), 'recent_is_limit', coalesce(sum(c.n), 0) >= p_limit,
      'last_day', k.day, 'kept', k.n, 'kept_is_limit', k.n >= p_limit, 'blocking', k.blocking,
      'oldest_at', k.oldest_at, 'newest_at', k.newest_at, 'exhausted', k.exhausted,
      'quarantined', k.quarantined,
      'causes', coalesce(jsonb_agg(jsonb_build_object('message_type', c.message_type, 'reason', c.reason,
        'error_class', c.error_class, 'fingerprint', c.fingerprint, 'count', c.n, 'last_id', c.last_id)
        order by c.place) filter (where c.place <= 10), '[]'))
  from kept k left join causes c on true
  group by k.n, k.oldest_at, k.newest_at, k.exhausted, k.quarantined, k.blocking, k.day;
end
$$;
comment on function packhorse.health_dead_letters(interval, integer, integer, interval, integer, integer) is
  'Health check: messages given up lately, by cause.';

create or replace function packhorse.health_error_rate(
  p_hours integer default 24, p_warn_ratio double precision default 0.05,
  p_fail_ratio double precision default 0.1, p_least integer default 20, p_blocks integer default 4000,
  p_limit integer default 100000
) returns table (status text, summary text, details jsonb)
language plpgsql volatile as $$
-- Dead letters among all ends, for each of the last p_hours (1..168) hours, counted back from now. The last
-- hour is judged, when at least p_least messages ended in it. Retried: done, but after a failure. Queues with
-- keep_done = 0 leave no done ones.
declare
  v_now constant timestamptz := clock_timestamp();
  v_hours constant integer := least(greatest(p_hours, 1), 168);
begin
  return query
  with done as (
    select e.hours_ago, sum(e.done)::bigint as done, sum(e.retried)::bigint as retried,
      bool_or(e.estimated) as estimated
    from packhorse.ends_by_hour(v_now, v_hours, p_blocks) e group by e.hours_ago
  ), letters as materialized (
    select floor(extract(epoch from v_now - l.dead_at) / 3600.0)::integer as hours_ago
    from packhorse.dead_letters l where l.dead_at > v_now - v_hours::float8 * interval '1 hour'
    order by l.dead_at desc limit p_limit
  ), dead as (
    select l.hours_ago, count(*) as dead from letters l group by l.hours_ago
  -- the hour in which counting stopped: its dead letters are the least there are, those of earlier hours are
  -- not known
  ), cut as (
    select max(l.hours_ago) as hours_ago from letters l having count(*) >= p_limit
  ), hours as (
    select h.hours_ago, coalesce(o.done, 0) as done, coalesce(o.retried, 0) as retried,
      case when h.hours_ago > c.hours_ago then null else coalesce(d.dead, 0) end as dead,
      coalesce(o.estimated, false) or coalesce(h.hours_ago >= c.hours_ago, false) as estimated,
      coalesce(h.hours_ago = c.hours_ago, false) as is_cut
    from generate_series(0, v_hours - 1) as h (hours_ago) left join done o on o.hours_ago = h.hours_ago
    left join dead d on d.hours_ago = h.hours_ago
    left join cut c on true
  ), rated as (
    select h.*, h.dead::float8 / nullif(h.done + h.dead, 0)::float8 as ratio,
      case when h.is_cut then 'at least ' else '' end as words from hours h)
  select case when n.done + n.dead >= p_least then packhorse.health_level(n.ratio, p_warn_ratio, p_fail_ratio)
    else 'ok' end,
    format('%s%s of %s%s messages that ended in the last hour are dead letters (%s %%), '
      '%s others were retried',
      n.words, n.dead, n.words, n.done + n.dead, round(100.0 * coalesce(n.ratio, 0)::numeric, 1), n.retried),
    jsonb_build_object('last_hour_ratio', n.ratio,
      'hours',
      (select jsonb_agg(jsonb_build_object('from', v_now - (h.hours_ago + 1)::float8 * interval '1 hour',
      'done', h.done, 'retried', h.retried, 'dead', h.dead, 'ratio', h.ratio, 'estimated', h.estimated)
        order by h.hours_ago) from rated h))
  from rated n where n.hours_ago = 0;
end
$$;
comment on function packhorse.health_error_rate(integer, double precision, double precision, integer, integer,
  integer) is 'Health check: dead letters among all ends, by hour.';

create or replace function packhorse.health_top_errors(
  p_window interval default '1 hour', p_warn integer default 10, p_fail integer default 1000,
  p_limit integer default 10000, p_blocks integer default 4000
) returns table (status text, summary text, details jsonb)
language plpgsql stable as $$
-- The most frequent errors, by class and code, of messages that ended within p_window: dead letters, and
-- those that were done after a failure (their last error). The most frequent one is judged by its count.
declare
  v_since constant timestamptz := clock_timestamp() - p_window;
begin
  return query
  with failures as (
    (select d.message_type, coalesce(d.error_class, d.reason) as error_class, d.error_code, d.id,
      true as dead, d.fingerprint, d.dead_at as seen_at
     from packhorse.dead_letters d where d.dead_at > v_since order by d.dead_at desc limit p_limit)
    union all
    select e.message_type, e.error_class, e.error_code, e.id, false, null, e.finished_at
    from packhorse.recent_ends(v_since, p_blocks) e where e.error_class is not null
  ), errors as (
    select f.message_type, f.error_class, f.error_code, count(*) as n, count(*) filter (where f.dead) as dead,
      max(f.id) as last_id, max(f.fingerprint) as fingerprint, min(f.seen_at) as first_at,
      max(f.seen_at) as last_at
    from failures f group by f.message_type, f.error_class, f.error_code
  ), placed as (
    select e.*, row_number() over (order by e.n desc, e.message_type, e.error_class, e.error_code) as place
    from errors e)
  select packhorse.health_level(max(p.n)::float8, p_warn, p_fail),
    coalesce(max(format('%s%s in %s: %s times, %s gave up', p.error_class, ' ' || p.error_code,
      p.message_type, p.n, p.dead)) filter (where p.place = 1)
      || format('; %s kinds of error', count(*)), 'no errors'),
    jsonb_build_object('kinds', count(*),
      'errors',
      coalesce(jsonb_agg(jsonb_build_object('message_type', p.message_type, 'error_class', p.error_class,
      'error_code', p.error_code, 'count', p.n, 'dead', p.dead, 'last_id', p.last_id, 'first_at', p.first_at,
      'last_at', p.last_at, 'fingerprint', p.fingerprint) order by p.place) filter (where p.place <= 10),
        '[]'))
  from placed p;
end
$$;
comment on function packhorse.health_top_errors(interval, integer, integer, integer, integer) is
  'Health check: the most frequent errors lately.';

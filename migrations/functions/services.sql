-- Services that handlers call and their endpoints: what processes declare, health checks, numbers (SPEC W10).
-- breakers.sql opens and closes their circuit breakers.

create or replace function packhorse.check_service(p_service text) returns void
language plpgsql stable as $$
-- Raise PH001, naming a near miss, unless some process has declared the service.
declare
  v_near text;
begin
  if exists (select from packhorse.service_endpoints s where s.service = p_service) then
    return;
  end if;
  select s.service into v_near from packhorse.service_endpoints s
  order by (left(s.service, 3) = left(p_service, 3)) desc, abs(length(s.service) - length(p_service)),
    s.service limit 1;
  perform packhorse.refuse_argument('service',
    format('no process has declared the service %L', left(coalesce(p_service, 'null'), 120)),
    case when v_near is null then 'None is declared yet.' else format('Did you mean %L?', v_near) end);
end
$$;
comment on function packhorse.check_service(text) is
  'Raise PH001, naming a near miss, unless some process has declared the service.';

create or replace function packhorse.declare_service(p_service text, p_endpoints jsonb) returns integer
language plpgsql as $$
-- Make endpoints of a service known, with the policy of their breakers; says how many rows it wrote.
-- p_endpoints: an array of objects with the columns' names, the intervals as seconds. What was declared half
-- a minute ago and has not changed is not written again. Endpoints that nobody has declared for a day are
-- forgotten, but for those that an operator has forced.
declare
  v_written integer;
begin
  if p_service is null or p_service !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform packhorse.refuse_argument('service',
      format('%L is not a name', left(coalesce(p_service, 'null'), 120)),
      'A letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.');
  end if;
  insert into packhorse.service_endpoints as s (service, endpoint, fallback, health_url, open_ratio,
    least_calls, close_after, reset_after, judged_over, probe_lease, check_every)
  select p_service, e.endpoint, coalesce(e.fallback, false), e.health_url, e.open_ratio, e.least_calls,
    e.close_after, make_interval(secs => e.reset_after), make_interval(secs => e.judged_over),
    make_interval(secs => e.probe_lease), make_interval(secs => e.check_every)
  from jsonb_to_recordset(p_endpoints) as e (endpoint text, fallback boolean, health_url text,
    open_ratio float8, least_calls integer, close_after integer, reset_after float8, judged_over float8,
    probe_lease float8, check_every float8)
  order by e.endpoint
  on conflict (service, endpoint) do update
  set fallback = excluded.fallback, health_url = excluded.health_url, open_ratio = excluded.open_ratio,
    least_calls = excluded.least_calls, close_after = excluded.close_after,
    reset_after = excluded.reset_after, judged_over = excluded.judged_over,
    probe_lease = excluded.probe_lease, check_every = excluded.check_every, declared_at = clock_timestamp()
  where s.declared_at < clock_timestamp() - interval '30 seconds'
    or (s.fallback, s.open_ratio, s.least_calls, s.close_after)
      is distinct from (excluded.fallback, excluded.open_ratio, excluded.least_calls, excluded.close_after)
    or s.health_url is distinct from excluded.health_url
    or (s.reset_after, s.judged_over, s.probe_lease, s.check_every)
      is distinct from (excluded.reset_after, excluded.judged_over, excluded.probe_lease,
        excluded.check_every);
  get diagnostics v_written = row_count;
  delete from packhorse.service_endpoints s
  where s.service = p_service and s.forced is null and s.declared_at < clock_timestamp() - interval '1 day';
  return v_written;
end
$$;
comment on function packhorse.declare_service(text, jsonb) is
  'Make endpoints of a service known, with the policy of their circuit breakers.';

create or replace function packhorse.endpoint_states(p_services text[] default null)
returns table (service text, endpoint text, state text, forced text, epoch bigint, retry_in double precision,
  probing boolean, failures_in_row integer, healthy boolean)
language sql stable as $$
-- What callers need to know of these services' endpoints (null: of all), those of the last ten minutes.
-- retry_in: seconds until the breaker may be probed; null when it is not open.
  select s.service, s.endpoint, s.state, s.forced, s.epoch,
    case when s.state <> 'closed'
      then greatest(extract(epoch from s.retry_at - clock_timestamp())::float8, 0) end,
    s.state = 'half_open' and s.probe_until > clock_timestamp(), s.failures_in_row, s.healthy
  from packhorse.service_endpoints s
  where (p_services is null or s.service = any (p_services))
    and s.declared_at > clock_timestamp() - interval '10 minutes'
  order by s.service, s.endpoint;
$$;
comment on function packhorse.endpoint_states(text[]) is
  'State of the circuit breakers and health of the endpoints of services.';

create or replace function packhorse.due_health_checks(p_services text[], p_limit integer default 8)
returns table (service text, endpoint text, health_url text)
language plpgsql as $$
-- The health checks of these services that are due, for the caller to make: whoever moves next_check_at
-- forward has it (SPEC P7). Waits for nobody. A check that is never told of is made again after check_every.
begin
  perform packhorse.check_batch(p_limit);
  return query
  with due as (
    select d.service, d.endpoint from packhorse.service_endpoints d
    where d.service = any (p_services) and d.health_url is not null and d.next_check_at <= clock_timestamp()
      and d.declared_at > clock_timestamp() - interval '10 minutes'
    order by d.next_check_at limit p_limit for no key update skip locked
  )
  update packhorse.service_endpoints s set next_check_at = clock_timestamp() + s.check_every
  from due where s.service = due.service and s.endpoint = due.endpoint
  returning s.service, s.endpoint, s.health_url;
end
$$;
comment on function packhorse.due_health_checks(text[], integer) is
  'Take the health checks of endpoints that are due.';

create or replace function packhorse.record_health(p_service text, p_endpoint text, p_error text default null)
returns table (was boolean, healthy boolean)
language plpgsql set lock_timeout = '1s' as $$
-- How a health check went; p_error null: well. Three failures in a row make an endpoint unhealthy, one
-- success healthy. A success lets an open breaker be probed at once.
declare
  v_row packhorse.service_endpoints;
begin
  select * into v_row from packhorse.service_endpoints s
  where s.service = p_service and s.endpoint = p_endpoint for no key update;
  if not found then
    return;
  end if;
  was := v_row.healthy;
  v_row.checks_failed := case when p_error is null then 0 else least(v_row.checks_failed + 1, 1000000) end;
  healthy := case when p_error is null then true when v_row.checks_failed >= 3 then false
    else v_row.healthy end;
  update packhorse.service_endpoints s
  set checks_failed = v_row.checks_failed, healthy = record_health.healthy, checked_at = clock_timestamp(),
    last_error = case when p_error is null then s.last_error else left(p_error, 500) end,
    retry_at = case when p_error is null and s.state = 'open' then least(s.retry_at, clock_timestamp())
      else s.retry_at end
  where s.service = p_service and s.endpoint = p_endpoint;
  if p_error is null and v_row.state = 'open' and v_row.retry_at > clock_timestamp() then
    perform packhorse.rest_service(p_service, true);
  end if;
  return next;
end
$$;
comment on function packhorse.record_health(text, text, text) is
  'Record a health check of an endpoint: whether it was healthy, and whether it is.';

create or replace function packhorse.service_statistics() returns jsonb
language sql stable as $$
-- The numbers of services for /metrics; the first hundred endpoints by name, so that a scrape stays bounded.
-- A forced breaker has the state it is forced to.
  with known as (
    select s.service, s.endpoint, coalesce(s.forced, s.state) as state, s.healthy, s.calls_total,
      s.failures_total, s.opened_total
    from packhorse.service_endpoints s where s.declared_at > clock_timestamp() - interval '1 day'
    order by s.service, s.endpoint limit 100
  )
  select jsonb_build_object(
    'service_breaker_state', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint,
      'value', case k.state when 'closed' then 0 when 'half_open' then 1 else 2 end)),
    'service_endpoint_healthy',
    jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.healthy::integer))
      filter (where k.healthy is not null),
    'service_calls_total',
    jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.calls_total)),
    'service_failures_total',
    jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.failures_total)),
    'service_breaker_opened_total',
    jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.opened_total)))
  from known k;
$$;
comment on function packhorse.service_statistics() is
  'State, calls and failures of the endpoints of services, for metrics.';

create or replace function packhorse.health_circuit_breakers()
returns table (status text, summary text, details jsonb)
language sql stable as $$
-- Endpoints whose breaker is not closed, that are unhealthy, or that an operator has forced. A service of
-- which no endpoint can be called is a failure. What no process has declared for a day is not judged. Absent
-- while no endpoint is registered.
  with known as (
    select s.*, coalesce(s.forced, s.state) as acts,
      row_number() over (order by coalesce(s.forced, s.state) = 'closed', s.service, s.endpoint) as place
    from packhorse.service_endpoints s where s.declared_at > clock_timestamp() - interval '1 day'
  ), facts as (
    select count(*) as endpoints, count(distinct k.service) as services,
      count(*) filter (where k.acts = 'open') as open,
      count(*) filter (where k.acts = 'half_open') as half_open,
      count(*) filter (where not k.healthy) as unhealthy,
      count(*) filter (where k.forced is not null) as forced,
      (select count(*)
        from (select g.service from known g group by g.service
          having bool_and(g.acts <> 'closed')) d) as down,
      (select string_agg(d.service, ', ' order by d.service)
        from (select g.service from known g group by g.service
          having bool_and(g.acts <> 'closed') limit 5) d) as names
    from known k
  )
  select case when not exists (select from packhorse.service_endpoints) then 'absent'
    when f.down > 0 then 'fail' when f.open + f.half_open + f.unhealthy + f.forced > 0 then 'warn'
    else 'ok' end,
    case when not exists (select from packhorse.service_endpoints) then 'no service is declared'
      when f.endpoints = 0 then 'no service was declared in the last day'
      else format('%s endpoint(s) of %s service(s): %s open, %s half open, %s unhealthy%s%s', f.endpoints,
        f.services, f.open, f.half_open, f.unhealthy,
      case when f.forced > 0 then format(', %s forced by an operator', f.forced) end,
        '; cannot be called: ' || f.names) end,
    jsonb_build_object('endpoints', f.endpoints, 'open', f.open, 'half_open', f.half_open,
      'unhealthy', f.unhealthy, 'forced', f.forced, 'services_down', f.down,
      'breakers',
      coalesce((select jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint,
        'state', k.state, 'forced', k.forced, 'healthy', k.healthy,
          'failures_in_row', k.failures_in_row, 'failure_ratio', case when k.calls + k.earlier_calls > 0
            then round((k.failures + k.earlier_failures)::numeric / (k.calls + k.earlier_calls)::numeric,
              3) end, 'opened_at', k.opened_at, 'retry_at', k.retry_at) order by k.place)
        from known k where k.place <= 50), '[]'))
  from facts f;
$$;
comment on function packhorse.health_circuit_breakers() is
  'Health check: open and half-open circuit breakers; absent while no endpoint is registered.';

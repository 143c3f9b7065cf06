-- Services that handlers call: a circuit breaker and health per endpoint, shared by all processes (SPEC W10).
--
-- Processes count their calls and report the sums (report_calls); here it is decided, over all of them and by this clock, when a breaker
-- opens. closed -> open: enough calls of the window failed, or so many in a row. open -> half open: after reset_after, or earlier by a health check, one probe at a
-- time in the fleet. half open -> closed: close_after probes in a row succeeded. half open -> open: one failed. Rows are locked in the order
-- (service, endpoint), and one of them at a time wherever that will do.

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
  order by (left(s.service, 3) = left(p_service, 3)) desc, abs(length(s.service) - length(p_service)), s.service limit 1;
  perform packhorse.refuse_argument('service', format('no process has declared the service %L', left(coalesce(p_service, 'null'), 120)),
    case when v_near is null then 'None is declared yet.' else format('Did you mean %L?', v_near) end);
end
$$;
comment on function packhorse.check_service(text) is 'Raise PH001, naming a near miss, unless some process has declared the service.';

create or replace function packhorse.declare_service(p_service text, p_endpoints jsonb) returns integer
language plpgsql as $$
-- Make endpoints of a service known, with the policy of their breakers; says how many rows it wrote. p_endpoints: an array of objects with the
-- columns' names, the intervals as seconds. What was declared half a minute ago and has not changed is not written again. Endpoints that
-- nobody has declared for a day are forgotten, but for those that an operator has forced.
declare
  v_written integer;
begin
  if p_service is null or p_service !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    perform packhorse.refuse_argument('service', format('%L is not a name', left(coalesce(p_service, 'null'), 120)),
      'A letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.');
  end if;
  insert into packhorse.service_endpoints as s (service, endpoint, fallback, health_url, open_ratio, least_calls, close_after, reset_after,
    judged_over, probe_lease, check_every)
  select p_service, e.endpoint, coalesce(e.fallback, false), e.health_url, e.open_ratio, e.least_calls, e.close_after,
    make_interval(secs => e.reset_after), make_interval(secs => e.judged_over), make_interval(secs => e.probe_lease), make_interval(secs => e.check_every)
  from jsonb_to_recordset(p_endpoints) as e (endpoint text, fallback boolean, health_url text, open_ratio float8, least_calls integer,
    close_after integer, reset_after float8, judged_over float8, probe_lease float8, check_every float8)
  order by e.endpoint
  on conflict (service, endpoint) do update set fallback = excluded.fallback, health_url = excluded.health_url, open_ratio = excluded.open_ratio,
    least_calls = excluded.least_calls, close_after = excluded.close_after, reset_after = excluded.reset_after,
    judged_over = excluded.judged_over, probe_lease = excluded.probe_lease, check_every = excluded.check_every, declared_at = clock_timestamp()
  where s.declared_at < clock_timestamp() - interval '30 seconds'
    or (s.fallback, s.open_ratio, s.least_calls, s.close_after) is distinct from (excluded.fallback, excluded.open_ratio, excluded.least_calls, excluded.close_after)
    or s.health_url is distinct from excluded.health_url
    or (s.reset_after, s.judged_over, s.probe_lease, s.check_every)
      is distinct from (excluded.reset_after, excluded.judged_over, excluded.probe_lease, excluded.check_every);
  get diagnostics v_written = row_count;
  delete from packhorse.service_endpoints s where s.service = p_service and s.forced is null and s.declared_at < clock_timestamp() - interval '1 day';
  return v_written;
end
$$;
comment on function packhorse.declare_service(text, jsonb) is 'Make endpoints of a service known, with the policy of their circuit breakers.';

create or replace function packhorse.endpoint_states(p_services text[] default null)
returns table (service text, endpoint text, state text, forced text, epoch bigint, retry_in double precision, probing boolean,
  failures_in_row integer, healthy boolean)
language sql stable as $$
-- What callers need to know of these services' endpoints (null: of all), those of the last ten minutes. retry_in: seconds until the breaker may
-- be probed; null when it is not open.
  select s.service, s.endpoint, s.state, s.forced, s.epoch,
    case when s.state <> 'closed' then greatest(extract(epoch from s.retry_at - clock_timestamp())::float8, 0) end,
    s.state = 'half_open' and s.probe_until > clock_timestamp(), s.failures_in_row, s.healthy
  from packhorse.service_endpoints s
  where (p_services is null or s.service = any (p_services)) and s.declared_at > clock_timestamp() - interval '10 minutes'
  order by s.service, s.endpoint;
$$;
comment on function packhorse.endpoint_states(text[]) is 'State of the circuit breakers and health of the endpoints of services.';

create or replace function packhorse.count_calls(p_endpoint packhorse.service_endpoints, p_calls integer, p_failures integer, p_now timestamptz)
returns packhorse.service_endpoints
language plpgsql immutable as $$
-- The row after these calls: the window moved on, and the breaker open when enough of its calls have failed, or 4 * least_calls in a row. Reads and writes no table.
declare
  v_age constant interval := p_now - p_endpoint.bucket_at;
begin
  if v_age >= p_endpoint.judged_over or v_age < interval '0' then
    p_endpoint.earlier_calls := 0;
    p_endpoint.earlier_failures := 0;
  elsif v_age >= p_endpoint.judged_over / 2::float8 then
    p_endpoint.earlier_calls := p_endpoint.calls;
    p_endpoint.earlier_failures := p_endpoint.failures;
  end if;
  if v_age >= p_endpoint.judged_over / 2::float8 or v_age < interval '0' then
    p_endpoint.calls := 0;
    p_endpoint.failures := 0;
    p_endpoint.bucket_at := p_now;
  end if;
  p_endpoint.calls := p_endpoint.calls + p_calls;
  p_endpoint.failures := p_endpoint.failures + p_failures;
  if p_failures > 0 and p_endpoint.calls + p_endpoint.earlier_calls >= p_endpoint.least_calls
    and ((p_endpoint.failures + p_endpoint.earlier_failures)::float8 / (p_endpoint.calls + p_endpoint.earlier_calls)::float8 >= p_endpoint.open_ratio
      or p_endpoint.failures_in_row >= 4 * p_endpoint.least_calls) -- the window of a busy service is full of successes for half a minute
  then
    return packhorse.open_endpoint(p_endpoint, p_now);
  end if;
  return p_endpoint;
end
$$;
comment on function packhorse.count_calls(packhorse.service_endpoints, integer, integer, timestamptz) is 'An endpoint''s row after calls: window and breaker.';

create or replace function packhorse.open_endpoint(p_endpoint packhorse.service_endpoints, p_now timestamptz) returns packhorse.service_endpoints
language plpgsql immutable as $$
-- The row with its breaker open. Reads and writes no table.
begin
  if p_endpoint.state = 'closed' then
    p_endpoint.opened_at := p_now;
    p_endpoint.opened_total := p_endpoint.opened_total + 1;
  end if;
  p_endpoint.state := 'open';
  p_endpoint.retry_at := p_now + p_endpoint.reset_after;
  p_endpoint.epoch := p_endpoint.epoch + 1;
  p_endpoint.successes := 0;
  p_endpoint.probe_token := null;
  p_endpoint.probe_until := null;
  return p_endpoint;
end
$$;
comment on function packhorse.open_endpoint(packhorse.service_endpoints, timestamptz) is 'An endpoint''s row with its breaker open.';

create or replace function packhorse.close_endpoint(p_endpoint packhorse.service_endpoints, p_now timestamptz) returns packhorse.service_endpoints
language plpgsql immutable as $$
-- The row with its breaker closed and an empty window: what failed before says nothing about what comes. Reads and writes no table.
begin
  p_endpoint.state := 'closed';
  p_endpoint.epoch := p_endpoint.epoch + 1;
  p_endpoint.bucket_at := p_now;
  p_endpoint.calls := 0;
  p_endpoint.failures := 0;
  p_endpoint.earlier_calls := 0;
  p_endpoint.earlier_failures := 0;
  p_endpoint.failures_in_row := 0;
  p_endpoint.successes := 0;
  p_endpoint.opened_at := null;
  p_endpoint.retry_at := null;
  p_endpoint.probe_token := null;
  p_endpoint.probe_until := null;
  return p_endpoint;
end
$$;
comment on function packhorse.close_endpoint(packhorse.service_endpoints, timestamptz) is 'An endpoint''s row with its breaker closed.';

create or replace function packhorse.keep_endpoint(p_endpoint packhorse.service_endpoints) returns void
language plpgsql as $$
-- Write the breaker and the numbers of a row that the caller has locked.
begin
  update packhorse.service_endpoints s set state = p_endpoint.state, forced = p_endpoint.forced, epoch = p_endpoint.epoch, bucket_at = p_endpoint.bucket_at,
    calls = p_endpoint.calls, failures = p_endpoint.failures, earlier_calls = p_endpoint.earlier_calls, earlier_failures = p_endpoint.earlier_failures,
    failures_in_row = p_endpoint.failures_in_row, opened_at = p_endpoint.opened_at, retry_at = p_endpoint.retry_at, successes = p_endpoint.successes,
    probe_token = p_endpoint.probe_token, probe_until = p_endpoint.probe_until, calls_total = p_endpoint.calls_total,
    failures_total = p_endpoint.failures_total, opened_total = p_endpoint.opened_total
  where s.service = p_endpoint.service and s.endpoint = p_endpoint.endpoint;
end
$$;
comment on function packhorse.keep_endpoint(packhorse.service_endpoints) is 'Write the circuit breaker and the numbers of an endpoint.';

create or replace function packhorse.rest_service(p_service text, p_earlier boolean default false) returns void
language plpgsql as $$
-- After a change of a breaker: the scope of the service is parked while no endpoint can be called, until one may be probed, and then one message at
-- a time starts; it is lifted when one can be called. Only where an actor names the service. A park of somebody else that lasts longer
-- stays as it is, and is nobody's but theirs to lift. p_earlier: the time may have come nearer.
declare
  v_now constant timestamptz := clock_timestamp();
  v_by constant text := 'circuit breaker';
  v_callable boolean;
  v_until timestamptz;
  v_other timestamptz;
begin
  select bool_or(coalesce(s.forced, s.state) = 'closed'),
    min(case when s.forced = 'open' then v_now + interval '1 day' else greatest(s.retry_at, v_now) end)
  into v_callable, v_until
  from packhorse.service_endpoints s where s.service = p_service and s.declared_at > v_now - interval '10 minutes';
  if v_callable is null or packhorse.scope_types(p_service) = '{}' then
    return;
  end if;
  select case when s.parked_by = v_by then null else s.parked_until end into v_other
  from packhorse.scopes s where s.name = p_service and s.ends_at > v_now;
  if v_callable then
    if found and v_other is null then
      perform packhorse.lift_scope(p_service);
    end if;
  elsif v_other is null or v_other < v_until then
    if p_earlier and found and v_other is null then
      perform packhorse.lift_scope(p_service); -- a park is never shortened
    end if;
    perform packhorse.park_scope(p_service, v_until - v_now, 'the circuit is open', p_probing => true, p_by => v_by);
  end if;
end
$$;
comment on function packhorse.rest_service(text, boolean) is 'Park or lift the scope of a service, as its circuit breakers are.';

create or replace function packhorse.report_calls(p_reports jsonb, p_services text[])
returns table (service text, endpoint text, state text, forced text, epoch bigint, retry_in double precision, probing boolean,
  failures_in_row integer, healthy boolean, changed boolean)
language plpgsql set lock_timeout = '1s' as $$
-- Add what a process has counted since its last report, decide which breakers open, and answer with the state of all endpoints of these services.
-- p_reports: an array of {service, endpoint, epoch, calls, failures, in_row (failures since the last success), succeeded}; calls that began under
-- another epoch count in the totals only, so what ends late neither opens nor closes anything. changed: this report has opened it.
declare
  v_report record;
  v_row packhorse.service_endpoints;
  v_before text;
  v_opened jsonb := '[]';
begin
  for v_report in
    select * from jsonb_to_recordset(p_reports) as r (service text, endpoint text, epoch bigint, calls integer, failures integer, in_row integer, succeeded boolean)
    order by r.service, r.endpoint
  loop
    select * into v_row from packhorse.service_endpoints s where s.service = v_report.service and s.endpoint = v_report.endpoint for no key update;
    continue when not found;
    v_before := v_row.state;
    v_row.calls_total := v_row.calls_total + v_report.calls::bigint;
    v_row.failures_total := v_row.failures_total + v_report.failures::bigint;
    if v_row.epoch = v_report.epoch and v_row.state = 'closed' then
      v_row.failures_in_row := case when v_report.succeeded then v_report.in_row else v_row.failures_in_row + v_report.in_row end;
      v_row := packhorse.count_calls(v_row, v_report.calls, v_report.failures, clock_timestamp());
    end if;
    perform packhorse.keep_endpoint(v_row);
    if v_row.state <> v_before then
      perform packhorse.rest_service(v_row.service);
      v_opened := v_opened || jsonb_build_array(jsonb_build_array(v_row.service, v_row.endpoint));
    end if;
  end loop;
  return query select e.*, v_opened @> jsonb_build_array(jsonb_build_array(e.service, e.endpoint)) from packhorse.endpoint_states(p_services) e;
end
$$;
comment on function packhorse.report_calls(jsonb, text[]) is 'Add a process''s calls to the circuit breakers; answers with the state of all endpoints of its services.';

create or replace function packhorse.begin_probe(p_service text, p_endpoint text) returns bigint
language plpgsql set lock_timeout = '1s' as $$
-- Begin the one probe of a breaker that may be tried: its token for end_probe, null when it is not time, or another process is at it; 0 when it is
-- closed, and so needs none. A probe that nobody ends is over after probe_lease, and the next one begins.
declare
  v_token bigint;
begin
  update packhorse.service_endpoints s set state = 'half_open', probes_total = s.probes_total + 1::bigint, probe_token = s.probes_total + 1::bigint,
    probe_until = clock_timestamp() + s.probe_lease
  where s.service = p_service and s.endpoint = p_endpoint and s.forced is null and s.state <> 'closed'
    and s.retry_at <= clock_timestamp() and (s.probe_until is null or s.probe_until <= clock_timestamp())
  returning s.probe_token into v_token;
  if v_token is null and exists (select from packhorse.service_endpoints s
      where s.service = p_service and s.endpoint = p_endpoint and coalesce(s.forced, s.state) = 'closed') then
    return 0;
  end if;
  return v_token;
end
$$;
comment on function packhorse.begin_probe(text, text) is 'Begin the one probe of a half-open circuit breaker: its token, null when it is not to be tried now, 0 when it is closed.';

create or replace function packhorse.end_probe(p_service text, p_endpoint text, p_token bigint, p_succeeded boolean) returns text
language plpgsql set lock_timeout = '1s' as $$
-- How a probe ended: closes or opens the breaker, and answers with its state. p_succeeded null: it says nothing (cancelled, the caller's own
-- mistake), and the next probe begins. Null: the probe is over by time, or an operator has forced the breaker; nothing is changed.
declare
  v_row packhorse.service_endpoints;
begin
  select * into v_row from packhorse.service_endpoints s
  where s.service = p_service and s.endpoint = p_endpoint and s.probe_token = p_token for no key update;
  if not found then
    return null;
  end if;
  v_row.probe_token := null;
  v_row.probe_until := null;
  if p_succeeded is not null then
    v_row.calls_total := v_row.calls_total + 1::bigint;
  end if;
  if p_succeeded then
    v_row.successes := v_row.successes + 1;
    if v_row.successes >= v_row.close_after then
      v_row := packhorse.close_endpoint(v_row, clock_timestamp());
    end if;
  elsif not p_succeeded then
    v_row.failures_total := v_row.failures_total + 1::bigint;
    v_row.failures_in_row := v_row.failures_in_row + 1;
    v_row := packhorse.open_endpoint(v_row, clock_timestamp());
  end if;
  perform packhorse.keep_endpoint(v_row);
  if v_row.state <> 'half_open' then
    perform packhorse.rest_service(p_service);
  end if;
  return v_row.state;
end
$$;
comment on function packhorse.end_probe(text, text, bigint, boolean) is 'End a probe of a half-open circuit breaker; the breaker''s state, null when the probe was over.';

create or replace function packhorse.due_health_checks(p_services text[], p_limit integer default 8)
returns table (service text, endpoint text, health_url text)
language plpgsql as $$
-- The health checks of these services that are due, for the caller to make: whoever moves next_check_at forward has it (SPEC P7).
-- Waits for nobody. A check that is never told of is made again after check_every.
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
comment on function packhorse.due_health_checks(text[], integer) is 'Take the health checks of endpoints that are due.';

create or replace function packhorse.record_health(p_service text, p_endpoint text, p_error text default null)
returns table (was boolean, healthy boolean)
language plpgsql set lock_timeout = '1s' as $$
-- How a health check went; p_error null: well. Three failures in a row make an endpoint unhealthy, one success healthy. A success lets an open
-- breaker be probed at once.
declare
  v_row packhorse.service_endpoints;
begin
  select * into v_row from packhorse.service_endpoints s where s.service = p_service and s.endpoint = p_endpoint for no key update;
  if not found then
    return;
  end if;
  was := v_row.healthy;
  v_row.checks_failed := case when p_error is null then 0 else least(v_row.checks_failed + 1, 1000000) end;
  healthy := case when p_error is null then true when v_row.checks_failed >= 3 then false else v_row.healthy end;
  update packhorse.service_endpoints s set checks_failed = v_row.checks_failed, healthy = record_health.healthy, checked_at = clock_timestamp(),
    last_error = case when p_error is null then s.last_error else left(p_error, 500) end,
    retry_at = case when p_error is null and s.state = 'open' then least(s.retry_at, clock_timestamp()) else s.retry_at end
  where s.service = p_service and s.endpoint = p_endpoint;
  if p_error is null and v_row.state = 'open' and v_row.retry_at > clock_timestamp() then
    perform packhorse.rest_service(p_service, true);
  end if;
  return next;
end
$$;
comment on function packhorse.record_health(text, text, text) is 'Record a health check of an endpoint: whether it was healthy, and whether it is.';

create or replace function packhorse.force_service(p_service text, p_state text, p_endpoint text default null, p_operator text default current_user,
  p_reason text default null) returns integer
language plpgsql as $$
-- An operator holds the breakers of a service, or of one endpoint, open or closed, or lets them work by themselves again (p_state: open, closed,
-- automatic). Recorded; says how many it changed. What they learnt before counts no more: from open they go on as half open, else as closed.
declare
  v_row packhorse.service_endpoints;
  v_changed integer := 0;
begin
  perform packhorse.check_service(p_service);
  if p_state is null or p_state <> all (array['open', 'closed', 'automatic']) then
    perform packhorse.refuse_argument('state', format('%L is no state to force', left(coalesce(p_state, 'null'), 60)), 'One of: open, closed, automatic.');
  elsif p_endpoint is not null and not exists (select from packhorse.service_endpoints s where s.service = p_service and s.endpoint = p_endpoint) then
    perform packhorse.refuse_argument('endpoint', format('the service %L has no such endpoint', p_service),
      'It has: ' || (select string_agg(s.endpoint, ', ' order by s.endpoint) from packhorse.service_endpoints s where s.service = p_service) || '.');
  end if;
  for v_row in
    select * from packhorse.service_endpoints s where s.service = p_service and (p_endpoint is null or s.endpoint = p_endpoint)
      and s.forced is distinct from nullif(p_state, 'automatic')
    order by s.service, s.endpoint for no key update
  loop
    if p_state = 'automatic' and v_row.forced = 'open' then
      v_row := packhorse.open_endpoint(v_row, clock_timestamp());
      v_row.retry_at := clock_timestamp(); -- whether it works again is found out by probes
    else
      v_row := packhorse.close_endpoint(v_row, clock_timestamp());
    end if;
    v_row.forced := nullif(p_state, 'automatic');
    perform packhorse.keep_endpoint(v_row);
    v_changed := v_changed + 1;
  end loop;
  if v_changed > 0 then
    perform packhorse.rest_service(p_service, true);
    insert into packhorse.operator_actions (action, operator, reason, details) values ('force_service', p_operator, p_reason,
      jsonb_build_object('service', p_service, 'endpoint', p_endpoint, 'state', p_state, 'changed', v_changed));
  end if;
  return v_changed;
end
$$;
comment on function packhorse.force_service(text, text, text, text, text) is 'Hold the circuit breakers of a service open or closed, or let them work by themselves again.';

create or replace function packhorse.service_statistics() returns jsonb
language sql stable as $$
-- The numbers of services for /metrics; the first hundred endpoints by name, so that a scrape stays bounded. A forced breaker has the state it is forced to.
  with known as (
    select s.service, s.endpoint, coalesce(s.forced, s.state) as state, s.healthy, s.calls_total, s.failures_total, s.opened_total
    from packhorse.service_endpoints s where s.declared_at > clock_timestamp() - interval '1 day' order by s.service, s.endpoint limit 100
  )
  select jsonb_build_object(
    'service_breaker_state', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint,
      'value', case k.state when 'closed' then 0 when 'half_open' then 1 else 2 end)),
    'service_endpoint_healthy', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.healthy::integer)) filter (where k.healthy is not null),
    'service_calls_total', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.calls_total)),
    'service_failures_total', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.failures_total)),
    'service_breaker_opened_total', jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'value', k.opened_total)))
  from known k;
$$;
comment on function packhorse.service_statistics() is 'State, calls and failures of the endpoints of services, for metrics.';

create or replace function packhorse.health_circuit_breakers() returns table (status text, summary text, details jsonb)
language sql stable as $$
-- Endpoints whose breaker is not closed, that are unhealthy, or that an operator has forced. A service of which no endpoint can be called is a
-- failure. What no process has declared for a day is not judged. Absent while no endpoint is registered.
  with known as (
    select s.*, coalesce(s.forced, s.state) as acts, row_number() over (order by coalesce(s.forced, s.state) = 'closed', s.service, s.endpoint) as place
    from packhorse.service_endpoints s where s.declared_at > clock_timestamp() - interval '1 day'
  ), facts as (
    select count(*) as endpoints, count(distinct k.service) as services, count(*) filter (where k.acts = 'open') as open,
      count(*) filter (where k.acts = 'half_open') as half_open, count(*) filter (where not k.healthy) as unhealthy,
      count(*) filter (where k.forced is not null) as forced,
      (select count(*) from (select g.service from known g group by g.service having bool_and(g.acts <> 'closed')) d) as down,
      (select string_agg(d.service, ', ' order by d.service) from (select g.service from known g group by g.service having bool_and(g.acts <> 'closed') limit 5) d) as names
    from known k
  )
  select case when not exists (select from packhorse.service_endpoints) then 'absent' when f.down > 0 then 'fail' when f.open + f.half_open + f.unhealthy + f.forced > 0 then 'warn' else 'ok' end,
    case when not exists (select from packhorse.service_endpoints) then 'no service is declared'
      when f.endpoints = 0 then 'no service was declared in the last day' else format('%s endpoint(s) of %s service(s): %s open, %s half open, %s unhealthy%s%s', f.endpoints, f.services,
      f.open, f.half_open, f.unhealthy, case when f.forced > 0 then format(', %s forced by an operator', f.forced) end, '; cannot be called: ' || f.names) end,
    jsonb_build_object('endpoints', f.endpoints, 'open', f.open, 'half_open', f.half_open, 'unhealthy', f.unhealthy, 'forced', f.forced, 'services_down', f.down,
      'breakers', coalesce((select jsonb_agg(jsonb_build_object('service', k.service, 'endpoint', k.endpoint, 'state', k.state, 'forced', k.forced, 'healthy', k.healthy,
          'failures_in_row', k.failures_in_row, 'failure_ratio', case when k.calls + k.earlier_calls > 0
            then round((k.failures + k.earlier_failures)::numeric / (k.calls + k.earlier_calls)::numeric, 3) end, 'opened_at', k.opened_at, 'retry_at', k.retry_at) order by k.place)
        from known k where k.place <= 50), '[]'))
  from facts f;
$$;
comment on function packhorse.health_circuit_breakers() is 'Health check: open and half-open circuit breakers; absent while no endpoint is registered.';

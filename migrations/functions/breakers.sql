-- A circuit breaker per endpoint of a service, shared by all processes (SPEC W10).
--
-- Processes count their calls and report the sums (report_calls). The breaker is decided here, over all
-- processes and by the clock of the database:
--
--   closed -> open       enough calls of the window failed, or too many in a row
--   open -> half open    after reset_after, or earlier by a health check; one probe at a time in the fleet
--   half open -> closed  close_after probes in a row succeeded
--   half open -> open    one probe failed
--
-- Rows are locked in the order (service, endpoint), and one at a time wherever that will do.

create or replace function packhorse.count_calls(p_endpoint packhorse.service_endpoints, p_calls integer,
  p_failures integer, p_now timestamptz)
returns packhorse.service_endpoints
language plpgsql immutable as $$
-- The row after these calls: the window moved on, and the breaker open when enough of its calls have failed,
-- or 4 * least_calls in a row. Reads and writes no table.
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
    and ((p_endpoint.failures + p_endpoint.earlier_failures)::float8
      / (p_endpoint.calls + p_endpoint.earlier_calls)::float8 >= p_endpoint.open_ratio
      -- the window of a busy service is full of successes for half a minute
      or p_endpoint.failures_in_row >= 4 * p_endpoint.least_calls)
  then
    return packhorse.open_endpoint(p_endpoint, p_now);
  end if;
  return p_endpoint;
end
$$;
comment on function packhorse.count_calls(packhorse.service_endpoints, integer, integer, timestamptz) is
  'An endpoint''s row after calls: window and breaker.';

create or replace function packhorse.open_endpoint(p_endpoint packhorse.service_endpoints, p_now timestamptz)
returns packhorse.service_endpoints
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
comment on function packhorse.open_endpoint(packhorse.service_endpoints, timestamptz) is
  'An endpoint''s row with its breaker open.';

create or replace function packhorse.close_endpoint(p_endpoint packhorse.service_endpoints, p_now timestamptz)
returns packhorse.service_endpoints
language plpgsql immutable as $$
-- The row with its breaker closed and an empty window: what failed before says nothing about what comes.
-- Reads and writes no table.
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
comment on function packhorse.close_endpoint(packhorse.service_endpoints, timestamptz) is
  'An endpoint''s row with its breaker closed.';

create or replace function packhorse.keep_endpoint(p_endpoint packhorse.service_endpoints) returns void
language plpgsql as $$
-- Write the breaker and the numbers of a row that the caller has locked.
begin
  update packhorse.service_endpoints s
  set state = p_endpoint.state, forced = p_endpoint.forced, epoch = p_endpoint.epoch,
    bucket_at = p_endpoint.bucket_at, calls = p_endpoint.calls, failures = p_endpoint.failures,
    earlier_calls = p_endpoint.earlier_calls, earlier_failures = p_endpoint.earlier_failures,
    failures_in_row = p_endpoint.failures_in_row, opened_at = p_endpoint.opened_at,
    retry_at = p_endpoint.retry_at, successes = p_endpoint.successes, probe_token = p_endpoint.probe_token,
    probe_until = p_endpoint.probe_until, calls_total = p_endpoint.calls_total,
    failures_total = p_endpoint.failures_total, opened_total = p_endpoint.opened_total
  where s.service = p_endpoint.service and s.endpoint = p_endpoint.endpoint;
end
$$;
comment on function packhorse.keep_endpoint(packhorse.service_endpoints) is
  'Write the circuit breaker and the numbers of an endpoint.';

create or replace function packhorse.rest_service(p_service text, p_earlier boolean default false)
returns void
language plpgsql as $$
-- After a change of a breaker: the scope of the service is parked while no endpoint can be called, until one
-- may be probed, and then one message at a time starts; it is lifted when one can be called. Only where an
-- actor names the service. A park of somebody else that lasts longer stays as it is, and is nobody's but
-- theirs to lift. p_earlier: the time may have come nearer.
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
  from packhorse.service_endpoints s
  where s.service = p_service and s.declared_at > v_now - interval '10 minutes';
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
    perform packhorse.park_scope(p_service, v_until - v_now, 'the circuit is open', p_probing => true,
      p_by => v_by);
  end if;
end
$$;
comment on function packhorse.rest_service(text, boolean) is
  'Park or lift the scope of a service, as its circuit breakers are.';

create or replace function packhorse.report_calls(p_reports jsonb, p_services text[])
returns table (service text, endpoint text, state text, forced text, epoch bigint, retry_in double precision,
  probing boolean, failures_in_row integer, healthy boolean, changed boolean)
language plpgsql set lock_timeout = '1s' as $$
-- Add what a process has counted since its last report, decide which breakers open, and answer with the state
-- of all endpoints of these services. p_reports: an array of {service, endpoint, epoch, calls, failures,
-- in_row (failures since the last success), succeeded}; calls that began under another epoch count in the
-- totals only, so what ends late neither opens nor closes anything. changed: this report has opened it.
declare
  v_report record;
  v_row packhorse.service_endpoints;
  v_before text;
  v_opened jsonb := '[]';
begin
  for v_report in
    select *
    from jsonb_to_recordset(p_reports) as r (service text, endpoint text, epoch bigint, calls integer,
      failures integer, in_row integer, succeeded boolean)
    order by r.service, r.endpoint
  loop
    select * into v_row from packhorse.service_endpoints s
    where s.service = v_report.service and s.endpoint = v_report.endpoint for no key update;
    continue when not found;
    v_before := v_row.state;
    v_row.calls_total := v_row.calls_total + v_report.calls::bigint;
    v_row.failures_total := v_row.failures_total + v_report.failures::bigint;
    if v_row.epoch = v_report.epoch and v_row.state = 'closed' then
      v_row.failures_in_row :=
        case when v_report.succeeded then v_report.in_row else v_row.failures_in_row + v_report.in_row end;
      v_row := packhorse.count_calls(v_row, v_report.calls, v_report.failures, clock_timestamp());
    end if;
    perform packhorse.keep_endpoint(v_row);
    if v_row.state <> v_before then
      perform packhorse.rest_service(v_row.service);
      v_opened := v_opened || jsonb_build_array(jsonb_build_array(v_row.service, v_row.endpoint));
    end if;
  end loop;
  return query select e.*, v_opened @> jsonb_build_array(jsonb_build_array(e.service, e.endpoint))
  from packhorse.endpoint_states(p_services) e;
end
$$;
comment on function packhorse.report_calls(jsonb, text[]) is
  'Add a process''s calls to the circuit breakers; answers with the state of all endpoints of its services.';

create or replace function packhorse.begin_probe(p_service text, p_endpoint text) returns bigint
language plpgsql set lock_timeout = '1s' as $$
-- Begin the one probe of a breaker that may be tried: its token for end_probe, null when it is not time, or
-- another process is at it; 0 when it is closed, and so needs none. A probe that nobody ends is over after
-- probe_lease, and the next one begins.
declare
  v_token bigint;
begin
  update packhorse.service_endpoints s
  set state = 'half_open', probes_total = s.probes_total + 1::bigint,
    probe_token = s.probes_total + 1::bigint, probe_until = clock_timestamp() + s.probe_lease
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
comment on function packhorse.begin_probe(text, text) is
  'Begin the one probe of a half-open circuit breaker: its token, null when it is not to be tried now, 0 when it is closed.';

create or replace function packhorse.end_probe(p_service text, p_endpoint text, p_token bigint,
  p_succeeded boolean) returns text
language plpgsql set lock_timeout = '1s' as $$
-- How a probe ended: closes or opens the breaker, and answers with its state. p_succeeded null: it says
-- nothing (cancelled, the caller's own mistake), and the next probe begins. Null: the probe is over by time,
-- or an operator has forced the breaker; nothing is changed.
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
comment on function packhorse.end_probe(text, text, bigint, boolean) is
  'End a probe of a half-open circuit breaker; the breaker''s state, null when the probe was over.';

create or replace function packhorse.force_service(p_service text, p_state text, p_endpoint text default null,
  p_operator text default current_user, p_reason text default null) returns integer
language plpgsql as $$
-- An operator holds the breakers of a service, or of one endpoint, open or closed, or lets them work by
-- themselves again (p_state: open, closed, automatic). Recorded; says how many it changed. What they learnt
-- before counts no more: from open they go on as half open, else as closed.
declare
  v_row packhorse.service_endpoints;
  v_changed integer := 0;
begin
  perform packhorse.check_service(p_service);
  if p_state is null or p_state <> all (array['open', 'closed', 'automatic']) then
    perform packhorse.refuse_argument('state',
      format('%L is no state to force', left(coalesce(p_state, 'null'), 60)),
      'One of: open, closed, automatic.');
  elsif p_endpoint is not null
    and not exists (select from packhorse.service_endpoints s
      where s.service = p_service and s.endpoint = p_endpoint) then
    perform packhorse.refuse_argument('endpoint', format('the service %L has no such endpoint', p_service),
      'It has: ' || (select string_agg(s.endpoint, ', ' order by s.endpoint)
        from packhorse.service_endpoints s where s.service = p_service) || '.');
  end if;
  for v_row in
    select * from packhorse.service_endpoints s
    where s.service = p_service and (p_endpoint is null or s.endpoint = p_endpoint)
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
    insert into packhorse.operator_actions (action, operator, reason, details)
    values ('force_service', p_operator, p_reason,
      jsonb_build_object('service', p_service, 'endpoint', p_endpoint, 'state', p_state,
        'changed', v_changed));
  end if;
  return v_changed;
end
$$;
comment on function packhorse.force_service(text, text, text, text, text) is
  'Hold the circuit breakers of a service open or closed, or let them work by themselves again.';

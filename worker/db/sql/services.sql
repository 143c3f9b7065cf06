-- name: declare_service
-- Make endpoints of a service known; how many rows were written.
select packhorse.declare_service(%s::text, %s::jsonb);

-- name: report_calls
-- Counts of this process in, states of the endpoints of its services out.
select service, endpoint, state, forced, epoch, retry_in, probing, failures_in_row, healthy, changed
from packhorse.report_calls(%s::jsonb, %s::text[]);

-- name: begin_probe
-- The token of the one probe, or null; 0: the breaker is closed.
select packhorse.begin_probe(%s::text, %s::text);

-- name: end_probe
-- The state of the breaker after it, or null.
select packhorse.end_probe(%s::text, %s::text, %s::bigint, %s::boolean);

-- name: due_health_checks
-- Checks that this process is to make.
select service, endpoint, health_url from packhorse.due_health_checks(%s::text[], %s::integer);

-- name: record_health
-- Whether the endpoint was healthy and whether it is; no row when it is not known.
select was, healthy from packhorse.record_health(%s::text, %s::text, %s::text);

-- name: list_services
-- Every endpoint that was declared within a day, with its breaker, health and numbers.
select s.service, s.endpoint, s.fallback, s.state, s.forced, s.healthy, s.failures_in_row,
  s.calls + s.earlier_calls as recent_calls, s.failures + s.earlier_failures as recent_failures,
  s.calls_total, s.failures_total, s.opened_total,
  s.opened_at, s.retry_at, s.checked_at, s.last_error
from packhorse.service_endpoints s
where s.declared_at > clock_timestamp() - interval '1 day'
  and (%(service)s::text is null or s.service = %(service)s)
order by s.service, s.fallback, s.endpoint;

-- name: force_service
-- Hold breakers open or closed, or let them work by themselves; how many were changed.
select packhorse.force_service(%(service)s::text, %(state)s::text, %(endpoint)s::text, %(operator)s::text,
  %(reason)s::text);

-- name: check_service
-- PH001 with a near miss unless the service is declared.
select packhorse.check_service(%s::text);

-- Endpoints of the services that handlers call: the breaker, the health and the numbers of each, for all
-- processes (SPEC W10). Few rows, updated often; functions/breakers.sql has the rules.
--
-- Lock and duration: a new table, milliseconds.

create table packhorse.service_endpoints (
  service         text             not null,
  endpoint        text             not null,
  -- asked when no other endpoint of the service can be
  fallback        boolean          not null default false,
  health_url      text,
  -- the policy of its breaker, as the code that declares the service says it
  open_ratio      double precision not null,
  least_calls     integer          not null,
  close_after     integer          not null,
  reset_after     interval         not null,
  judged_over     interval         not null,
  probe_lease     interval         not null,
  check_every     interval         not null,
  -- the breaker
  state           text             not null default 'closed',
  forced          text,
  -- grows when the breaker opens, closes or is forced: a call that began before counts no more
  epoch           bigint           not null default 1,
  -- two buckets, each half of judged_over
  bucket_at       timestamptz      not null default clock_timestamp(),
  calls           integer          not null default 0,
  failures        integer          not null default 0,
  earlier_calls   integer          not null default 0,
  earlier_failures integer         not null default 0,
  failures_in_row integer          not null default 0,
  opened_at       timestamptz,
  retry_at        timestamptz,
  successes       integer          not null default 0,
  probes_total    bigint           not null default 0,
  probe_token     bigint,
  probe_until     timestamptz,
  -- health checks; healthy is null before the first one
  healthy         boolean,
  checks_failed   integer          not null default 0,
  next_check_at   timestamptz      not null default clock_timestamp(),
  checked_at      timestamptz,
  last_error      text,
  calls_total     bigint           not null default 0,
  failures_total  bigint           not null default 0,
  opened_total    bigint           not null default 0,
  declared_at     timestamptz      not null default clock_timestamp(),
  constraint service_endpoints_pkey primary key (service, endpoint),
  constraint service_endpoints_state_known check (state in ('closed', 'open', 'half_open')),
  constraint service_endpoints_forced_known check (forced in ('open', 'closed'))
) with (fillfactor = 30);
comment on table packhorse.service_endpoints is
  'Endpoints of services that handlers call: circuit breaker, health and totals, shared by all processes (SPEC W10).';

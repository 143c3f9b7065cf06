-- What happened: at the webhooks, for the auditor, on the platform (SPEC C2, C5).
--
-- A webhook has many rows, one per delivery attempt: is_new_message() refuses duplicates, no key does. Audit
-- records are written once: triggers refuse changes, and the deletion of the category security, to the owner
-- too (functions/triggers.sql).
-- Lock and duration: new objects only, milliseconds; an adopted table is locked while its indexes are built.

create table if not exists platform.webhook_events (
  id             uuid        not null default gen_random_uuid(),
  event_category text        not null,
  event_type     text        not null,
  webhook_id     text,
  source         text,
  destination    text,
  payload        jsonb,
  headers        jsonb,
  status         text,
  retry_count    integer     default 0,
  error_code     text,
  error_message  text,
  created_at     timestamptz default clock_timestamp(),
  delivered_at   timestamptz,
  metadata       jsonb       default '{}',
  constraint webhook_events_pkey primary key (id)
);
alter table platform.webhook_events add column if not exists correlation_id text;
create index if not exists idx_webhook_events_category on platform.webhook_events (event_category);
create index if not exists idx_webhook_events_type on platform.webhook_events (event_type);
create index if not exists idx_webhook_events_webhook_id on platform.webhook_events (webhook_id);
create index if not exists idx_webhook_events_status on platform.webhook_events (status)
where status <> 'delivered';
create index if not exists idx_webhook_events_created on platform.webhook_events (created_at desc);
create index if not exists idx_webhook_events_source on platform.webhook_events (source);
create index if not exists idx_webhook_events_category_status on platform.webhook_events (event_category,
  status, created_at desc);
create unique index if
  not exists idx_webhook_events_migrated on platform.webhook_events ((metadata ->> 'migrated_from'),
    (metadata ->> 'migrated_id'))
  where metadata operator(pg_catalog.?) 'migrated_from';
comment on table platform.webhook_events is
  'Webhooks that came in or went out, one row per attempt; kept for a time after it was finished with.';

create table if not exists platform.audit_events (
  id             uuid        not null default gen_random_uuid(),
  event_category text        not null,
  event_type     text        not null,
  user_id        uuid,
  actor_type     text,
  actor_ip       text,
  resource_type  text,
  resource_id    uuid,
  action         text        not null,
  changes        jsonb,
  metadata       jsonb       default '{}',
  status         text        default 'success',
  error_message  text,
  created_at     timestamptz default clock_timestamp(),
  constraint audit_events_pkey primary key (id)
);
alter table platform.audit_events add column if not exists correlation_id text;
create index if not exists idx_audit_events_category on platform.audit_events (event_category);
create index if not exists idx_audit_events_user_id on platform.audit_events (user_id);
create index if not exists idx_audit_events_resource on platform.audit_events (resource_type, resource_id);
create index if not exists idx_audit_events_created on platform.audit_events (created_at desc);
create index if not exists idx_audit_events_action on platform.audit_events (action);
create index if not exists idx_audit_events_security on platform.audit_events (created_at desc)
where event_category = 'security';
create unique index if
  not exists idx_audit_events_migrated on platform.audit_events ((metadata ->> 'migrated_from'),
    (metadata ->> 'migrated_id'))
  where metadata operator(pg_catalog.?) 'migrated_from';
create index if not exists idx_audit_events_retention on platform.audit_events (created_at)
where event_category <> 'security';
comment on table platform.audit_events is
  'Who did what: written once, never changed; the category security is never deleted.';

create table if not exists platform.platform_events (
  id         uuid        not null default gen_random_uuid(),
  event_type text        not null,
  user_id    uuid,
  session_id text,
  properties jsonb       default '{}',
  created_at timestamptz not null default clock_timestamp(),
  constraint platform_events_pkey primary key (id)
);
create index if not exists idx_platform_events_event_type on platform.platform_events (event_type);
create index if not exists idx_platform_events_user_id on platform.platform_events (user_id);
create index if not exists idx_platform_events_session_id on platform.platform_events (session_id);
create index if not exists idx_platform_events_created_at on platform.platform_events (created_at desc);
create index if not exists idx_platform_events_type_date on platform.platform_events (event_type,
  created_at desc);
create index if not exists idx_platform_events_user_journey on platform.platform_events (user_id,
  created_at desc) where user_id is not null;
create index if not exists idx_platform_events_properties on platform.platform_events using gin (properties);
comment on table platform.platform_events is 'What people did on the platform; kept 90 days.';

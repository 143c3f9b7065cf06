-- name: logs_webhook_logs
-- Rows of webhook_logs become events that came in. A row that the source has changed since is copied again:
-- it belongs to the source as long as that exists.
with read as materialized (select {key_text} as key, to_jsonb(s) as j from {source} s where {in_batch}),
  written as (
  insert into platform.webhook_events as e (event_category, event_type, webhook_id, source, payload, status,
    created_at, metadata)
  select 'incoming', coalesce(r.j ->> 'event_type', 'unknown'), r.j ->> 'webhook_id', r.j ->> 'source',
    r.j -> 'payload', coalesce(r.j ->> 'status', 'completed'),
    (r.j ->> 'created_at')::timestamptz,
    coalesce((select jsonb_build_object('original', jsonb_object_agg(o.key, o.value))
      from jsonb_each(r.j - array['id', 'event_type', 'webhook_id', 'source', 'payload', 'status',
        'created_at']) o
      where o.value <> 'null' having count(*) > 0), '{{}}')
      || jsonb_build_object('migrated_from', %(from)s::text, 'migrated_id', r.key,
        'migrated_hash', md5(r.j::text))
  from read r
  on conflict ((metadata ->> 'migrated_from'), (metadata ->> 'migrated_id'))
  where metadata operator(pg_catalog.?) 'migrated_from' do update
    set event_type = excluded.event_type, webhook_id = excluded.webhook_id, source = excluded.source,
      payload = excluded.payload, status = excluded.status, created_at = excluded.created_at,
      metadata = excluded.metadata
    where e.metadata ->> 'migrated_hash' is distinct from excluded.metadata ->> 'migrated_hash'
  returning (xmax = 0) as is_new
)
select count(*) filter (where w.is_new), 0 from written w;

-- name: logs_webhook_delivery_log
-- Rows of webhook_delivery_log become attempts of delivery.
with read as materialized (select {key_text} as key, to_jsonb(s) as j from {source} s where {in_batch}),
  written as (
  insert into platform.webhook_events as e (event_category, event_type, webhook_id, destination, status,
    retry_count, error_message, created_at, delivered_at, metadata)
  select 'delivery', 'delivery_attempt', r.j ->> 'webhook_id', r.j ->> 'recipient', r.j ->> 'status',
    coalesce((r.j ->> 'retry_count')::integer, 0), r.j ->> 'error_message',
    (r.j ->> 'created_at')::timestamptz, (r.j ->> 'delivered_at')::timestamptz,
    coalesce((select jsonb_build_object('original', jsonb_object_agg(o.key, o.value))
      from jsonb_each(r.j - array['id', 'webhook_id', 'recipient', 'status', 'retry_count', 'error_message',
        'created_at', 'delivered_at']) o
      where o.value <> 'null' having count(*) > 0), '{{}}')
      || jsonb_build_object('migrated_from', %(from)s::text, 'migrated_id', r.key,
        'migrated_hash', md5(r.j::text))
  from read r
  on conflict ((metadata ->> 'migrated_from'), (metadata ->> 'migrated_id'))
  where metadata operator(pg_catalog.?) 'migrated_from' do update
    set webhook_id = excluded.webhook_id, destination = excluded.destination, status = excluded.status,
      retry_count = excluded.retry_count, error_message = excluded.error_message,
      created_at = excluded.created_at, delivered_at = excluded.delivered_at, metadata = excluded.metadata
    where e.metadata ->> 'migrated_hash' is distinct from excluded.metadata ->> 'migrated_hash'
  returning (xmax = 0) as is_new
)
select count(*) filter (where w.is_new), 0 from written w;

-- name: logs_audit
-- Rows of an audit log become audit events, by the names of their columns; what fits none stays in
-- metadata.original. A record is never rewritten: a row that changed since is in the ledger.
with read as materialized (select {key_text} as key, to_jsonb(s) as j, {known_user} as user_key
  from {source} s where {in_batch}), named as materialized (
  select r.key, r.j, r.user_key,
    case when %(event_type)s::text is not null then null when r.j ->> 'event_type' <> '' then 'event_type'
      when r.j ->> 'type' <> '' then 'type' when r.j ->> 'event' <> '' then 'event'
      when r.j ->> 'action' <> '' then 'action' end as event_key,
    case when r.j ->> 'action' <> '' then 'action'
      when r.j ->> 'operation' <> '' then 'operation' end as action_key,
    case when r.j ->> 'actor_ip' <> '' then 'actor_ip' when r.j ->> 'ip_address' <> '' then 'ip_address'
      when r.j ->> 'ip' <> '' then 'ip' end as ip_key,
    case when r.j ->> 'resource_type' <> '' then 'resource_type'
      when r.j ->> 'table_name' <> '' then 'table_name' when r.j ->> 'entity_type' <> '' then 'entity_type'
      when r.j ->> 'target_type' <> '' then 'target_type' end as resource_key,
    case when lower(r.j ->> 'resource_id') ~ {uuid} then 'resource_id'
      when lower(r.j ->> 'record_id') ~ {uuid} then 'record_id'
      when lower(r.j ->> 'entity_id') ~ {uuid} then 'entity_id'
      when lower(r.j ->> 'target_id') ~ {uuid} then 'target_id' end as id_key,
    case when r.j ->> 'changes' is not null then 'changes'
      when r.j ->> 'diff' is not null then 'diff' end as changes_key,
    case when r.j ->> 'old_values' is not null then 'old_values'
      when r.j ->> 'old_data' is not null then 'old_data' end as old_key,
    case when r.j ->> 'new_values' is not null then 'new_values'
      when r.j ->> 'new_data' is not null then 'new_data' end as new_key,
    case when r.j ->> 'error_message' <> '' then 'error_message'
      when r.j ->> 'error' <> '' then 'error' end as error_key,
    case when r.j ->> 'created_at' is not null then 'created_at'
      when r.j ->> 'timestamp' is not null then 'timestamp'
      when r.j ->> 'occurred_at' is not null then 'occurred_at' end as time_key
  from read r
), placed as materialized (
  select n.*, coalesce(%(event_type)s::text, n.j ->> n.event_key, %(from)s::text) as event_type,
    coalesce(lower(n.j ->> n.action_key), 'log') as action,
    case when n.j ->> 'status' in ('success', 'failed', 'unauthorized')
      then n.j ->> 'status' end as known_status,
    case when n.changes_key is null and coalesce(n.old_key, n.new_key) is not null
      then case when n.new_key is null then jsonb_build_object('before', n.j -> n.old_key)
        when n.old_key is null then jsonb_build_object('after', n.j -> n.new_key)
        else jsonb_build_object('before', n.j -> n.old_key, 'after', n.j -> n.new_key) end
      else n.j -> n.changes_key end as changes
  from named n
), mapped as materialized (
  select p.*,
    p.j - array_remove(array['id', 'actor_type', p.event_key, p.user_key, p.ip_key, p.resource_key, p.id_key,
      p.changes_key, p.error_key, p.time_key,
    case when p.changes_key is null then p.old_key end, case when p.changes_key is null then p.new_key end,
    case when p.j ->> p.action_key = p.action then p.action_key end,
      case when p.known_status is not null then 'status' end], null) as rest
  from placed p
), copied as (
  insert into platform.audit_events (event_category, event_type, user_id, actor_type, actor_ip, resource_type,
    resource_id, action, changes, metadata, status, error_message, created_at)
  select %(category)s, m.event_type, (m.j ->> m.user_key)::uuid,
    coalesce(m.j ->> 'actor_type', case when m.user_key is null then 'system' else 'user' end),
    m.j ->> m.ip_key, m.j ->> m.resource_key, (m.j ->> m.id_key)::uuid, m.action, m.changes,
    -- all that has no place of its own, and what is not the same in it
    coalesce((select jsonb_build_object('original', jsonb_object_agg(o.key, o.value))
      from jsonb_each(m.rest) o where o.value <> 'null' having count(*) > 0), '{{}}')
      || jsonb_build_object('migrated_from', %(from)s::text, 'migrated_id', m.key,
        'migrated_hash', md5(m.j::text)),
    coalesce(m.known_status, 'success'), m.j ->> m.error_key, (m.j ->> m.time_key)::timestamptz
  from mapped m
  on conflict ((metadata ->> 'migrated_from'), (metadata ->> 'migrated_id'))
  where metadata operator(pg_catalog.?) 'migrated_from' do nothing
  returning 1
), told as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value, target_id)
  select %(backfill)s, %(label)s, r.key, 'changed',
    'the row was changed after it was copied; a record is never rewritten', r.j, e.id::text
  from read r
  cross join lateral (select a.* from platform.audit_events a
    where a.metadata ->> 'migrated_from' = %(from)s and a.metadata ->> 'migrated_id' = r.key
    and a.metadata operator(pg_catalog.?) 'migrated_from' limit 1) e
  where e.metadata ->> 'migrated_hash' <> md5(r.j::text)
  on conflict (backfill, source_table, source_id) do update
  set old_value = excluded.old_value, recorded_at = excluded.recorded_at
    where l.old_value is distinct from excluded.old_value
  returning 1
)
select (select count(*) from copied), (select count(*) from told);

-- name: logs_user_key
-- The foreign key of audit_events.user_id: its table and column; no row when the host has none.
select n.nspname::text, c.relname::text, a.attname::text from pg_constraint k join pg_class c
  on c.oid = k.confrelid join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = k.confrelid and a.attnum = k.confkey[1] join pg_attribute u
  on u.attrelid = k.conrelid and u.attnum = k.conkey[1]
where k.conrelid = 'platform.audit_events'::regclass and k.contype = 'f' and u.attname = 'user_id';

-- name: logs_any_user
-- Which column has a person, by its form alone.
case when lower(to_jsonb(s) ->> 'user_id') ~ {uuid} then 'user_id'
  when lower(to_jsonb(s) ->> 'actor_id') ~ {uuid} then 'actor_id'
  when lower(to_jsonb(s) ->> 'performed_by') ~ {uuid} then 'performed_by' end;

-- name: logs_known_user
-- Which column has a person whom the foreign key accepts.
(select c.name from (values ('user_id', 1), ('actor_id', 2), ('performed_by', 3)) as c (name, place)
  where case when lower(to_jsonb(s) ->> c.name) ~ {uuid}
    then exists (select from {users} u where u.{user} = (to_jsonb(s) ->> c.name)::uuid) end
  order by c.place limit 1);

-- name: logs_accounts
-- Every row of the source: copied, explained, or missing. stale: the source has changed it since, and that is
-- not explained.
select count(*) as source, count(*) filter (where e.id is not null) as migrated,
  count(*) filter (where e.id is null and l.source_id is not null) as explained,
  count(*) filter (where e.id is null and l.source_id is null) as missing,
  count(*) filter (where e.metadata ->> 'migrated_hash' <> md5(to_jsonb(s)::text)
    and l.old_value is distinct from to_jsonb(s)) as stale,
  (array_agg({key_text} order by {key_text})
    filter (where e.id is null and l.source_id is null))[1:10] as examples
from {source} s left join {target} e
  on e.metadata operator(pg_catalog.?) 'migrated_from' and e.metadata ->> 'migrated_from' = %(from)s
  and e.metadata ->> 'migrated_id' = {key_text}
left join platform.platform_backfill_rows l
  on l.backfill = %(backfill)s and l.source_table = %(label)s and l.source_id = {key_text};

-- name: logs_orphans
-- Copies whose row the source has no more.
select count(*) from {target} e
where e.metadata operator(pg_catalog.?) 'migrated_from' and e.metadata ->> 'migrated_from' = %(from)s
  and not exists (select from {source} s where {key_text} = e.metadata ->> 'migrated_id');

-- name: logs_older_than
-- Rows that the nightly retention of the target would take.
select count(*) from {source} s
where (to_jsonb(s) ->> {time})::timestamptz < statement_timestamp() - make_interval(days => %(days)s);

-- name: logs_inventory
-- What each log table has seen.
select w.name, pg_stat_get_live_tuples(c.oid) as live, pg_stat_get_dead_tuples(c.oid) as dead,
  pg_stat_get_tuples_inserted(c.oid) as inserted,
  pg_stat_get_tuples_updated(c.oid) as updated, pg_stat_get_tuples_deleted(c.oid) as deleted,
  pg_total_relation_size(c.oid) as bytes
from unnest(%(names)s::text[]) with ordinality as w (name, place) join pg_class c
  on c.oid = to_regclass(%(schema)s || '.' || w.name) order by w.place;

-- name: logs_webhook_logs_view
-- Readers of webhook_logs.
create or replace view platform.webhook_logs_compat {options} as select e.* from platform.webhook_events e
where e.event_category = 'incoming';

-- name: logs_webhook_delivery_log_view
-- Readers of webhook_delivery_log.
create or replace view platform.webhook_delivery_log_compat {options} as
select e.*, e.destination as recipient from platform.webhook_events e where e.event_category = 'delivery';

-- name: logs_audit_logs_view
-- Readers of audit_logs.
create or replace view platform.audit_logs_compat {options} as select e.* from platform.audit_events e
where e.event_category = 'user_action';

-- name: logs_view_comment
-- For whoever meets it.
comment on view {view} is 'Events in place of an old log table; until the clean-up of its backfill.';

-- name: logs_drop_view
-- Its time is over.
drop view if exists {view};

-- name: logs_take_back_webhooks
-- The way back: copies of these rows go.
with read as (select {key_text} as key from {source} s where {in_batch}), gone as (
  delete from platform.webhook_events e
  where e.metadata operator(pg_catalog.?) 'migrated_from' and e.metadata ->> 'migrated_from' = %(from)s
    and e.metadata ->> 'migrated_id' = any (array(select r.key from read r)) returning 1)
select count(*) from gone;

-- name: logs_take_back_audit
-- The same for audit events, which only one function may remove.
select platform.take_back_audit_events(%(from)s,
  (select array_agg({key_text}) from {source} s where {in_batch}));

-- name: logs_left
-- Copies that are still there: their rows are gone from the source.
select count(*) from {target} e
where e.metadata operator(pg_catalog.?) 'migrated_from' and e.metadata ->> 'migrated_from' = %(from)s;

-- name: schema_objects
-- Every object of the queue, the platform and the public API (kind: api function) with a definition that no
-- server version and no schema name changes; partitions left out. What a definition says is a statement that
-- makes the object, where one is short enough.
with of_platform as (
  select t.relnamespace as schema, o.name from pg_class t, packhorse.packhorse_migrations m
  cross join lateral unnest(m.objects) as o (name)
  where t.oid = to_regclass('platform.companies') and starts_with(m.name, 'platform/')),
queue as (select c.relnamespace as oid from pg_class c where c.oid = to_regclass('packhorse.message_queue')),
relations as (
  select c.oid, c.relname::text as name, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relacl
  from pg_class c where not c.relispartition and (c.relnamespace in (select q.oid from queue q)
      or exists (select from of_platform o where o.schema = c.relnamespace and (o.name = c.relname::text
        or o.name = (select t.relname::text from pg_class t
          where t.oid = (select x.indrelid from pg_index x where x.indexrelid = c.oid))
        or exists (select from pg_depend d join pg_class t on t.oid = d.refobjid
          where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
            and t.relname::text = o.name))))
    and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')),
functions as (
  select p.*, 'function' as kind, p.oid::regprocedure::text as signature from pg_proc p
  where (p.pronamespace in (select q.oid from queue q)
      or exists (select from of_platform o where o.schema = p.pronamespace and o.name = p.proname::text))
    and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
  union all -- regprocedure would give the schema of those that the queue has, too
  select p.*, 'api function', format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)) from pg_proc p
  where p.pronamespace = (select n.oid from pg_namespace n where n.nspname = (parse_ident('platform.x'))[1])
    and p.proname::text in (select o.name from packhorse.packhorse_migrations m
      cross join lateral unnest(m.objects) as o (name) where starts_with(m.name, 'public-api/')))
select o.kind, o.name, o.definition from (
select 'table' as kind, r.name,
  case r.relkind when 'p' then 'partition by ' || pg_get_partkeydef(r.oid) || ', ' else '' end
    || case when r.relrowsecurity then 'row level security' else 'open' end as definition
from relations r where r.relkind in ('r', 'p')
union all
select 'column', r.name || '.' || t.attname,
  format('alter table %s add column %s %s%s%s', r.name, t.attname, format_type(t.atttypid, t.atttypmod),
  case when t.attnotnull then ' not null' else '' end,
    coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''))
from relations r join pg_attribute t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
left join pg_attrdef d on d.adrelid = r.oid and d.adnum = t.attnum where r.relkind in ('r', 'p')
union all
select 'view', r.name,
  'columns ' || string_agg(t.attname || ' ' || format_type(t.atttypid, t.atttypmod), ', ' order by t.attnum)
from relations r join pg_attribute t on t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped
where r.relkind = 'v' group by r.name
union all
select 'sequence', r.name, 'create sequence ' || r.name from relations r where r.relkind = 'S'
union all
select 'index', r.name, pg_get_indexdef(r.oid, 0, true) from relations r where r.relkind in ('i', 'I')
union all
select 'constraint', r.name || '.' || c.conname,
  format('alter table %s add constraint %s %s', r.name, c.conname, pg_get_constraintdef(c.oid, true))
from relations r join pg_constraint c on c.conrelid = r.oid
where c.contype in ('c', 'f', 'p', 'u', 'x') and r.relkind in ('r', 'p')
union all
select 'domain', t.typname,
  format('create domain %s as %s %s', t.typname, format_type(t.typbasetype, t.typtypmod),
  coalesce(string_agg('constraint ' || c.conname || ' ' || pg_get_constraintdef(c.oid, true), ' '
    order by c.conname) filter (where c.contype = 'c'), ''))
from pg_type t left join pg_constraint c on c.contypid = t.oid
where t.typtype = 'd' and (t.typnamespace in (select q.oid from queue q) or exists (
  select from of_platform o where o.schema = t.typnamespace and o.name = t.typname::text)) group by t.oid
union all
select 'trigger', r.name || '.' || g.tgname, pg_get_triggerdef(g.oid, true) from relations r join pg_trigger g
  on g.tgrelid = r.oid where not g.tgisinternal
union all
select 'policy', p.tablename || '.' || p.policyname,
  format('create policy %s on %s for %s to %s%s%s', p.policyname, p.tablename, lower(p.cmd),
  array_to_string(p.roles, ', '), coalesce(' using (' || p.qual || ')', ''),
  coalesce(' with check (' || p.with_check || ')', ''))
from pg_policies p join pg_namespace n on n.nspname = p.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
where c.oid in (select r.oid from relations r)
  -- those of a host depend on the roles that it has
  and p.roles <@ array['packhorse_worker', 'packhorse_producer', 'packhorse_reader']::name[]
union all
select f.kind, f.signature, format('returns %s, %s%s%s, body %s', pg_get_function_result(f.oid),
  case f.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
  case when f.prosecdef then ', security definer'
    || case when array_to_string(f.proconfig, ' ') ~ 'pg_temp' then ', pinned' else '' end else '' end,
  (select string_agg(', set '
    || case when s.setting like 'search_path=%%' then 'search_path' else s.setting end, '' order by s.setting)
   from unnest(f.proconfig) as s (setting)), md5({body}))
from functions f) o
order by o.kind collate "C", o.name collate "C";

-- name: unqualified_names
-- Until the end of the transaction: names without their schema.
select set_config('search_path', %s, true);

-- name: adopted_tables
-- Tables of the platform that stood here before it, and whether they were left as they are.
select a.name, a.is_left_alone from platform.platform_adopted_tables a;

-- name: invalid_indexes
-- Indexes of the queue's schema that a concurrent build left unfinished, partitions included.
select i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition
from pg_index i join pg_class c on c.oid = i.indexrelid
where c.relnamespace = (select q.relnamespace from pg_class q
  where q.oid = to_regclass('packhorse.message_queue')) and not (i.indisvalid and i.indisready)
order by 1;

-- name: unvalidated_constraints
-- Constraints of the queue's schema that were never validated.
select c.conrelid::regclass::text as table_name, c.conname as name
from pg_constraint c
where c.connamespace = (select q.relnamespace from pg_class q
  where q.oid = to_regclass('packhorse.message_queue')) and not c.convalidated and c.conrelid <> 0
order by 1, 2;

-- name: backend_pid
-- The server process behind this transaction.
select pg_backend_pid();

-- name: doctor_listen
-- Hear what doctor_notify says.
listen packhorse_doctor;

-- name: doctor_notify
-- Say a word to the connection that listens.
select pg_notify('packhorse_doctor', %s);

-- name: doctor_server
-- Facts of the server, the role and the settings of this session, in one row.
select current_setting('server_version_num')::integer as version,
  current_setting('server_version') as version_text, pg_is_in_recovery() as in_recovery,
  current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
    - coalesce(current_setting('reserved_connections', true)::integer, 0) as connections_open_to_all,
  (select count(*) from pg_stat_activity a
    where a.datid is not null
      and coalesce(a.backend_type, 'client backend') = 'client backend') as connections,
  r.rolconnlimit as role_limit, r.rolsuper as superuser, r.rolbypassrls as bypassrls,
  current_user::text as role, current_database()::text as database,
  (parse_ident('packhorse.x'))[1] as schema,
  pg_has_role('pg_read_all_stats', 'usage') as sees_all_statistics,
  extract(epoch from clock_timestamp())::float8 as clock
from pg_roles r where r.rolname = current_user;

-- name: doctor_roles
-- The roles of the migrations: which are missing, and whether this login may act as the worker.
select w.role, r.oid is not null as exists,
  coalesce(pg_has_role(current_user, r.oid, 'usage'), false) as member
from (values ('packhorse_worker'), ('packhorse_producer'), ('packhorse_reader')) as w (role)
left join pg_roles r on r.rolname = w.role order by 1;

-- name: doctor_retention
-- What ages by policy and nobody deletes: is there a webhook id or a dead letter older than the shipped
-- policies keep, and no scheduler alive?
select coalesce((select p.first_seen_at < clock_timestamp() - interval '8 days'
  from packhorse.processed_messages p order by p.first_seen_at limit 1), false) as webhook_ids,
  coalesce((select d.dead_at < clock_timestamp() - interval '31 days' from packhorse.dead_letters d
    where not d.blocks_conversation order by d.dead_at limit 1), false)
    as dead_letters,
  exists (select from packhorse.workers w
    where %s = any (w.message_types)
      and w.last_seen_at > clock_timestamp() - interval '1 minute') as scheduler;

-- name: doctor_retry_spans
-- Queues by how long an outage their retries outlast, the shortest first; those with a failure breaker are
-- left out.
select name as queue, max_attempts as attempts, false as breaker,
  extract(epoch from packhorse.retry_span(max_attempts, backoff_initial, backoff_multiplier, backoff_max,
    backoff_jitter))::float8 as seconds
from packhorse.queues where failure_breaker is null order by 4, 1;

-- name: doctor_relays
-- Relays that live, queues that are forwarded, and those of them that no relay serves.
select
  (select count(*) from packhorse.workers w where w.forward is not null
    and clock_timestamp() - w.last_seen_at <= w.lease_duration) as relays,
  (select count(*) from packhorse.queues q where q.forward is not null) as forwarded,
  array(select q.name::text from packhorse.queues q where q.forward is not null
    and not exists (select from packhorse.workers w where w.forward = q.forward and q.name = any (w.queues)
      and clock_timestamp() - w.last_seen_at <= w.lease_duration) order by q.name limit 10) as unserved;

-- name: doctor_highest
-- The highest number in a column.
select max({column}) from {table} where {column} is not null;

-- name: doctor_runways
-- For how many days inserts find a partition, by table; 0 of an archive without any.
select coalesce(e.table_name, 'message_archive') as table_name, coalesce(e.every, 'day') as every,
  coalesce(case when isfinite(e.ends_at)
    then greatest(extract(epoch from e.ends_at - clock_timestamp()) / 86400, 0)::float8 else 'infinity' end,
    0) as days
from (values ('message_archive')) as a (name) full join packhorse.partition_ends(clock_timestamp()) e
  on e.table_name = a.name
order by 1;

-- name: doctor_sequences
-- Sequences of ours, a row for each column that they fill. stands: the last number given out. visible: this
-- role may see that, and the column. of_worker: workers take numbers from it. A message keeps its id when it
-- is archived or buried.
with of_platform as (
  select t.relnamespace as schema, o.name from pg_class t, packhorse.packhorse_migrations m
  cross join lateral unnest(m.objects) as o (name)
  where t.oid = to_regclass('platform.companies') and starts_with(m.name, 'platform/')),
filled (sequence, filled, column_name) as (
  select d.objid, d.refobjid, a.attname::text from pg_depend d
  join pg_class t on t.oid = d.refobjid join pg_attribute a on a.attrelid = t.oid and a.attnum = d.refobjsubid
  where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
    and t.relkind in ('r', 'p')
    and (t.relnamespace = (select q.relnamespace from pg_class q
      where q.oid = 'packhorse.message_queue'::regclass)
      or exists (select from of_platform o where o.schema = t.relnamespace and o.name = t.relname::text))
  union
  values ('packhorse.message_queue_id_seq'::regclass::oid, 'packhorse.dead_letters'::regclass::oid, 'id'),
    ('packhorse.message_queue_id_seq'::regclass::oid, 'packhorse.message_archive'::regclass::oid, 'id'),
    ('packhorse.message_lease_token_seq'::regclass::oid, 'packhorse.message_queue'::regclass::oid,
      'lease_token'))
select s.relname::text as name, n.nspname::text as schema, t.relname::text as table_name, f.column_name,
  p.last_value as stands,
  s.oid in ('packhorse.message_queue_id_seq'::regclass::oid,
    'packhorse.message_lease_token_seq'::regclass::oid) as of_worker,
  has_sequence_privilege(s.oid, 'usage, select')
    and has_column_privilege(t.oid, f.column_name, 'select') as visible
from filled f join pg_class s on s.oid = f.sequence and s.relkind = 'S' join pg_class t on t.oid = f.filled
join pg_namespace n on n.oid = t.relnamespace
join pg_namespace w on w.oid = s.relnamespace join pg_sequences p
  on p.schemaname = w.nspname and p.sequencename = s.relname
order by 1, 3;

-- name: doctor_settings
-- Settings that can hurt, as this session has them; where connect() overrules one, as other sessions of the
-- role have it.
select name, case name when 'default_transaction_isolation' then reset_val else setting end as setting
from pg_settings
where name in ('idle_in_transaction_session_timeout', 'synchronous_commit', 'autovacuum', 'track_counts',
  'fsync', 'full_page_writes', 'statement_timeout',
  'default_transaction_read_only', 'default_transaction_isolation')
order by name;

-- name: migrations_table
-- The record of applied migrations. objects: names of the tables, views, types and functions that each makes.
create table if not exists packhorse.packhorse_migrations (
  name text primary key, checksum text not null, applied_at timestamptz not null default clock_timestamp(),
  runs_beside text, release text not null, objects text[] not null);

-- name: migrations_exist
-- Is there a record?
select to_regclass('packhorse.packhorse_migrations') is not null;

-- name: migrations_applied
-- What was applied, in order. By way of JSON: the record of an unreleased version has other columns.
select m.name, m.checksum, m.applied_at, to_jsonb(m) ->> 'runs_beside' as runs_beside,
  to_jsonb(m) ->> 'release' as release
from packhorse.packhorse_migrations m order by m.name;

-- name: migrations_lock
-- One migrator of a schema at a time; ends with the transaction.
select pg_try_advisory_xact_lock(hashtext('packhorse migrate'), hashtext(%s::text));

-- name: migrations_lock_holder
-- Who holds the lock.
select a.pid, a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.classid = hashtext('packhorse migrate')::oid
  and a.pid <> pg_backend_pid() limit 1;

-- name: migrations_unchecked_bodies
-- A function may call another one that a later file makes.
set local check_function_bodies = off;

-- name: migrations_record
-- One migration was applied, for the first time or anew.
insert into packhorse.packhorse_migrations as m (name, checksum, runs_beside, release, objects)
values (%s, %s, %s, %s, %s)
on conflict (name) do update
set checksum = excluded.checksum, runs_beside = excluded.runs_beside, release = excluded.release,
  objects = excluded.objects, applied_at = clock_timestamp();

-- name: migrations_forget
-- One migration was taken back.
delete from packhorse.packhorse_migrations where name = %s;

-- name: migrations_forget_functions
-- All functions of a set were taken back.
delete from packhorse.packhorse_migrations where starts_with(name, %s);

-- name: migrations_drop_functions
-- Statements that drop the functions and views which files of functions have made. Triggers go with their
-- function.
with made as (
  select n.nspname, n.oid as schema, o.name from pg_namespace n, packhorse.packhorse_migrations m
  cross join lateral unnest(m.objects) as o (name)
  where n.nspname = %(schema)s and starts_with(m.name, %(prefix)s))
select format('drop view if exists %%I.%%I', m.nspname, c.relname) from made m join pg_class c
  on c.relnamespace = m.schema and c.relname = m.name and c.relkind = 'v'
union all
select distinct format('drop function %%s cascade', p.oid::regprocedure) from made m join pg_proc p
  on p.pronamespace = m.schema and p.proname = m.name;

-- name: migrations_timeouts
-- A migration waits for no lock longer than this: while it waits, everybody who comes after it waits, too.
set local lock_timeout = '1s';

-- name: migrations_mend_rights
-- The same as the migrator does with the statements of a set.
do $$
declare
  v_statement text;
begin
  for v_statement in {rights} loop
    execute v_statement;
  end loop;
end
$$;

-- name: rights_of_queue
-- Statements that make the rights on the queue's objects what they should be.
select * from packhorse.queue_rights();

-- name: rights_of_platform
-- The same of the platform.
select * from platform.platform_rights();

-- name: rights_of_public_api
-- The same of the public API.
select * from platform.public_api_rights();

-- name: migrations_refresh_platform
-- What the host's tables and roles make possible.
select platform.refresh_platform_access();

-- name: schema_contents
-- Something that stands in a schema; of an extension nothing.
select f.kind, f.name from (
  select case c.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end as kind,
    c.relname::text as name, c.oid, 'pg_class'::regclass as class
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = %(schema)s and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all
  select 'function', p.proname::text, p.oid, 'pg_proc'::regclass from pg_proc p join pg_namespace n
    on n.oid = p.pronamespace where n.nspname = %(schema)s
  union all
  select 'type', t.typname::text, t.oid, 'pg_type'::regclass from pg_type t join pg_namespace n
    on n.oid = t.typnamespace
  where n.nspname = %(schema)s and t.typtype in ('d', 'e', 'r')) f
-- what `migrate down` leaves
where f.name not in ('packhorse_migrations', 'packhorse_import', 'packhorse_import_plan')
  and not exists (select from pg_depend d where d.classid = f.class and d.objid = f.oid and d.deptype = 'e')
order by 1 desc, 2 limit 1;

-- name: server_version
-- The version of the server.
select current_setting('server_version_num')::int;

-- name: database_exists
-- Is there a database of this name?
select exists (select from pg_database where datname = %s);

-- name: create_database
-- A database of our own on the embedded server.
create database {name};

-- name: schema_exists
-- Is there a schema of this name?
select exists (select from pg_namespace where nspname = %s);

-- name: create_schema
-- A schema of ours.
create schema if not exists {name};

-- name: role_exists
-- Is there a role of this name?
select exists (select from pg_roles where rolname = %s);

-- name: create_login_role
-- A login that may do what a worker does and no more.
create role {name} login in role packhorse_worker;

-- name: is_copy
-- Is this database a copy that nobody has accepted?
select packhorse.is_copy();

-- name: copied_work
-- What a copy would start: live messages by state, schedules that are not paused; when the last of its
-- messages was enqueued.
select count(*) filter (where state in ('pending', 'blocked')) as waiting,
  count(*) filter (where state = 'running') as running,
  (select count(*) from packhorse.schedules where paused_at is null) as schedules,
  max(created_at) as newest_at
from packhorse.message_queue;

-- name: accept_copy
-- Let a copy go on by itself; false when it is none.
select packhorse.accept_copy(%s, %s, %s);

-- name: mark_copy
-- Nothing starts until somebody accepts this database; false when it was so already.
select packhorse.mark_copy(%s, %s);

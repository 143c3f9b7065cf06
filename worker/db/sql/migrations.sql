-- name: migrations_table
-- The record of applied migrations.
create table if not exists packhorse_migrations (
  name text primary key, checksum text not null, applied_at timestamptz not null default clock_timestamp(), runs_beside text);

-- name: migrations_readable
-- Any role may ask which version it is. None but the owner writes there, whatever default privileges gave to whom: no worker
-- starts on a record that lacks a line.
do $$
declare
  v_other regrole;
begin
  revoke all on packhorse_migrations from public;
  for v_other in select distinct a.grantee from pg_class c cross join aclexplode(c.relacl) a
    where c.oid = to_regclass('packhorse_migrations') and a.grantee not in (0, c.relowner) loop
    execute format('revoke all on packhorse_migrations from %s', v_other);
  end loop;
  grant select on packhorse_migrations to public;
end
$$;

-- name: migrations_closed
-- What this transaction has made or changed is for its owner and our roles: what default privileges of the host gave to others is taken
-- away (Supabase gives all rights to all that is new in `public` to the roles of its API). service_role, the server's own, keeps its.
do $$
declare
  v_statement text;
begin
  for v_statement in
    with made as (
      select case c.relkind when 'S' then 'sequence' else 'table' end as kind, c.oid::regclass::text as name, c.relacl as acl, c.relowner as owner
      from pg_class c
      where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
        and age(c.xmin) <= age(pg_current_xact_id()::xid)
      union all
      select 'routine', p.oid::regprocedure::text, p.proacl, p.proowner from pg_proc p
      where p.pronamespace = current_schema()::regnamespace and age(p.xmin) <= age(pg_current_xact_id()::xid)
      union all
      select 'type', t.oid::regtype::text, t.typacl, t.typowner from pg_type t
      where t.typnamespace = current_schema()::regnamespace and age(t.xmin) <= age(pg_current_xact_id()::xid)
    )
    select distinct format('revoke all on %s %s from %s', m.kind, m.name, case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
    from made m cross join aclexplode(m.acl) a left join pg_roles r on r.oid = a.grantee
    where m.owner = current_user::regrole and a.grantee <> m.owner and (a.grantee <> 0 or m.kind in ('table', 'sequence'))
      and coalesce(r.rolname, '') <> all (array['packhorse_worker', 'packhorse_producer', 'packhorse_reader', 'service_role']::name[])
  loop
    execute v_statement;
  end loop;
end
$$;

-- name: migrations_exist
-- Is there a record?
select to_regclass('packhorse_migrations') is not null;

-- name: migrations_applied
-- What was applied, in order. By way of JSON: the record of an unreleased version has no runs_beside.
select m.name, m.checksum, m.applied_at, to_jsonb(m) ->> 'runs_beside' as runs_beside from packhorse_migrations m order by m.name;

-- name: migrations_lock
-- One migrator at a time; ends with the transaction.
select pg_try_advisory_xact_lock(hashtext('packhorse.migrate'), hashtext(current_schema()));

-- name: migrations_lock_holder
-- Who holds the lock.
select a.pid, a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.classid = hashtext('packhorse.migrate')::oid and a.pid <> pg_backend_pid() limit 1;

-- name: migrations_record
-- One migration was applied.
insert into packhorse_migrations (name, checksum, runs_beside) values (%s, %s, %s);

-- name: migrations_forget
-- One migration was taken back.
delete from packhorse_migrations where name = %s;

-- name: migrations_timeouts
-- A migration waits for no lock longer than this: while it waits, everybody who comes after it waits, too.
set local lock_timeout = '1s';

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
-- The schema that holds the queue, when it is not public.
create schema if not exists {name};

-- name: role_exists
-- Is there a role of this name?
select exists (select from pg_roles where rolname = %s);

-- name: create_login_role
-- A login that may do what a worker does and no more.
create role {name} login in role packhorse_worker;

-- name: migration_script_head
-- What a script of migrations starts with.
-- (the record is made here because each migration writes into it)
set search_path = {schema};
set lock_timeout = '1s';

-- name: migration_script_record
-- The record of one migration, as text.
insert into packhorse_migrations (name, checksum, runs_beside) values ({name}, {checksum}, {runs_beside});

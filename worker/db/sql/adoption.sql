-- name: scratch_schema
-- A schema that is never committed: what the migrations make, to be looked at.
create schema packhorse_scratch;

-- name: scratch_search_path
-- Work in it, and nowhere else, until the end of the transaction.
set local search_path = packhorse_scratch;

-- name: foreign_owners
-- Tables of these names whose owner this login may not act as.
select c.relname::text as name, o.rolname::text as owner, current_user::text as login
from pg_class c join pg_roles o on o.oid = c.relowner
where c.relnamespace = (select n.oid from pg_namespace n where n.nspname = current_schema()) and c.relname = any (%s)
  and not pg_has_role(current_user, c.relowner, 'usage')
order by 1;

-- name: repair_owner
-- The table shall belong to who migrates.
alter table {table} owner to {role};

-- name: repair_nullable
-- A column of others that refuses our inserts.
alter table {table} alter column {part} drop not null;

-- name: name_collisions
-- What stands in the schema under these names: relations, routines, types. An index or a sequence of a column goes where its table goes.
with mine as (select n.oid from pg_namespace n where n.nspname = current_schema())
select case c.relkind when 'r' then 'table' when 'p' then 'table' when 'f' then 'foreign table' when 'v' then 'view' when 'm' then 'materialized view'
    when 'S' then 'sequence' when 'c' then 'type' else 'index' end as kind, c.relname::text as name, c.relname::text as bare,
  (select t.relname::text from pg_class t where t.oid = coalesce(x.indrelid, (select d.refobjid from pg_depend d where d.classid = 'pg_class'::regclass
    and d.objid = c.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') and c.relkind = 'S' limit 1))) as of_table
from pg_class c join mine on mine.oid = c.relnamespace left join pg_index x on x.indexrelid = c.oid where c.relname = any (%(relations)s)
union all
select 'routine', p.oid::regprocedure::text, p.proname::text, null from pg_proc p join mine on mine.oid = p.pronamespace
where p.proname = any (%(routines)s) and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
union all
select case t.typtype when 'd' then 'domain' else 'type' end, t.typname::text, t.typname::text, null from pg_type t join mine on mine.oid = t.typnamespace
where t.typname = any (%(relations)s) and t.typtype in ('d', 'e', 'r')
order by 1, 2;

-- name: dependents
-- What goes on to use tables of these names after they have moved, or loses sight of them.
with moved as (select c.oid, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = current_schema() and c.relname = any (%(tables)s) and c.relkind in ('r', 'p'))
select distinct 'view' as kind, v.oid::regclass::text as name, m.relname::text as of_table from moved m
join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = m.oid and d.classid = 'pg_rewrite'::regclass
join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class where v.oid <> m.oid
union all
select 'trigger', g.tgname::text, m.relname::text from moved m join pg_trigger g on g.tgrelid = m.oid where not g.tgisinternal
union all
select 'foreign key', c.conrelid::regclass::text || '.' || c.conname, m.relname::text from moved m join pg_constraint c on c.confrelid = m.oid
where c.contype = 'f' and c.conrelid not in (select oid from moved)
union all
select 'publication', p.pubname::text, m.relname::text from moved m join pg_publication_tables p on p.schemaname = current_schema() and p.tablename = m.relname
union all
select 'routine', p.oid::regprocedure::text, m.relname::text from moved m join pg_proc p on p.prosrc ~ ('\m' || m.relname || '\M')
join pg_namespace n on n.oid = p.pronamespace
where n.nspname not in ('pg_catalog', 'information_schema') and not p.oid = any (%(routines)s::regprocedure[]::oid[])
order by 1, 2;

-- name: table_columns
-- Columns of a table of the schema, with their types.
select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped order by a.attnum;

-- name: table_key
-- The column that alone tells the rows of a table apart: its primary key, else another one that is unique and never null.
select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
where n.nspname = %s and c.relname = %s and i.indisunique and i.indisvalid and i.indnkeyatts = 1 and i.indpred is null and i.indexprs is null
  and a.attnotnull
order by i.indisprimary desc, a.attname limit 1;

-- name: row_security_off
-- A row that a policy hides is an error until the end of the transaction, not a row that is not there.
set local row_security = off;

-- name: legacy_statuses
-- How many rows of the old table are in which state.
select {status} as status, {finished_at} as finished_at, count(*) as rows from {table} l group by 1, 2 order by 3 desc limit 200;

-- name: legacy_words
-- Which values a column has among rows that have not finished, the most frequent first.
select {column} as word, count(*) as rows from {table} l where {unfinished} group by 1 order by 2 desc limit 101;

-- name: legacy_schema
-- Where the old tables go. Nobody but its owner may use it.
create schema if not exists {legacy};

-- name: legacy_move
-- An object goes there, with its indexes, constraints and the sequences of its columns. ACCESS EXCLUSIVE, catalogue only.
alter {kind} {name} set schema {legacy};

-- name: legacy_lockers
-- Who has locks on a table of the schema: what a move waits for.
select a.pid, coalesce(a.application_name, '') as application_name, a.state, round(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.granted and l.pid <> pg_backend_pid() and l.relation = to_regclass(%s) order by a.xact_start limit 5;

-- name: import_plan_table
-- What was moved and how its rows are read; one row, so that a repeated call goes on as the first one began.
create table if not exists {legacy}.packhorse_import_plan (
  only_row boolean primary key default true check (only_row), source_schema text not null, source_table text, key_column text, key_type text, choices jsonb not null,
  way_back jsonb not null, begun_at timestamptz not null default clock_timestamp(), finished_at timestamptz);

-- name: import_ledger_table
-- One row per row of the old table that is to become a message: which message, and what became of it. null: not yet looked at.
create table if not exists {legacy}.packhorse_import (
  message_id bigint primary key, legacy_id text not null unique,
  outcome text check (outcome in ('message', 'dead_letter', 'undecodable', 'finished', 'gone')), reason text);

-- name: import_ledger_index
-- What is left to do.
create index if not exists packhorse_import_left_idx on {legacy}.packhorse_import (message_id) where outcome is null;

-- name: import_row_security
-- Nobody but the owner reads either of them.
alter table {table} enable row level security;

-- name: import_plan_insert
-- The move and its plan are one transaction.
insert into {legacy}.packhorse_import_plan (source_schema, source_table, key_column, key_type, choices, way_back)
values (current_schema(), %(source_table)s, %(key_column)s, %(key_type)s, %(choices)s, %(way_back)s);

-- name: import_plan_exists
-- Was something moved there?
select to_regclass(%s) is not null;

-- name: import_plan
-- The plan.
select source_schema, source_table, key_column, key_type, choices, way_back, begun_at, finished_at from {legacy}.packhorse_import_plan;

-- name: import_plan_choices
-- The operator said more.
update {legacy}.packhorse_import_plan set choices = %s;

-- name: import_fill
-- Rows that have not finished and are not in the ledger get the ids of their messages, in the order in which they were made.
insert into {legacy}.packhorse_import (message_id, legacy_id)
select nextval('message_queue_id_seq'), o.id from (
  select l.{key}::text as id from {table} l
  where {unfinished} and not exists (select from {legacy}.packhorse_import i where i.legacy_id = l.{key}::text)
  order by {created_at} nulls first, l.{key}) o;

-- name: import_batch
-- The next rows to import, as texts, as they are now. First the batch, then its rows by their key: the other way reads the whole table each time.
with taken as materialized (
  select i.message_id, i.legacy_id, i.legacy_id::{key_type} as key from {legacy}.packhorse_import i
  where i.outcome is null order by i.message_id limit %s)
select t.message_id, t.legacy_id, l.{key} is not null as here, {fields}
from taken t left join {table} l on l.{key} = t.key order by t.message_id;

-- name: import_messages
-- Messages with the ids that were kept for them; what enqueue_message refuses is refused here in the same words.
insert into message_queue (id, queue, message_type, payload, priority, run_at, attempt, max_attempts, conversation_key, dedup_key, correlation_id, error,
  created_at, expires_at)
select d.message_id, d.queue, d.message_type, d.payload::jsonb, d.priority,
  greatest(coalesce(d.run_at::timestamptz, clock_timestamp()), '1970-01-01'), d.attempt, d.max_attempts,
  d.conversation_key, d.dedup_key, d.correlation_id, case when d.error is not null then jsonb_build_object('message', d.error) end,
  least(greatest(coalesce(d.created_at::timestamptz, clock_timestamp()), '1970-01-01'), clock_timestamp()),
  case when isfinite(d.expires_at::timestamptz) then least(greatest(d.expires_at::timestamptz, '1970-01-01'), '9999-01-01') end
from json_to_recordset(%s) as d (message_id bigint, queue text, message_type text, payload text, priority integer, run_at text, attempt integer,
  max_attempts integer, conversation_key text, dedup_key text, correlation_id text, error text, created_at text, expires_at text)
where check_enqueue_arguments(d.message_type, d.payload::jsonb, '{}', d.priority, coalesce(d.run_at::timestamptz, clock_timestamp()), d.max_attempts,
  d.conversation_key, d.dedup_key, interval '0', null)::text = '';

-- name: import_dead_letters
-- What the old system had given up, and what cannot be a message.
insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, fingerprint, attempt, max_attempts, crashes,
  conversation_key, correlation_id, created_at)
select d.message_id, d.queue, d.message_type, d.payload::jsonb, '{}', d.priority, case d.outcome when 'undecodable' then 'undecodable' else 'failed' end,
  case d.outcome when 'undecodable' then 'UndecodableMessage' else 'Imported' end, coalesce(d.reason, d.error),
  error_fingerprint(d.message_type, case d.outcome when 'undecodable' then 'UndecodableMessage' else 'Imported' end, coalesce(d.reason, d.error), null),
  d.attempt, d.max_attempts, 0, d.conversation_key, d.correlation_id,
  least(greatest(coalesce(d.created_at::timestamptz, clock_timestamp()), '1970-01-01'), clock_timestamp())
from json_to_recordset(%s) as d (message_id bigint, outcome text, queue text, message_type text, payload text, priority integer, attempt integer,
  max_attempts integer, conversation_key text, correlation_id text, error text, reason text, created_at text);

-- name: import_outcomes
-- What became of the rows of a batch.
update {legacy}.packhorse_import i set outcome = d.outcome, reason = d.reason
from json_to_recordset(%s) as d (message_id bigint, outcome text, reason text) where i.message_id = d.message_id and i.outcome is null;

-- name: import_hold_queue
-- A queue that gets imported messages stands still until all of them are there: the order of conversations is the order of ids.
select declare_queue(%(queue)s), case when %(pause)s then pause_queue(%(queue)s, %(operator)s) end;

-- name: import_resume_queues
-- The queues that the import made stand still go on.
select q.name, resume_queue(q.name, %(operator)s) from queues q where q.paused_by = %(operator)s;

-- name: import_finished
-- All of it is there.
update {legacy}.packhorse_import_plan set finished_at = coalesce(finished_at, clock_timestamp());

-- name: import_account
-- Every row of the old table is in one column of this account: the ledger's by outcome, finished before the import, or made after the ledger.
select count(*) as rows, count(*) filter (where i.outcome = 'message') as messages, count(*) filter (where i.outcome = 'dead_letter') as dead_letters,
  count(*) filter (where i.outcome = 'undecodable') as undecodable,
  count(*) filter (where i.outcome = 'finished' or (i.legacy_id is null and not ({unfinished}))) as finished,
  count(*) filter (where i.legacy_id is not null and i.outcome is null) as missing,
  count(*) filter (where i.legacy_id is null and ({unfinished})) as later,
  count(*) filter (where i.outcome = 'gone') as came_back
from {table} l left join {legacy}.packhorse_import i on i.legacy_id = l.{key}::text;

-- name: legacy_unfinished_by_status
-- A part of other statements: the state of a row is not one of those in which nothing is left to do.
coalesce(lower(btrim(l.{status}::text)), '') <> all (%(finished)s);

-- name: legacy_bounded
-- A part of other statements: a text of at most 4 MiB; a longer one is not read.
case when octet_length({text}) <= 4194304 then {text} end;

-- name: legacy_size
-- A part of other statements: bytes of a text.
octet_length({text});

-- name: current_schema
-- The schema in which everything is made.
select current_schema();

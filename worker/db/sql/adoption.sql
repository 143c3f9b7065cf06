-- name: table_columns
-- Columns of a table with their types; of a view none.
select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
order by a.attnum;

-- name: table_key
-- The column that alone tells the rows of a table apart: its primary key, else another one that is unique and
-- never null.
select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
where n.nspname = %s and c.relname = %s and i.indisunique and i.indisvalid and i.indnkeyatts = 1
  and i.indpred is null and i.indexprs is null
  and a.attnotnull
order by i.indisprimary desc, a.attname limit 1;

-- name: row_security_off
-- A row that a policy hides is an error until the end of the transaction, not a row that is not there.
set local row_security = off;

-- name: legacy_statuses
-- How many rows of the old table are in which state.
select {status} as status, {finished_at} as finished_at, count(*) as rows from {table} l group by 1, 2
order by 3 desc limit 200;

-- name: legacy_words
-- Which values a column has among rows that have not finished, the most frequent first.
select {column} as word, count(*) as rows from {table} l where {unfinished} group by 1
order by 2 desc limit 101;

-- name: import_plan_table
-- Which table is imported, and how its rows are read; one row, so that a repeated call goes on as the first
-- one began.
create table if not exists packhorse.packhorse_import_plan (
  only_row boolean primary key default true check (only_row), source_schema text not null,
  source_table text not null, key_column text not null, key_type text not null, choices jsonb not null,
  begun_at timestamptz not null default clock_timestamp(), finished_at timestamptz);

-- name: import_plan_row_security
-- The plan is for the owner alone.
alter table packhorse.packhorse_import_plan enable row level security;

-- name: import_ledger_table
-- One row per row of the old table that is to become a message: which message, and what became of it. null:
-- not yet looked at.
create table if not exists packhorse.packhorse_import (
  message_id bigint primary key, legacy_id text not null unique,
  outcome text check (outcome in ('message', 'dead_letter', 'undecodable', 'finished', 'gone')), reason text);

-- name: import_ledger_row_security
-- The ledger is for the owner alone: its reasons have words of the old rows.
alter table packhorse.packhorse_import enable row level security;

-- name: import_ledger_index
-- What is left to do.
create index if not exists packhorse_import_left_idx on packhorse.packhorse_import (message_id)
where outcome is null;

-- name: import_plan_insert
-- An import begins.
insert into packhorse.packhorse_import_plan (source_schema, source_table, key_column, key_type, choices)
values (%(source_schema)s, %(source_table)s, %(key_column)s, %(key_type)s, %(choices)s);

-- name: import_plan_exists
-- Has an import begun?
select to_regclass('packhorse.packhorse_import_plan') is not null
  and to_regclass('packhorse.packhorse_migrations') is not null;

-- name: import_plan
-- The plan. outlived: the queue that the rows were imported into was taken back since, as by `migrate down`,
-- and its messages with it.
select p.source_schema, p.source_table, p.key_column, p.key_type, p.choices, p.begun_at, p.finished_at,
  not exists (select from packhorse.packhorse_migrations m
    where 'message_queue' = any (m.objects) and m.applied_at <= p.begun_at) as outlived
from packhorse.packhorse_import_plan p;

-- name: import_plan_choices
-- The operator said more.
update packhorse.packhorse_import_plan set choices = %s;

-- name: import_fill
-- Rows that have not finished and are not in the ledger get the ids of their messages, in the order in which
-- they were made.
insert into packhorse.packhorse_import (message_id, legacy_id)
select nextval('packhorse.message_queue_id_seq'), o.id from (
  select l.{key}::text as id from {table} l
  where {unfinished} and
    not exists (select from packhorse.packhorse_import i where i.legacy_id = l.{key}::text)
  order by {created_at} nulls first, l.{key}) o;

-- name: import_batch
-- The next rows to import, as texts, as they are now. First the batch, then its rows by their key: the other
-- way reads the whole table each time.
with taken as materialized (
  select i.message_id, i.legacy_id, i.legacy_id::{key_type} as key from packhorse.packhorse_import i
  where i.outcome is null order by i.message_id limit %s)
select t.message_id, t.legacy_id, l.{key} is not null as here, {fields}
from taken t left join {table} l on l.{key} = t.key order by t.message_id;

-- name: import_messages
-- Messages with the ids that were kept for them; what enqueue_message refuses is refused here in the same
-- words.
insert into packhorse.message_queue (id, queue, message_type, payload, priority, run_at, attempt,
  max_attempts, conversation_key, dedup_key, correlation_id, error, created_at, expires_at)
select d.message_id, d.queue, d.message_type, d.payload::jsonb, d.priority,
  greatest(coalesce(d.run_at::timestamptz, clock_timestamp()), '1970-01-01'), d.attempt, d.max_attempts,
  d.conversation_key, d.dedup_key, d.correlation_id,
  case when d.error is not null then jsonb_build_object('message', d.error) end,
  least(greatest(coalesce(d.created_at::timestamptz, clock_timestamp()), '1970-01-01'), clock_timestamp()),
  case when isfinite(d.expires_at::timestamptz)
    then least(greatest(d.expires_at::timestamptz, '1970-01-01'), '9999-01-01') end
from json_to_recordset(%s) as d (message_id bigint, queue text, message_type text, payload text,
  priority integer, run_at text, attempt integer, max_attempts integer, conversation_key text, dedup_key text,
  correlation_id text, error text, created_at text, expires_at text)
where packhorse.check_enqueue_arguments(d.message_type, d.payload::jsonb, '{}', d.priority,
  coalesce(d.run_at::timestamptz, clock_timestamp()), d.max_attempts,
  d.conversation_key, d.dedup_key, interval '5 minutes', null)::text = '';

-- name: import_dead_letters
-- What the old system had given up, and what cannot be a message.
insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, error_class,
  error_message, fingerprint, attempt, max_attempts, crashes, conversation_key, correlation_id, created_at)
select d.message_id, d.queue, d.message_type, d.payload::jsonb, '{}', d.priority,
  case d.outcome when 'undecodable' then 'undecodable' else 'failed' end,
  case d.outcome when 'undecodable' then 'UndecodableMessage' else 'Imported' end,
    coalesce(d.reason, d.error),
  packhorse.error_fingerprint(d.message_type,
    case d.outcome when 'undecodable' then 'UndecodableMessage' else 'Imported' end,
      coalesce(d.reason, d.error), null),
  d.attempt, d.max_attempts, 0, d.conversation_key, d.correlation_id,
  least(greatest(coalesce(d.created_at::timestamptz, clock_timestamp()), '1970-01-01'), clock_timestamp())
from json_to_recordset(%s) as d (message_id bigint, outcome text, queue text, message_type text, payload text,
  priority integer, attempt integer, max_attempts integer, conversation_key text, correlation_id text,
  error text, reason text, created_at text);

-- name: import_outcomes
-- What became of the rows of a batch.
update packhorse.packhorse_import i set outcome = d.outcome, reason = d.reason
from json_to_recordset(%s) as d (message_id bigint, outcome text, reason text)
where i.message_id = d.message_id and i.outcome is null;

-- name: import_hold_queue
-- A queue that gets imported messages stands still until all of them are there: the order of conversations is
-- the order of ids.
select packhorse.declare_queue(%(queue)s),
  case when %(pause)s then packhorse.pause_queue(%(queue)s, %(operator)s) end;

-- name: import_resume_queues
-- The queues that the import made stand still go on.
select q.name, packhorse.resume_queue(q.name, %(operator)s) from packhorse.queues q
where q.paused_by = %(operator)s;

-- name: import_finished
-- All of it is there.
update packhorse.packhorse_import_plan set finished_at = coalesce(finished_at, clock_timestamp());

-- name: import_account
-- Every row of the old table is in one column of this account: the ledger's by outcome, finished before the
-- import, or made after the ledger. missing: in the ledger, and not yet looked at.
select count(*) as rows, count(*) filter (where i.outcome = 'message') as messages,
  count(*) filter (where i.outcome = 'dead_letter') as dead_letters,
  count(*) filter (where i.outcome = 'undecodable') as undecodable,
  count(*) filter (where i.outcome = 'finished' or (i.legacy_id is null and not ({unfinished}))) as finished,
  count(*) filter (where i.legacy_id is not null and i.outcome is null) as missing,
  count(*) filter (where i.legacy_id is null and ({unfinished})) as later,
  count(*) filter (where i.outcome = 'gone') as came_back
from {table} l left join packhorse.packhorse_import i on i.legacy_id = l.{key}::text;

-- name: legacy_unfinished_by_status
-- A part of other statements: the state of a row is not one of those in which nothing is left to do.
coalesce(lower(btrim(l.{status}::text)), '') <> all (%(finished)s);

-- name: legacy_bounded
-- A part of other statements: a text of at most 4 MiB; a longer one is not read.
case when octet_length({text}) <= 4194304 then {text} end;

-- name: legacy_size
-- A part of other statements: bytes of a text.
octet_length({text});


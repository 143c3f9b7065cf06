-- name: declare_policies
-- What configuration says, for all that works without it.
select packhorse.declare_policies(%s::jsonb);

-- name: start_maintenance_run
-- Begin or take over the run of a task.
select run_id, run_cutoff, run_cursor, run_rows, run_batch_size, run_resumed
from packhorse.start_maintenance_run(%(task)s, %(kind)s, %(triggered_by)s, %(message_id)s, %(plan)s::jsonb,
  %(cutoff)s, %(batch_size)s, make_interval(secs => %(silent_after)s));

-- name: beat_maintenance_run
-- Progress of a run.
select packhorse.beat_maintenance_run(%s, %s, %s::jsonb, %s, %s, %s);

-- name: end_maintenance_run
-- End or pause a run.
select packhorse.end_maintenance_run(%s, %s, %s, %s::jsonb);

-- name: cancel_maintenance_run
-- Ask a run to end.
select packhorse.cancel_maintenance_run(%s, %s, %s);

-- name: maintenance_health
-- One row per task that ever ran.
select task, kind, state, gate, rows_done, started_at, ended_at, error, last_success_at
from packhorse.maintenance_health order by task;

-- name: maintenance_history
-- Runs, newest first.
select id, task, kind, state, triggered_by, rows_done, rows_total, batches, batch_size, resumed, gate,
  gates_hit, throttled_seconds, plan, details, error,
  started_at, ended_at
from packhorse.maintenance_runs where task = %(task)s or %(task)s::text is null
order by id desc limit %(limit)s;

-- name: maintenance_progress
-- The unfinished run of a task.
select id, state, rows_done, rows_total, gate, batch_size, started_at from packhorse.maintenance_runs
where task = %s and state in ('running', 'paused');

-- name: set_maintenance_total
-- How many rows a run expects to meet.
update packhorse.maintenance_runs set rows_total = %s where id = %s;

-- name: maintenance_gates
-- The health gates for a table.
select gate, value, known, detail from packhorse.maintenance_gates(to_regclass(%s));

-- name: maintenance_has_worker
-- Does some live process take the messages of maintenance?
select exists (select from packhorse.workers w
  where 'packhorse' = any (w.queues) and w.last_seen_at > clock_timestamp() - w.lease_duration);

-- name: table_facts
-- What a policy has to know about its table; no row when there is none.
select n.nspname::text as schema, c.relname::text as name, c.relkind,
  (select coalesce(sum(case when k.reltuples >= 0 then k.reltuples else pg_stat_get_live_tuples(k.oid) end),
    0) from pg_class k
    where k.relkind <> 'p'
      and (k.oid = c.oid or k.oid
        in (select t.relid from pg_partition_tree(c.oid) t)))::float8 as estimated_rows,
  -- a policy that shows every row to this role hides nothing; then an empty table is an empty table
  row_security_active(c.oid) and (
    exists (select from pg_policy p where p.polrelid = c.oid and not p.polpermissive)
    or not exists (select from pg_policy p cross join unnest(p.polroles) as r (role)
      where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('*', 'r')
        and pg_get_expr(p.polqual, p.polrelid) = 'true'
        and case when r.role = 0 then true else pg_has_role(r.role, 'usage') end)) as hidden_by_policies,
  pg_has_role(c.relowner, 'usage') as owned,
  c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid) as has_children,
  c.oid = to_regclass('packhorse.message_queue') as is_queue,
  c.oid = to_regclass('packhorse.dead_letters') as is_dead_letters,
  c.oid in (to_regclass('platform.webhook_events'), to_regclass('platform.audit_events'))
    and to_regprocedure('platform.is_unfinished_copy(jsonb)') is not null as has_copies,
  has_table_privilege(c.oid, 'delete') as may_delete, has_any_column_privilege(c.oid, 'update') as may_update,
  (select array_agg(a.attname::text order by k.place) from pg_index i
    cross join unnest(i.indkey) with ordinality k (number, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts) as key_columns,
  (select array_agg(format_type(a.atttypid, a.atttypmod) order by k.place) from pg_index i
    cross join unnest(i.indkey) with ordinality k (number, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts) as key_types,
  (select array_agg(a.attname::text order by a.attnum) from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
  (select format_type(a.atttypid, a.atttypmod) from pg_attribute a
    where a.attrelid = c.oid and a.attname = %(column)s and a.attnum > 0) as column_type,
  exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = c.oid and a.attname = %(column)s and i.indisvalid) as column_indexed
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(%(table)s) and c.relkind in ('r', 'p');

-- name: table_exists
-- Is there such a table?
select to_regclass(%s) is not null;

-- name: table_names
-- Tables that can be meant, for a near miss.
select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and not c.relispartition
  and n.nspname not in ('pg_catalog', 'information_schema') order by 1 limit 2000;

-- name: batch_timeouts
-- A batch waits for nobody and takes no longer than it must.
select set_config('lock_timeout', '1s', true), set_config('statement_timeout', %s, true);

-- name: short_lock_timeout
-- A look at a table that somebody has locked ends soon.
select set_config('lock_timeout', '1s', true);

-- name: batch_by_key
-- A batch knows its keys: each row is found by an index, whatever the planner thinks of reading a whole table
-- for some thousand of them. And compiling its statement anew takes longer than the batch.
select set_config('enable_seqscan', 'off', true), set_config('enable_mergejoin', 'off', true),
  set_config('jit', 'off', true);

-- name: batch_by_place
-- Rows come in the order of storage, from a place on, and no others are read.
select set_config('enable_seqscan', 'off', true), set_config('max_parallel_workers_per_gather', '0', true);

-- name: batch_without_wait
-- The commit waits for no disk. Rows and cursor are one commit: what a crash of the server takes back it
-- takes back together, last first.
select set_config('synchronous_commit', 'off', true);

-- name: batch_without_hashes
-- The same for an UPDATE that joins its table by the key.
select set_config('enable_hashjoin', 'off', true);

-- name: long_statements
-- Index builds and the like; they block no writer.
select set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false);

-- name: set_lock_timeout
-- For the rest of the transaction.
select set_config('lock_timeout', %s, true);

-- name: retention_delete
-- Delete one batch by key, oldest first; how many, and where the next one begins.
with batch as (
  select {keys}, t.{column} as retention_at from {table} t
  where t.{column} < {cutoff} and ({where}) and ({after})
  order by t.{column}, {keys} limit %(limit)s for update of t skip locked
), gone as (
  delete from {table} t using batch b where {same} returning 1
)
select (select count(*) from gone),
  (select json_agg(e.v order by e.place) from (select b.retention_at::text, {keys_of_batch} from batch b
  order by b.retention_at desc, {keys_descending} limit 1) l,
    lateral json_each_text(row_to_json(l)) with ordinality e (k, v, place)) as last_key,
  (select count(*) from batch);

-- name: retention_update
-- Change one batch by key, oldest first; how many, and where the next one begins.
with batch as (
  select {keys}, t.{column} as retention_at from {table} t
  where t.{column} < {cutoff} and ({where}) and ({after})
  order by t.{column}, {keys} limit %(limit)s for update of t skip locked
), gone as (
  update {table} t set {assign} from batch b where {same} returning 1
)
select (select count(*) from gone),
  (select json_agg(e.v order by e.place) from (select b.retention_at::text, {keys_of_batch} from batch b
  order by b.retention_at desc, {keys_descending} limit 1) l,
    lateral json_each_text(row_to_json(l)) with ordinality e (k, v, place)) as last_key,
  (select count(*) from batch);

-- name: retention_count
-- What a run would meet: rows, and their bytes.
select count(*), coalesce(sum(pg_column_size(t.*)), 0)::bigint from {table} t
where t.{column} < {cutoff} and ({where});

-- name: retention_estimate
-- The planner's estimate of the same, without reading a row.
explain (format json) select from {table} t where t.{column} < {cutoff} and ({where});

-- name: retention_where
-- Is a policy's condition one expression by itself? In the parentheses of the statements `true) or (true`
-- would be two, without the cutoff.
explain select from {table} t where {where};

-- name: retention_probe
-- Does the statement of a policy parse, and is there any row to see?
select exists (select from {table} t where ({where}) or true),
  (select count(*) from (select from {table} t where t.{column} < {cutoff} and ({where}) limit 0) n);

-- name: retention_cutoff
-- The database clock, so many seconds ago.
select clock_timestamp() - make_interval(secs => %s);

-- name: job_stale_message_locks
-- Expired leases of messages.
select packhorse.cleanup_stale_message_locks(%(limit)s);

-- name: job_stale_conversation_locks
-- Locks that callers took around their own work and never gave back.
select packhorse.cleanup_stuck_webhook_conversations(p_limit => %(limit)s);

-- name: job_dead_workers
-- Rows of worker processes that have been silent for long.
select packhorse.forget_dead_workers(p_limit => %(limit)s);

-- name: job_stuck_conversations
-- Locks of conversations whose holder is gone.
select platform.release_stuck_conversations(p_limit => %(limit)s);

-- name: job_timed_out_workflows
-- Workflows past their time.
select platform.mark_timed_out_workflows(%(limit)s);

-- name: job_expired_agent_sessions
-- Agent sessions past their time become expired.
select platform.expire_agent_chat_sessions(%(limit)s);

-- name: job_expired_guest_sessions
-- Guest sessions past their time.
select platform.cleanup_expired_guest_sessions(%(limit)s);

-- name: job_due_reminders
-- Due reminders become messages.
select platform.enqueue_due_reminders(%(limit)s);

-- name: job_backfill_rows
-- What backfills left out, and what they had copied: 30 days after the clean-up, which is as long as there is
-- a way back.
with over as (select b.name from packhorse.backfills b
  where b.finished_at < clock_timestamp() - interval '30 days'), ids as (
  delete from packhorse.backfill_copies c using over o where c.backfill = o.name
), gone as (
  delete from platform.platform_backfill_rows l where (l.backfill, l.source_table, l.source_id) in (
    select r.backfill, r.source_table, r.source_id from platform.platform_backfill_rows r join over o
      on o.name = r.backfill limit %(limit)s) returning 1
)
select count(*) from gone;

-- name: partition_list
-- Partitions of a table with their bounds, oldest first; the default one last.
select n.nspname as schema, c.relname as name, format('%%I.%%I', n.nspname, c.relname) as table,
  pg_get_expr(c.relpartbound, c.oid) as bound,
  substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \(''([^'']+)''\)') as lower_bound,
  substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \(''([^'']+)''\)') as upper_bound,
  pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' as is_default, i.inhdetachpending as detach_pending,
  greatest(c.reltuples, 0)::float8 as estimated_rows, pg_total_relation_size(c.oid) as bytes
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
where i.inhparent = to_regclass(%s)
order by pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', 5 nulls first, 1, 2;

-- name: partition_parent
-- Is the table range-partitioned by this one column, and may this role change it? Its schema, for the names
-- of partitions.
select p.partstrat::text = 'r' and p.partnatts = 1 and a.attname = %(column)s
    and format_type(a.atttypid, a.atttypmod) ~ '^(timestamp|date)' as fits,
    pg_has_role(c.relowner, 'usage') as owned, n.nspname as schema,
  c.relname as name, format_type(a.atttypid, a.atttypmod) as column_type, clock_timestamp() as now
from pg_partitioned_table p join pg_class c on c.oid = p.partrelid join pg_namespace n
  on n.oid = c.relnamespace
left join pg_attribute a on a.attrelid = c.oid and a.attnum = p.partattrs[0]
where c.oid = to_regclass(%(table)s);

-- name: partition_timeouts
-- DDL waits a second for its lock, no longer: whoever queues behind it waits as long.
select set_config('lock_timeout', '1s', true);

-- name: partition_lock_parent
-- Two makers at once: the second waits, and finds the partition there.
select pg_advisory_xact_lock(hashtext('packhorse partitions ' || %s));

-- name: partition_create
-- A table like its parent, not yet attached.
select packhorse.create_partition_table(%s::regclass, %s, %s);

-- name: partition_finish
-- Owner, replica identity, security and privileges like the parent's.
select packhorse.finish_partition(%(table)s::regclass,
  format('%%I.%%I', %(schema)s::text, %(name)s::text)::regclass);

-- name: partition_attach
-- SHARE UPDATE EXCLUSIVE on the parent: readers and writers go on.
alter table {parent} attach partition {partition} for values from ({lower}) to ({upper});

-- name: partition_detach
-- Without a long lock; not possible inside a transaction, or beside a default partition.
alter table {parent} detach partition {partition} concurrently;

-- name: partition_detach_at_once
-- Inside a transaction: ACCESS EXCLUSIVE on the parent for an instant.
alter table {parent} detach partition {partition};

-- name: partition_detach_finalize
-- A detach that was interrupted.
alter table {parent} detach partition {partition} finalize;

-- name: session_lock_timeout
-- For statements that cannot run in a transaction.
select set_config('lock_timeout', %s, false);

-- name: partition_detaching
-- Remember what is about to be detached: whoever dies between the two leaves no table that nobody knows.
insert into packhorse.detached_partitions (parent, partition, lower_bound, upper_bound)
select %(parent)s, %(partition)s, %(lower)s, %(upper)s
where not exists (select from packhorse.detached_partitions d
  where d.parent = %(parent)s and d.partition = %(partition)s and d.dropped_at is null);

-- name: partition_detached
-- The grace begins.
update packhorse.detached_partitions set detached_at = clock_timestamp()
where parent = %s and partition = %s and dropped_at is null;

-- name: partition_is_pending
-- Was its detach interrupted? No row when it is detached.
select i.inhdetachpending from pg_inherits i where i.inhrelid = to_regclass(%s);

-- name: partition_droppable
-- Detached partitions whose grace is over; those that are still attached (their detach failed) are none.
select d.parent, d.partition, d.lower_bound, d.upper_bound, d.detached_at, d.exported_at
from packhorse.detached_partitions d
where d.parent = %s and d.dropped_at is null
  and d.detached_at <= clock_timestamp() - make_interval(secs => %s)
  and not exists (select from pg_inherits i where i.inhrelid = to_regclass(d.partition))
order by d.lower_bound;

-- name: partition_name_parts
-- Schema and name of a partition that was written down.
select parse_ident(%s);

-- name: partition_is_attached
-- Is it somebody's partition (again)?
select exists (select from pg_inherits i where i.inhrelid = to_regclass(%s));

-- name: partition_drop
-- The end of it; nothing when somebody else was faster.
drop table if exists {partition};

-- name: partition_dropped
-- Remember the drop.
update packhorse.detached_partitions set dropped_at = clock_timestamp()
where parent = %s and partition = %s and dropped_at is null;

-- name: partition_exported
-- Remember the export.
update packhorse.detached_partitions
set exported_at = clock_timestamp(), export_path = %s, export_rows = %s, export_sha256 = %s
where parent = %s and partition = %s and dropped_at is null;

-- name: partition_copy
-- A partition as CSV.
copy {partition} to stdout with (format csv, header);

-- name: partition_copy_all
-- Row-level security would leave rows out in silence: an error instead.
select set_config('row_security', 'off', true);

-- name: partition_lock_writers
-- Writers wait at the parent while a period moves: one that had chosen the default partition already would
-- fail. Readers go on.
lock table only {parent} in share row exclusive mode;

-- name: partition_default_span
-- The oldest row of a default partition, and how many there are.
select min({column}), count(*) from {partition};

-- name: partition_move
-- Move the rows of one period out of the default partition into its new table.
with moved as (delete from {default} where {column} >= {lower} and {column} < {upper} returning {columns})
insert into {partition} ({columns}) select {columns} from moved;

-- name: partition_columns
-- What is copied from one partition to another: by name, for each may have its columns in another order;
-- generated ones follow.
select a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n
  on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
order by a.attnum;

-- name: partition_history
-- What was detached, exported, dropped; newest first.
select parent, partition, lower_bound, upper_bound, detached_at, exported_at, export_path, export_rows,
  export_sha256, dropped_at
from packhorse.detached_partitions where parent = %(table)s or %(table)s::text is null
order by detached_at desc limit %(limit)s;

-- name: longest_keep_done
-- Days that the archive has to keep: the longest keep_done of all queues.
select ceil(extract(epoch from max(keep_done)) / 86400.0)::integer from packhorse.queues;

-- name: archive_make
-- The archive's partitions, with its owner's rights.
select packhorse.ensure_message_archive_partitions(%s);

-- name: archive_drop
-- Drop the archive's old partitions, with its owner's rights.
select packhorse.drop_expired_archive_partitions();

-- name: messages_make
-- The partitions of messages, with its owner's rights.
select count(*) from platform.maintain_messages_partitions(%s, null) m where m.action = 'created';

-- name: longest_backoff
-- The longest wait before a retry, in seconds.
select coalesce(extract(epoch from max(backoff_max)), 0)::float8 from packhorse.queues;

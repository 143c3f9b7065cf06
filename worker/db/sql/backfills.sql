-- name: backfill_declare
-- The row of a backfill, made when there is none.
select state, passes, paused_at is not null as is_paused
from packhorse.declare_backfill(%(name)s, %(source)s, %(settings)s::jsonb, %(operator)s);

-- name: backfill_move
-- The next state of a backfill.
select state from packhorse.move_backfill(%(name)s, %(state)s, %(operator)s, %(reason)s, %(details)s::jsonb);

-- name: backfill_note_step
-- Progress, in the transaction of the step.
select packhorse.note_backfill_step(%s, %s, %s, %s, %s);

-- name: backfill_note_look
-- Remember the counters of a source.
select looked_at, quiet_since from packhorse.note_backfill_look(%s, %s);

-- name: backfill_note_total
-- How many rows the source has.
update packhorse.backfills set source_rows = %s, source_rows_estimated = %s where name = %s;

-- name: backfill_note_memo
-- What its way back needs to know.
update packhorse.backfills set memo = memo || %s::jsonb where name = %s;

-- name: backfill_memo
-- The same, read.
select memo from packhorse.backfills where name = %s;

-- name: backfill_note_findings
-- What the last verification has found.
update packhorse.backfills set findings = %s::jsonb where name = %s;

-- name: backfill_start
-- Let workers carry it.
select packhorse.start_backfill(%(name)s, %(source)s, %(settings)s::jsonb, %(operator)s, %(reason)s);

-- name: backfill_pause
-- Let it rest.
select packhorse.pause_backfill(%s, %s, %s);

-- name: backfill_resume
-- Let it go on.
select packhorse.resume_backfill(%s, %s, %s);

-- name: backfill_cancel
-- End its run.
select packhorse.cancel_backfill(%s, %s, %s);

-- name: backfill_progress
-- All backfills that somebody has begun, or one.
select name, state, source, settings, carried, rows_done, rows_total, total_is_estimated, rows_copied,
  rows_skipped, passes, done_ratio, rows_per_second, eta_seconds,
  gate, batch_size, triggered_by, beat_at, paused_at, paused_by, looked_at, quiet_since, requested_by,
  created_at, started_at, copied_at, verified_at, finished_at,
  rolled_back_at, findings, error
from packhorse.backfill_progress where name = %(name)s or %(name)s::text is null;

-- name: backfill_is_worked_on
-- Does a process work on it now? The seconds since its last sign; no row when none does.
select extract(epoch from clock_timestamp() - r.beat_at)::float8 from packhorse.maintenance_runs r
where r.task = 'backfill.' || %s and r.state = 'running';

-- name: backfill_queue_is_busy
-- Do workers have something to do? A running message, or one done within the last heartbeats.
select exists (select from packhorse.message_queue m where m.lease_token is not null)
  or exists (select from packhorse.workers w
    where w.last_seen_at > clock_timestamp() - interval '30 seconds' and w.queues <> array['packhorse']
    and w.recent_counts[2] > w.recent_counts[cardinality(w.recent_counts) - 1]);

-- name: backfill_table
-- What a backfill has to know about a table; no row when there is none.
select n.nspname::text as schema, c.relname::text as name, c.oid::bigint as number, c.relkind::text as kind,
  (select coalesce(sum(case when k.reltuples >= 0 then k.reltuples else pg_stat_get_live_tuples(k.oid) end),
    0) from pg_class k
    where k.relkind <> 'p'
      and (k.oid = c.oid or k.oid
        in (select t.relid from pg_partition_tree(c.oid) t)))::float8 as estimated_rows,
  row_security_active(c.oid) and not exists (select from pg_policy p cross join unnest(p.polroles) as r (role)
      where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('*', 'r')
        and pg_get_expr(p.polqual, p.polrelid) = 'true'
        and case when r.role = 0 then true else pg_has_role(r.role, 'usage') end) as hidden_by_policies,
  pg_has_role(c.relowner, 'usage') as owned, c.relowner::regrole::text as owner,
  has_table_privilege(c.oid, 'select') as may_select,
  c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid) as has_children,
  c.relkind = 'r' and (select a.amname = 'heap' from pg_am a where a.oid = c.relam) as has_places,
  (select jsonb_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
  coalesce((select array_agg(a.attname::text order by a.attnum) from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and a.attnotnull), '{}') as required,
  coalesce((select array_agg(a.attname::text order by k.place) from pg_index i
    cross join unnest(i.indkey) with ordinality k (number, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts), '{}') as key_columns,
  coalesce((select array_agg(a.attname::text order by a.attname) from pg_index i join pg_attribute a
    on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and i.indnkeyatts = 1
      and a.attnotnull), '{}') as unique_columns
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(%s) and c.relkind in ('r', 'p');

-- name: backfill_relation_exists
-- Is there a table or view of this name?
select to_regclass(%s) is not null;

-- name: backfill_count
-- All rows of a table.
select count(*) from {table} t;

-- name: backfill_keys
-- The next keys of a walk, in their order.
select {keys} from {table} t where {after} order by {keys} limit %(limit)s;

-- name: backfill_through
-- How many keys the next batch has, and the last of them.
with batch as (select {keys} from {table} t where {after} order by {keys} limit %(limit)s)
select (select count(*) from batch),
  (select json_agg(e.v order by e.place)
    from (select {keys_of_batch} from batch b order by {keys_descending} limit 1) l,
  lateral json_each_text(row_to_json(l)) with ordinality e (k, v, place));

-- name: backfill_through_place
-- How many rows the next batch has in the order of storage, where it begins and ends, and the file: another
-- file than that of the cursor has its rows at other places.
with batch as (
  select t.ctid as place from {table} t
  where t.ctid > case when pg_relation_filenode(to_regclass(%(source)s))::text = %(file)s
    then %(after)s else '(0,0)' end::tid
  limit %(limit)s
)
select count(*),
  case when pg_relation_filenode(to_regclass(%(source)s))::text = %(file)s then %(after)s else '(0,0)' end,
  max(b.place)::text, pg_relation_filenode(to_regclass(%(source)s))::text
from batch b;

-- name: backfill_key_text
-- The key of a row, for people.
select {key_text} from {source} s where {in_batch} limit 1;

-- name: backfill_explain
-- Rows of the source that are not copied, whole and with the reason.
insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
  old_value)
select %(backfill)s, %(source)s, {key_text}, 'skipped', %(reason)s, to_jsonb(s) from {source} s
where {in_batch}
on conflict (backfill, source_table, source_id) do update
set outcome = excluded.outcome, reason = excluded.reason, old_value = excluded.old_value,
  recorded_at = excluded.recorded_at;

-- name: backfill_has_ledger
-- Are the platform's tables there?
select to_regclass('platform.platform_backfill_rows') is not null;

-- name: backfill_ledger
-- What a backfill has explained: outcome, reason, how many.
select outcome, reason, count(*) as rows from platform.platform_backfill_rows where backfill = %s
group by outcome, reason order by 3 desc, 1, 2 limit 100;

-- name: backfill_forget_ledger
-- The way back: the source has these rows.
delete from platform.platform_backfill_rows where backfill = %s;

-- name: backfill_counters
-- Rows inserted and updated since the statistics began, partitions included.
select array[coalesce(sum(pg_stat_get_tuples_inserted(k.oid)), 0),
  coalesce(sum(pg_stat_get_tuples_updated(k.oid)), 0)]::bigint[]
from pg_class k
where k.oid = to_regclass(%(table)s)
  or k.oid in (select t.relid from pg_partition_tree(to_regclass(%(table)s)) t);

-- name: backfill_newest
-- The newest time in a column, and whether it is within the last hours.
select max(t.{column}), coalesce(max(t.{column}) > {now} - make_interval(hours => %(hours)s), false)
from {table} t;

-- name: backfill_quiet_hours
-- For how many hours the counters of its source have not moved.
select extract(epoch from clock_timestamp() - b.quiet_since)::float8 / 3600 from packhorse.backfills b
where b.name = %s;

-- name: backfill_dependents
-- What in the catalogue names a table: it would break, or be lost, with the drop. Relations in `own` go with
-- the backfill.
with old as (select c.oid, c.relname::text as name from pg_class c where c.oid = to_regclass(%(table)s)),
  found (kind, name) as (
  select case v.relkind when 'm' then 'materialized view' else 'view' end, v.oid::regclass::text
  from old o join pg_depend d
    on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid and d.classid = 'pg_rewrite'::regclass
  join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class where v.oid <> o.oid
  union
  select 'foreign key', format('%%s of %%s', k.conname, k.conrelid::regclass) from old o join pg_constraint k
    on k.confrelid = o.oid and k.contype = 'f' and k.conrelid <> o.oid
  union
  select 'function', p.oid::regprocedure::text from old o join pg_proc p
    on lower(p.prosrc) ~ ('\m' || regexp_replace(lower(o.name), '([^a-z0-9_])', '\\\1', 'g') || '\M')
  join pg_namespace n on n.oid = p.pronamespace
  where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_t'
  union
  select 'function', d.objid::regprocedure::text from old o join pg_depend d
    on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid and d.classid = 'pg_proc'::regclass
  union
  select 'policy', format('%%s of %%s', q.polname, q.polrelid::regclass) from old o join pg_depend d
    on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid
    and d.classid = 'pg_policy'::regclass join pg_policy q on q.oid = d.objid where q.polrelid <> o.oid
  union
  select 'table', i.inhrelid::regclass::text from old o join pg_inherits i on i.inhparent = o.oid
  join pg_class c on c.oid = i.inhrelid and not c.relispartition
)
select f.kind, f.name from found f
where not exists (select from unnest(%(own)s::text[]) as w (name) where f.name = to_regclass(w.name)::text)
order by 1, 2;

-- name: backfill_drop
-- The end of a source, without CASCADE: what depends on it stops it.
drop table {table};

-- name: backfill_lock_source
-- Nobody writes to the source while it is compared for the last time.
lock table {table} in share mode;

-- name: backfill_drop_timeouts
-- A drop waits for its lock for a short time, and then takes what the last comparison takes.
select set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true);

-- name: backfill_role_exists
-- Has the server this role?
select exists (select from pg_roles r where r.rolname = %s);

-- name: backfill_server_version
-- For what a version can do.
select current_setting('server_version_num')::integer;

-- name: backfill_revoke_view
-- What default privileges of the host have given.
revoke all on {view} from public, {roles};

-- name: backfill_grant_view
-- Readers only.
grant select on {view} to {roles};

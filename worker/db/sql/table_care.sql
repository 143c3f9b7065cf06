-- name: care_tables
-- Size, live and dead rows, an estimate of the space that holds no row, last vacuum, and what to do.
select t.name as table, t.bytes, t.n_live_tup as live_rows, t.n_dead_tup as dead_rows,
  round(t.n_dead_tup::numeric / greatest(t.n_live_tup + t.n_dead_tup, 1), 3)::float8 as dead_ratio,
  case when t.analyzed and t.heap_bytes > 1048576
    then round(greatest(0, 1 - t.filled_bytes / t.heap_bytes)::numeric, 3) end::float8 as bloat_ratio,
  t.last_autovacuum as last_autovacuum_at,
  case when t.n_dead_tup > 10000 and t.n_dead_tup > t.n_live_tup
    then format('vacuum %s; (and look at snapshots below)', t.name)
    when t.n_mod_since_analyze > greatest(10000, t.n_live_tup) then format('analyze %s;', t.name)
    when t.analyzed and t.heap_bytes > 104857600 and t.filled_bytes < t.heap_bytes * 0.3
      then format('most of it is empty: vacuum full %s; in a quiet hour (ACCESS EXCLUSIVE), or pg_repack',
        t.name) end as advice
from (
  select s.relid::regclass::text as name, s.n_live_tup, s.n_dead_tup, s.n_mod_since_analyze,
    s.last_autovacuum, pg_total_relation_size(s.relid) as bytes,
    pg_relation_size(s.relid)::float8 as heap_bytes, w.width is not null as analyzed,
    -- a row: its columns, 24 bytes of header, 4 of line pointer, 4 of alignment on average; pages are filled
    -- up to fillfactor
    greatest(c.reltuples, 0) * (coalesce(w.width, 0) + 32.0) * 100
      / coalesce((select o.option_value::integer from pg_options_to_table(c.reloptions) o
      where o.option_name = 'fillfactor'), 100) as filled_bytes
  from pg_stat_user_tables s join pg_class c on c.oid = s.relid
  left join lateral (
    select sum(p.avg_width * (1 - p.null_frac)) as width from pg_stats p
    where p.schemaname = s.schemaname and p.tablename = s.relname and not p.inherited) w on true
  where s.schemaname = any (array(
    select n2.nspname from pg_class c2 join pg_namespace n2 on n2.oid = c2.relnamespace
    where c2.oid in (to_regclass('packhorse.message_queue'), to_regclass('platform.companies')))
    || current_schemas(false))
) t
order by t.bytes desc limit 50;

-- name: care_partitions
-- Range-partitioned tables: how many partitions, when the last one ends, rows in a default one, detaches that
-- were interrupted.
select k.partrelid::regclass::text as table,
  count(*) filter (where pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT') as partitions,
  max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]) as ends_at,
  sum(greatest(c.reltuples, 0))
    filter (where pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT')::bigint as default_rows,
  count(*) filter (where i.inhdetachpending) as pending_detaches,
  case when bool_or(i.inhdetachpending)
    then 'alter table ... detach partition ... finalize; (`packhorse partitions drop` does it)'
    when bool_or(pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT')
      then 'a default partition: packhorse partitions drain' end as advice
from pg_partitioned_table k join pg_class t on t.oid = k.partrelid join pg_namespace n
  on n.oid = t.relnamespace
left join pg_inherits i on i.inhparent = k.partrelid left join pg_class c on c.oid = i.inhrelid
where k.partstrat = 'r' and n.nspname = any (array(
    select n2.nspname from pg_class c2 join pg_namespace n2 on n2.oid = c2.relnamespace
    where c2.oid in (to_regclass('packhorse.message_queue'), to_regclass('platform.companies')))
  || current_schemas(false))
group by k.partrelid order by 1;

-- name: care_indexes
-- Invalid ones, leftovers of concurrent builds, and those that are never read (unique ones enforce
-- something).
select i.indexrelid::regclass::text as index, i.indrelid::regclass::text as table,
  pg_relation_size(i.indexrelid) as bytes, coalesce(s.idx_scan, 0) as scans,
  case when not i.indisvalid then 'invalid' else 'never read' end as problem,
  case when not i.indisvalid
    then format('drop index concurrently %s; and make it again', i.indexrelid::regclass)
    else format('if nothing needs it: drop index concurrently %s;', i.indexrelid::regclass) end as advice
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_user_indexes s on s.indexrelid = i.indexrelid
where n.nspname = any (array(
    select n2.nspname from pg_class c2 join pg_namespace n2 on n2.oid = c2.relnamespace
    where c2.oid in (to_regclass('packhorse.message_queue'), to_regclass('platform.companies')))
  || current_schemas(false))
  and (not i.indisvalid or (coalesce(s.idx_scan, 0) = 0 and not i.indisunique
    and pg_relation_size(i.indexrelid) > 1048576))
order by i.indisvalid, 3 desc limit 50;

-- name: care_sequences
-- How much of a sequence is used up.
select format('%I.%I', schemaname, sequencename) as sequence,
  round(last_value::numeric / max_value, 4)::float8 as used_ratio,
  case when last_value::numeric / max_value > 0.5 then 'make the column bigint before it ends' end as advice
from pg_sequences
where schemaname = any (array(
    select n2.nspname from pg_class c2 join pg_namespace n2 on n2.oid = c2.relnamespace
    where c2.oid in (to_regclass('packhorse.message_queue'), to_regclass('platform.companies')))
  || current_schemas(false)) and last_value::numeric / max_value > 0.01 and not cycle
order by 2 desc;

-- name: care_snapshots
-- Who holds an old snapshot.
select a.pid, a.application_name as application, a.state,
  round(extract(epoch from clock_timestamp() - a.xact_start))::float8 as age_seconds,
  format('select pg_terminate_backend(%s);', a.pid) as advice
from pg_stat_activity a
where a.backend_xmin is not null and a.xact_start < clock_timestamp() - interval '1 minute'
  and a.datname = current_database()
union all
select null, format('%s of other roles', count(*)), 'hidden', null,
  format('grant pg_read_all_stats to %I; to see how old they are', current_user)
from pg_stat_activity a
where a.backend_xmin is not null and a.xact_start is null and a.datname = current_database()
  and not pg_has_role('pg_read_all_stats', 'usage')
having count(*) > 0
union all
select null, 'prepared transaction ' || p.gid, 'prepared',
  round(extract(epoch from clock_timestamp() - p.prepared))::float8, format('rollback prepared %L;', p.gid)
from pg_prepared_xacts p where p.database = current_database()
order by 4 desc nulls last limit 20;

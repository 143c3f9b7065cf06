-- name: care_tables
-- Size, live and dead rows, last vacuum, and what to do.
select s.relid::regclass::text as table, pg_total_relation_size(s.relid) as bytes, s.n_live_tup as live_rows, s.n_dead_tup as dead_rows,
  round(s.n_dead_tup::numeric / greatest(s.n_live_tup + s.n_dead_tup, 1), 3)::float8 as dead_ratio,
  s.last_autovacuum as last_autovacuum_at,
  case when s.n_dead_tup > 10000 and s.n_dead_tup > s.n_live_tup then format('vacuum %s; (and look at snapshots below)', s.relid::regclass)
    when s.n_mod_since_analyze > greatest(10000, s.n_live_tup) then format('analyze %s;', s.relid::regclass) end as advice
from pg_stat_user_tables s
where s.schemaname = any (current_schemas(false))
order by pg_total_relation_size(s.relid) desc limit 50;

-- name: care_indexes
-- Invalid ones, leftovers of concurrent builds, and those that are never read (unique ones enforce something).
select i.indexrelid::regclass::text as index, i.indrelid::regclass::text as table, pg_relation_size(i.indexrelid) as bytes, coalesce(s.idx_scan, 0) as scans,
  case when not i.indisvalid then 'invalid' else 'never read' end as problem,
  case when not i.indisvalid then format('drop index concurrently %s; and make it again', i.indexrelid::regclass)
    else format('if nothing needs it: drop index concurrently %s;', i.indexrelid::regclass) end as advice
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_user_indexes s on s.indexrelid = i.indexrelid
where n.nspname = any (current_schemas(false))
  and (not i.indisvalid or (coalesce(s.idx_scan, 0) = 0 and not i.indisunique and pg_relation_size(i.indexrelid) > 1048576))
order by i.indisvalid, 3 desc limit 50;

-- name: care_sequences
-- How much of a sequence is used up.
select format('%I.%I', schemaname, sequencename) as sequence, round(last_value::numeric / max_value, 4)::float8 as used_ratio,
  case when last_value::numeric / max_value > 0.5 then 'make the column bigint before it ends' end as advice
from pg_sequences
where schemaname = any (current_schemas(false)) and last_value::numeric / max_value > 0.01 and not cycle
order by 2 desc;

-- name: care_snapshots
-- Who holds an old snapshot.
select a.pid, a.application_name as application, a.state, round(extract(epoch from clock_timestamp() - a.xact_start))::float8 as age_seconds,
  format('select pg_terminate_backend(%s);', a.pid) as advice
from pg_stat_activity a
where a.backend_xmin is not null and a.xact_start < clock_timestamp() - interval '1 minute' and a.datname = current_database()
union all
select null, 'prepared transaction ' || p.gid, 'prepared', round(extract(epoch from clock_timestamp() - p.prepared))::float8, format('rollback prepared %L;', p.gid)
from pg_prepared_xacts p where p.database = current_database()
order by 4 desc limit 20;

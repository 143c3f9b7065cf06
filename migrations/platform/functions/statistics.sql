-- Sizes of the platform's tables (SPEC C6).

create or replace function platform.get_database_stats()
returns table (table_name text, partitions integer, estimated_rows bigint, dead_rows bigint, table_bytes bigint, index_bytes bigint, total_bytes bigint)
language sql stable as $$
-- One row per table of this schema, largest first; a partitioned table is the sum of its partitions. Rows are
-- the planner's estimate, 0 before the first analyze. Locks nothing.
  select r.relname::text, (count(p.oid) filter (where p.oid <> r.oid))::integer,
    sum(greatest(p.reltuples, 0)) filter (where p.relkind = 'r')::bigint,
    coalesce(sum(pg_stat_get_dead_tuples(p.oid)), 0)::bigint,
    sum(pg_table_size(p.oid))::bigint, sum(pg_indexes_size(p.oid))::bigint, sum(pg_total_relation_size(p.oid))::bigint
  from pg_class r
  cross join lateral (select r.oid as relid where r.relkind = 'r' union all select t.relid from pg_partition_tree(r.oid) t where r.relkind = 'p') t
  join pg_class p on p.oid = t.relid
  where r.relnamespace = (select c.relnamespace from pg_class c where c.oid = 'platform.companies'::regclass::oid)
    and r.relkind in ('r', 'p') and not r.relispartition
  group by r.oid, r.relname
  order by 7 desc, 1;
$$;
comment on function platform.get_database_stats() is 'One row per table: partitions, estimated rows, dead rows, bytes.';

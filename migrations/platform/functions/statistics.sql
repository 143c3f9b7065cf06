-- Sizes of tables, and what there is of WhatsApp sessions (SPEC C6).

create or replace function platform.get_whatsapp_auth_stats()
returns table (total_companies bigint, total_keys bigint, expired_keys bigint, active_keys bigint,
  db_size_bytes bigint)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
-- How many WhatsApp sessions and keys there are; one row. Counts the whole of both tables. Locks nothing.
-- SECURITY DEFINER: who may know how many there are may not read them.
  select (select count(*) from platform.whatsapp_auth), k.total, k.expired, k.total - k.expired,
    pg_total_relation_size('platform.whatsapp_auth') + pg_total_relation_size('platform.whatsapp_keys')
  from (select count(*) as total, count(*) filter (where expires_at <= clock_timestamp()) as expired
    from platform.whatsapp_keys) k;
$$;
comment on function platform.get_whatsapp_auth_stats() is
  'How many WhatsApp sessions and keys there are, and how large.';

create or replace function platform.get_database_stats()
returns table (table_name text, row_count bigint, table_size text, partitions integer, dead_rows bigint,
  table_bytes bigint, index_bytes bigint, total_bytes bigint)
language sql stable as $$
-- One row per table of this schema, largest first, without the secrets of WhatsApp; a partitioned table is
-- the sum of its partitions. Rows are the planner's estimate, 0 before the first analyze; table_size is
-- total_bytes for people. Locks nothing.
  select t.name, t.rows, pg_size_pretty(t.total), t.partitions, t.dead, t.own, t.indexes, t.total
  from (
    select r.relname::text as name,
      sum(greatest(p.reltuples, 0)) filter (where p.relkind = 'r')::bigint as rows,
      (count(p.oid) filter (where p.oid <> r.oid))::integer as partitions,
      coalesce(sum(pg_stat_get_dead_tuples(p.oid)), 0)::bigint as dead,
      sum(pg_table_size(p.oid))::bigint as own, sum(pg_indexes_size(p.oid))::bigint as indexes,
      sum(pg_total_relation_size(p.oid))::bigint as total
    from pg_class r
    cross join lateral (select r.oid as relid where r.relkind = 'r' union all select t.relid
      from pg_partition_tree(r.oid) t where r.relkind = 'p') m
    join pg_class p on p.oid = m.relid
    where r.relnamespace = (select c.relnamespace from pg_class c
      where c.oid = 'platform.companies'::regclass::oid)
      and r.relkind in ('r', 'p') and not r.relispartition
      and r.relname not in ('whatsapp_auth', 'whatsapp_keys')
    group by r.oid, r.relname) t
  order by t.total desc, t.name;
$$;
comment on function platform.get_database_stats() is
  'One row per table: rows, size, partitions, dead rows, bytes.';

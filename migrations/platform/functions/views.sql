-- What people look at: workflows, use of agents, sizes of tables (SPEC C6, C8).

create or replace view platform.workflow_health as
  select w.workflow_type, count(*) filter (where w.status = 'running') as running,
    count(*) filter (where w.status = 'running' and w.timeout_at <= clock_timestamp()) as overdue,
    count(*) filter (where w.status = 'completed' and w.finished_at > clock_timestamp() - interval '24 hours') as completed_24h,
    count(*) filter (where w.status = 'failed' and w.finished_at > clock_timestamp() - interval '24 hours') as failed_24h,
    count(*) filter (where w.status = 'timed_out' and w.finished_at > clock_timestamp() - interval '24 hours') as timed_out_24h,
    count(*) filter (where w.status = 'cancelled' and w.finished_at > clock_timestamp() - interval '24 hours') as cancelled_24h,
    coalesce(extract(epoch from avg(w.finished_at - w.created_at)
      filter (where w.status = 'completed' and w.finished_at > clock_timestamp() - interval '24 hours')), 0)::double precision as average_seconds_24h,
    coalesce(extract(epoch from clock_timestamp() - min(w.created_at) filter (where w.status = 'running')), 0)::double precision
      as oldest_running_seconds
  from platform.workflow_states w
  group by w.workflow_type;
comment on view platform.workflow_health is 'One row per type of workflow: running, overdue, and how the last 24 hours ended.';

create or replace view platform.ai_agent_usage as
  select s.agent_type, count(*) filter (where s.status = 'active' and s.expires_at > clock_timestamp()) as active,
    count(*) filter (where s.status = 'paused' and s.expires_at > clock_timestamp()) as paused,
    count(*) filter (where s.status in ('active', 'paused') and s.expires_at <= clock_timestamp()) as overdue,
    count(*) filter (where s.status = 'completed') as completed, count(*) filter (where s.status = 'expired') as expired,
    count(*) filter (where s.created_at > clock_timestamp() - interval '24 hours') as started_24h,
    count(distinct s.phone) filter (where s.last_activity_at > clock_timestamp() - interval '24 hours') as people_24h,
    sum(s.message_count)::bigint as messages, avg(s.message_count)::double precision as messages_per_session,
    max(s.last_activity_at) as last_activity_at
  from platform.agent_chat_sessions s
  group by s.agent_type;
comment on view platform.ai_agent_usage is 'One row per agent: sessions by state, people, messages.';

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

-- Row-level security applies to the one who looks, where PostgreSQL knows the option.
do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter view platform.workflow_health set (security_invoker = true);
    alter view platform.ai_agent_usage set (security_invoker = true);
  end if;
end
$$;

-- What people look at: the queue by status, workflows, the use of agents (SPEC C6, C8). With the time of the
-- statement: a condition on clock_timestamp(), which changes from row to row, uses no index and opens every
-- partition.

create or replace view platform.message_queue_by_status as
  select s.status, count(*) as count, round(avg(greatest(s.attempt - 1, 0)), 2) as avg_retries,
    max(greatest(s.attempt - 1, 0)) as max_retries,
    min(s.created_at) as oldest_message, count(*) filter (where s.status = 'processing') as locked_count
  from (
    select case when m.state = 'running' then 'processing'
      when m.state = 'pending' and m.attempt > 0 then 'retry' else m.state::text end as status,
      m.attempt::integer, m.created_at
    from packhorse.message_queue m where m.created_at > statement_timestamp() - interval '24 hours'
    union all -- what was created within a day has ended within a day: older partitions are not opened
    select 'completed', a.attempt, a.created_at from packhorse.message_archive a
    where a.state = 'done' and a.created_at > statement_timestamp() - interval '24 hours'
      and a.finished_at > statement_timestamp() - interval '24 hours'
    union all
    select 'failed', d.attempt, d.created_at from packhorse.dead_letters d
    where d.created_at > statement_timestamp() - interval '24 hours') s
  group by s.status;
comment on view platform.message_queue_by_status is
  'One row per status of the queue''s messages that were created in the last 24 hours: pending, processing, retry, blocked, completed, failed.';

create or replace view platform.workflow_health as
  select w.workflow_type::text as workflow_type, w.status::text as status, count(*) as count,
    avg(extract(epoch from coalesce(w.completed_at, statement_timestamp())
      - w.started_at))::double precision as avg_duration_seconds,
    max(extract(epoch from statement_timestamp() - w.updated_at))::double precision as max_idle_seconds,
    round(100.0 * sum(count(*) filter (where w.status = 'completed')) over of_type
      / nullif(sum(count(*) filter (where w.status
        in ('completed', 'failed', 'timeout', 'cancelled'))) over of_type, 0), 2) as completion_rate_percent
  from platform.workflow_states w
  where w.started_at > statement_timestamp() - interval '24 hours'
  group by w.workflow_type, w.status
  window of_type as (partition by w.workflow_type);
comment on view platform.workflow_health is
  'One row per type and status of workflows that started in the last 24 hours; the rate is completed among all ended of the type.';

create or replace view platform.ai_agent_usage as
  select m.agent_type::text as agent_type,
    count(distinct platform.normalize_phone(m.user_phone)) as unique_users, count(*) as total_conversations,
    round(avg(greatest(m.message_count, jsonb_array_length(m.conversation_history))),
      2) as avg_messages_per_conversation, max(m.last_interaction) as last_used,
    count(*) filter (where m.last_interaction > statement_timestamp() - interval '1 hour') as active_last_hour
  from platform.ai_conversation_memory m
  where m.created_at > statement_timestamp() - interval '24 hours'
  group by m.agent_type;
comment on view platform.ai_agent_usage is
  'One row per agent, from what it remembers: conversations that began in the last 24 hours.';

-- Row-level security applies to the one who looks, where PostgreSQL knows the option.
do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter view platform.message_queue_by_status set (security_invoker = true);
    alter view platform.workflow_health set (security_invoker = true);
    alter view platform.ai_agent_usage set (security_invoker = true);
  end if;
end
$$;

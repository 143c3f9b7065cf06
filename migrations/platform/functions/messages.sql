-- Partitions and statistics of `messages` (SPEC M5, C6): one per UTC month of created_at.

create or replace function platform.make_messages_partition(p_date date, out partition_name text,
  out created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
-- Used by create_messages_partition: the partition of the month in which a date lies, and whether it was made
-- now. SECURITY DEFINER: only the owner of the table may make partitions. Locks, in this order: one maker at
-- a time (advisory), then SHARE UPDATE EXCLUSIVE on the parent: readers and writers go on.
declare
  v_month constant date := date_trunc('month', p_date)::date;
  v_parent regclass;
  v_table regclass;
begin
  partition_name := 'messages_' || to_char(v_month, 'YYYY_MM');
  created := false;
  perform pg_advisory_xact_lock(hashtext('packhorse messages'));
  lock table only platform.messages in share update exclusive mode;
  select i.inhparent into v_parent from pg_inherits i
  where i.inhrelid = to_regclass(format('platform.%I', partition_name)) and not i.inhdetachpending;
  if v_parent = 'platform.messages'::regclass then
    return;
  elsif to_regclass(format('platform.%I', partition_name)) is not null then
    raise exception using errcode = 'PH005', column = 'partition_date',
      message = format('partition_date: %s exists and is no partition of messages', partition_name),
      hint = format('It was detached. Attach it again, or rename it: alter table platform.%I rename to ...',
        partition_name);
  end if;
  v_table := packhorse.create_partition_table('platform.messages', null, partition_name);
  execute format('alter table platform.messages attach partition %s for values from (%L) to (%L)', v_table,
    v_month::timestamp at time zone 'UTC', (v_month + interval '1 month')::timestamp at time zone 'UTC');
  perform packhorse.finish_partition('platform.messages', v_table);
  created := true;
end
$$;
comment on function platform.make_messages_partition(date) is
  'Used by create_messages_partition: the partition of a month, and whether it was made now.';

create or replace function platform.create_messages_partition(partition_date date) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Make the partition of the month in which a date lies (2000 to 2199), unless it is there. Returns its name.
-- Raises PH001; PH005 when a table of that name is no partition (it was detached, say); 55P03 when a lock
-- could not be had within 2 seconds: try again.
begin
  if partition_date is null or partition_date not between date '2000-01-01' and date '2199-12-31' then
    perform platform.refuse_value('partition_date', 'must be a date between 2000-01-01 and 2199-12-31');
  end if;
  return (select m.partition_name from platform.make_messages_partition(partition_date) m);
end
$$;
comment on function platform.create_messages_partition(date) is
  'Make the partition of messages for the month of a date, unless it is there; its name.';

create or replace function platform.drop_messages_partition(p_name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
-- Used by maintain_messages_partitions: drop one partition; false when its lock could not be had within 2
-- seconds. Locks ACCESS EXCLUSIVE the parent and the partition, for an instant.
begin
  if exists (select from pg_inherits i
    where i.inhparent = 'platform.messages'::regclass::oid
      and i.inhrelid = to_regclass(format('platform.%I', p_name))) then
    execute format('drop table platform.%I', p_name);
  end if;
  return true;
exception when lock_not_available then
  return false;
end
$$;
comment on function platform.drop_messages_partition(text) is
  'Used by maintain_messages_partitions: drop one; false when its lock was not to be had.';

create or replace function platform.maintain_messages_partitions(p_months_ahead integer default 5,
  p_keep_months integer default 6)
returns table (action text, partition_name text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Make the partitions of the current UTC month and of p_months_ahead (0..60) after it (`created`, one row
-- each), and drop those older than the p_keep_months (0..1200) before it: `dropped`, or `kept` when the lock
-- was not to be had in 2 seconds. p_keep_months null: all stay. Safe to repeat and to run anywhere; no row
-- when there was nothing to do. Raises PH001, and what create_messages_partition does.
declare
  v_first constant date := date_trunc('month', clock_timestamp() at time zone 'UTC')::date;
begin
  perform platform.check_number('months_ahead', p_months_ahead, 0, 60);
  perform platform.check_number('keep_months', coalesce(p_keep_months, 0), 0, 1200);
  -- workers ask every few minutes: what is there is seen without a lock
  return query
  select 'created', n.partition_name
  from (select v_first + m::float8 * interval '1 month' as month
    from generate_series(0, p_months_ahead) m offset 0) p
  cross join lateral platform.make_messages_partition(p.month::date) n
  where not packhorse.partition_covers('platform.messages', p.month at time zone 'UTC',
    (p.month + interval '1 month') at time zone 'UTC')
    and n.created;
  if p_keep_months is not null then
    return query
    select case when platform.drop_messages_partition(s.partition_name) then 'dropped' else 'kept' end,
      s.partition_name
    from (select o.partition_name from platform.get_messages_stats() o
      where o.partition_end <= v_first - p_keep_months::float8 * interval '1 month'
      order by o.partition_start offset 0) s;
  end if;
end
$$;
comment on function platform.maintain_messages_partitions(integer, integer) is
  'Make the partitions of messages for this month and five more, and drop those older than six months.';

create or replace function platform.get_messages_stats()
returns table (partition_name text, partition_start date, partition_end date, row_count bigint,
  table_size text, total_bytes bigint, months_ahead integer)
language sql stable as $$
-- One row per partition of messages, newest first; partition_end is not in it. Rows are the planner's
-- estimate, 0 before the first analyze. months_ahead counts from the current UTC month, so its maximum is the
-- runway. Locks nothing.
  select p.name, p.starts_on, p.ends_on, p.estimated_rows, pg_size_pretty(p.bytes), p.bytes,
    (extract(year from age(p.starts_on, p.now_month)) * 12.0
      + extract(month from age(p.starts_on, p.now_month)))::integer
  from (
    select c.relname::text as name,
      ((regexp_match(pg_get_expr(c.relpartbound, c.oid),
        'FROM \(''([^'']+)''\)'))[1]::timestamptz at time zone 'UTC')::date as starts_on,
      ((regexp_match(pg_get_expr(c.relpartbound, c.oid),
        'TO \(''([^'']+)''\)'))[1]::timestamptz at time zone 'UTC')::date as ends_on,
      greatest(c.reltuples, 0)::bigint as estimated_rows, pg_total_relation_size(c.oid) as bytes,
      date_trunc('month', statement_timestamp() at time zone 'UTC') as now_month
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'platform.messages'::regclass::oid) p
  order by p.starts_on desc, p.name;
$$;
comment on function platform.get_messages_stats() is
  'One row per partition of messages: range, estimated rows, size, months ahead.';

create or replace function platform.get_recent_messages(
  p_phone text, p_company_id bigint default null, p_limit integer default 50,
  p_within interval default '6 months'
) returns table (
  id bigint, direction text, message text, created_at timestamptz, processed boolean, company_id bigint,
  conversation_id uuid, message_type text, status text, message_id text, metadata jsonb
)
language plpgsql stable as $$
-- The last p_limit (1..1000) messages with a phone, newest first; of one company, or of all when p_company_id
-- is null. No row when there were none. Partitions older than p_within (1 hour to ten years), and those of
-- later months, are not opened; the others are read from the newest on, until there are enough. Locks
-- nothing. Raises PH001.
declare
  v_phone constant text := platform.check_phone('phone', p_phone);
  v_since timestamptz;
  v_until timestamptz;
begin
  perform platform.check_number('limit', p_limit, 1, 1000);
  perform platform.check_span('within', p_within, interval '1 hour', interval '3660 days');
  v_since := clock_timestamp() - p_within;
  -- a message may bear the time of a phone whose clock is fast
  v_until := clock_timestamp() + interval '1 hour';
  return query
  select m.id::bigint, m.direction::text, m.message::text, m.created_at, m.processed, m.company_id::bigint,
    m.conversation_id, m.message_type::text,
    m.status::text, m.message_id::text, m.metadata::jsonb -- an adopted table may have integer and varchar
  from platform.messages m
  where m.phone = v_phone and m.created_at >= v_since and m.created_at < v_until
    and (p_company_id is null or m.company_id = p_company_id)
  order by m.created_at desc, m.id desc
  limit p_limit;
end
$$;
comment on function platform.get_recent_messages(text, bigint, integer, interval) is
  'The last messages with a phone, newest first, from as few partitions as it takes.';

select platform.maintain_messages_partitions(p_keep_months => null);

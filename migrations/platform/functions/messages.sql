-- Partitions and statistics of `messages` (SPEC M5, C6).
--
-- maintain_messages_partitions() keeps five months ahead. It only ever creates: dropping is somebody else's work, in other transactions.

create or replace function platform.create_messages_partition(p_month date) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
-- Make the partition of the month in which p_month lies (2000 to 2199). Returns its name, null when it was
-- there. SECURITY DEFINER with a pinned search_path: only the owner of the table may make partitions.
-- Locks, in this order: one maker at a time (advisory), then SHARE UPDATE EXCLUSIVE on the parent: readers
-- and writers go on. Raises PH001; PH005 when a table of that name is no partition (it was detached, say);
-- 55P03 when the lock could not be had within 2 seconds: try again.
declare
  v_month date;
  v_name text;
  v_parent regclass;
  v_table regclass;
begin
  if p_month is null or p_month not between date '2000-01-01' and date '2199-12-31' then
    perform packhorse.refuse_argument('month', 'must be a date between 2000-01-01 and 2199-12-31');
  end if;
  v_month := date_trunc('month', p_month)::date;
  v_name := 'messages_' || to_char(v_month, 'YYYY_MM');
  perform pg_advisory_xact_lock(hashtext('packhorse messages'));
  lock table only platform.messages in share update exclusive mode;
  select i.inhparent into v_parent from pg_inherits i where i.inhrelid = to_regclass(format('platform.%I', v_name)) and not i.inhdetachpending;
  if v_parent = 'platform.messages'::regclass then
    return null;
  elsif to_regclass(format('platform.%I', v_name)) is not null then
    raise exception using errcode = 'PH005', column = 'month', message = format('month: %s exists and is no partition of messages', v_name),
      hint = format('It was detached. Attach it again, or rename it: alter table platform.%I rename to ...', v_name);
  end if;
  v_table := packhorse.create_partition_table('platform.messages', null, v_name);
  execute format('alter table platform.messages attach partition %s for values from (%L) to (%L)', v_table,
    v_month::timestamp at time zone 'UTC', (v_month + interval '1 month')::timestamp at time zone 'UTC');
  perform packhorse.finish_partition('platform.messages', v_table);
  return v_name;
end
$$;
comment on function platform.create_messages_partition(date) is 'Make the partition of messages for the month of a date; its name, null when it was there.';

create or replace function platform.maintain_messages_partitions(p_months_ahead integer default 5) returns integer
language plpgsql as $$
-- Make the partitions of the current UTC month and of p_months_ahead (0..60) after it; returns how many are
-- new. Only creates. Safe to repeat and to run anywhere. Raises PH001, and what create_messages_partition does.
declare
  v_first constant date := date_trunc('month', clock_timestamp() at time zone 'UTC')::date;
  v_made integer;
begin
  if p_months_ahead is null or p_months_ahead not between 0 and 60 then
    perform packhorse.refuse_argument('months_ahead', 'must be between 0 and 60');
  end if;
  -- workers ask every few minutes: what is there is seen without a lock
  select count(platform.create_messages_partition(p.month::date)) into v_made
  from (select v_first + m::float8 * interval '1 month' as month from generate_series(0, p_months_ahead) m offset 0) p
  where not packhorse.partition_covers('platform.messages', p.month at time zone 'UTC', (p.month + interval '1 month') at time zone 'UTC');
  return v_made;
end
$$;
comment on function platform.maintain_messages_partitions(integer) is 'Make the partitions of messages for this month and five more; returns how many are new.';

create or replace function platform.get_messages_stats()
returns table (partition_name text, starts_at timestamptz, ends_at timestamptz, estimated_rows bigint, total_bytes bigint, months_ahead integer)
language sql stable as $$
-- One row per partition of messages, oldest first. Rows are the planner's estimate, 0 before the first
-- analyze. months_ahead counts from the current UTC month, so its maximum is the runway. Locks nothing.
  select p.name, p.starts_at, p.ends_at, p.estimated_rows, p.total_bytes,
    (extract(year from age(p.starts_at at time zone 'UTC', p.now_month)) * 12.0 + extract(month from age(p.starts_at at time zone 'UTC', p.now_month)))::integer
  from (
    select c.relname::text as name,
      (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz as starts_at,
      (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz as ends_at,
      greatest(c.reltuples, 0)::bigint as estimated_rows, pg_total_relation_size(c.oid) as total_bytes,
      date_trunc('month', statement_timestamp() at time zone 'UTC') as now_month
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'platform.messages'::regclass::oid) p
  order by p.starts_at, p.name;
$$;
comment on function platform.get_messages_stats() is 'One row per partition of messages: range, estimated rows, bytes, months ahead.';

create or replace function platform.get_recent_messages(
  p_phone text, p_company_id bigint default null, p_limit integer default 20, p_within interval default '6 months'
) returns table (
  id bigint, company_id bigint, conversation_id uuid, direction text, message_type text, content text, status text, external_id text,
  metadata jsonb, created_at timestamptz
)
language plpgsql stable as $$
-- The last p_limit (1..1000) messages with a phone, newest first; of one company, or of all when
-- p_company_id is null. No row when there were none. Partitions older than p_within (1 hour to ten years), and
-- those of later months, are not opened; the others are read from the newest on, until there are enough.
-- Locks nothing. Raises PH001.
declare
  v_since timestamptz;
  v_until timestamptz;
begin
  perform platform.check_text('phone', p_phone, 100);
  if p_limit is null or p_limit not between 1 and 1000 then
    perform packhorse.refuse_argument('limit', 'must be between 1 and 1000');
  end if;
  perform platform.check_span('within', p_within, interval '1 hour', interval '3660 days');
  v_since := clock_timestamp() - p_within;
  v_until := clock_timestamp() + interval '1 hour'; -- a message may bear the time of a phone whose clock is fast
  return query
  select m.id, m.company_id, m.conversation_id, m.direction, m.message_type, m.content, m.status, m.external_id, m.metadata::jsonb, m.created_at
  from platform.messages m
  where m.phone = p_phone and m.created_at >= v_since and m.created_at < v_until
    and (p_company_id is null or m.company_id = p_company_id)
  order by m.created_at desc, m.id desc
  limit p_limit;
end
$$;
comment on function platform.get_recent_messages(text, bigint, integer, interval) is 'The last messages with a phone, newest first, from as few partitions as it takes.';

select platform.maintain_messages_partitions();

-- Partitions: what makes one like its table, the daily ones of the archive, and until when inserts find one
-- (SPEC M5).

create or replace function packhorse.partition_covers(p_table regclass, p_from timestamptz,
  p_until timestamptz) returns boolean
language sql stable as $$
-- Has a table that is partitioned by a timestamptz an attached partition that takes every row of p_from to
-- p_until? By its bounds; names mean nothing: a detached table has the name of the partition that it was.
  select exists (
    select from pg_inherits i join pg_class c on c.oid = i.inhrelid
    cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid),
      'FROM \(''?([^'']+?)''?\) TO \(''?([^'']+?)''?\)') as at) b
    where i.inhparent = p_table::oid and not i.inhdetachpending
      and case b.at[1] when 'MINVALUE' then '-infinity' else b.at[1]::timestamptz end <= p_from
      and case b.at[2] when 'MAXVALUE' then 'infinity' else b.at[2]::timestamptz end >= p_until);
$$;
comment on function packhorse.partition_covers(regclass, timestamptz, timestamptz) is
  'Do inserts of a span of time find one partition?';

create or replace function packhorse.create_partition_table(p_table regclass, p_schema text, p_name text)
returns regclass
language plpgsql as $$
-- Make a table that can be attached as a partition of p_table (p_schema null: in its schema): its columns,
-- defaults, checks, storage, compression, statistics, tablespace and access method. A partitioned table has
-- no storage parameters of its own: they are those of the partition that was made last. `create table ...
-- partition of` would copy as much, and lock the parent against all readers and writers. Locks: ACCESS SHARE
-- on the parent.
declare
  v_using text := (select a.amname from pg_class c join pg_am a on a.oid = c.relam
    where c.oid = p_table::oid);
  v_space text := (select s.spcname from pg_class c join pg_tablespace s on s.oid = c.reltablespace
    where c.oid = p_table::oid);
  v_with text := (
    select string_agg(format('%s = %L', split_part(o.text, '=', 1), substr(o.text, strpos(o.text, '=') + 1)),
      ', ')
    from (
      select c.oid, c.reloptions, c.reltoastrelid from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = p_table::oid and c.relkind = 'r' order by c.oid desc limit 1) l
    cross join lateral (
      select unnest(l.reloptions) as text
      union all
      select 'toast.' || unnest(t.reloptions) from pg_class t where t.oid = l.reltoastrelid) o);
  v_new text := (select format('%I.%I', coalesce(p_schema, n.nspname::text), p_name)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table::oid);
  v_column record;
begin
  execute format(
    'create table %s (like %s including defaults including constraints including generated including storage '
    'including compression including statistics)%s%s%s', v_new, p_table, ' using ' || quote_ident(v_using),
    ' with (' || v_with || ')',
    ' tablespace ' || quote_ident(v_space));
  for v_column in
    select a.attname, a.attstattarget, array_to_string(a.attoptions, ', ') as options from pg_attribute a
    where a.attrelid = p_table::oid and a.attnum > 0 and not a.attisdropped
      and (a.attstattarget >= 0 or a.attoptions is not null)
  loop
    if v_column.attstattarget >= 0 then
      execute format('alter table %s alter column %I set statistics %s', v_new, v_column.attname,
        v_column.attstattarget);
    end if;
    if v_column.options is not null then
      execute format('alter table %s alter column %I set (%s)', v_new, v_column.attname, v_column.options);
    end if;
  end loop;
  return v_new::regclass;
end
$$;
comment on function packhorse.create_partition_table(regclass, text, text) is
  'Make a table that can be attached as a partition: like its parent.';

create or replace function packhorse.copy_policies(p_table regclass, p_partition regclass) returns void
language plpgsql as $$
-- Give a new partition the row-level policies of its table.
declare
  v_row record;
begin
  for v_row in
    select p.polname, case when p.polpermissive then 'permissive' else 'restrictive' end as kind,
      case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
        when 'd' then 'delete' else 'all' end as verb,
      (select string_agg(case r.role when 0::oid then 'public' else r.role::regrole::text end, ', ')
        from unnest(p.polroles) as r (role)) as roles,
      pg_get_expr(p.polqual, p.polrelid) as qual, pg_get_expr(p.polwithcheck, p.polrelid) as checked
    from pg_policy p where p.polrelid = p_table::oid
  loop
    execute format('create policy %I on %s as %s for %s to %s%s%s', v_row.polname, p_partition, v_row.kind,
      v_row.verb, v_row.roles, ' using (' || v_row.qual || ')', ' with check (' || v_row.checked || ')');
  end loop;
end
$$;
comment on function packhorse.copy_policies(regclass, regclass) is
  'Give a new partition the row-level policies of its table.';

create or replace function packhorse.copy_owner(p_table regclass, p_partition regclass) returns void
language plpgsql as $$
-- Give a new partition and its extended statistics the owner of its table.
declare
  v_owner constant oid := (select c.relowner from pg_class c where c.oid = p_table::oid);
  v_row record;
begin
  if v_owner = (select c.relowner from pg_class c where c.oid = p_partition::oid) then
    return;
  end if;
  execute format('alter table %s owner to %s', p_partition, v_owner::regrole);
  for v_row in
    select s.stxnamespace::regnamespace as schema, s.stxname from pg_statistic_ext s
    where s.stxrelid = p_partition::oid and s.stxowner <> v_owner
  loop
    execute format('alter statistics %s.%I owner to %s', v_row.schema, v_row.stxname, v_owner::regrole);
  end loop;
end
$$;
comment on function packhorse.copy_owner(regclass, regclass) is
  'Give a new partition and its extended statistics the owner of its table.';

create or replace function packhorse.copy_privileges(p_table regclass, p_partition regclass, p_closed boolean)
returns void
language plpgsql as $$
-- Take from a new partition what default privileges of the host gave others, and give it the privileges of
-- its table. p_closed: it gets none.
declare
  v_owner constant oid := (select c.relowner from pg_class c where c.oid = p_table::oid);
  v_row record;
begin
  for v_row in
    select distinct case a.grantee when 0::oid then 'public' else a.grantee::regrole::text end as name
    from pg_class c cross join aclexplode(c.relacl) a
    where c.oid = p_partition::oid and a.grantee <> c.relowner
  loop
    execute format('revoke all on %s from %s', p_partition, v_row.name);
  end loop;
  for v_row in
    select a.privilege_type as privilege, a.grantee, a.is_grantable
    from pg_class c cross join aclexplode(c.relacl) a where c.oid = p_table::oid
    union all
    select format('%s (%I)', a.privilege_type, t.attname), a.grantee, a.is_grantable
    from pg_attribute t cross join aclexplode(t.attacl) a
    where t.attrelid = p_table::oid and t.attnum > 0 and not t.attisdropped
  loop
    continue when p_closed or v_row.grantee = v_owner;
    execute format('grant %s on %s to %s%s', v_row.privilege, p_partition,
      case v_row.grantee when 0::oid then 'public' else v_row.grantee::regrole::text end,
      case when v_row.is_grantable then ' with grant option' else '' end);
  end loop;
end
$$;
comment on function packhorse.copy_privileges(regclass, regclass, boolean) is
  'Give a new partition the privileges of its table, and nobody others.';

create or replace function packhorse.finish_partition(p_table regclass, p_partition regclass) returns void
language plpgsql as $$
-- Give a partition, just attached in the same transaction, what attaching does not: replica identity,
-- row-level security (forced or not) with its policies, owner and privileges of the table. Indexes, foreign
-- keys and row triggers came with the attachment, publications hold for the table and so for its partitions.
-- Partitions of our own tables stay closed instead: row-level security, no policy, no privilege; everybody
-- goes through the table. Locks: the new partition alone, which nobody else can see yet.
declare
  v_parent pg_class := (select c from pg_class c where c.oid = p_table::oid);
  v_closed constant boolean := p_table::oid
    in ('packhorse.message_archive'::regclass::oid, coalesce(to_regclass('platform.messages'), 0)::oid);
  v_index text;
begin
  if v_parent.relreplident = 'i' then
    select c.relname into v_index from pg_index x join pg_inherits i on i.inhparent = x.indexrelid
    join pg_index y on y.indexrelid = i.inhrelid and y.indrelid = p_partition::oid
    join pg_class c on c.oid = y.indexrelid
    where x.indrelid = p_table::oid and x.indisreplident;
  end if;
  if v_parent.relreplident in ('f', 'n') or v_index is not null then
    execute format('alter table %s replica identity %s', p_partition,
      case v_parent.relreplident when 'f' then 'full' when 'n' then 'nothing'
        else format('using index %I', v_index) end);
  end if;
  if v_parent.relrowsecurity or v_closed then
    execute format('alter table %s enable row level security', p_partition);
  end if;
  if v_parent.relforcerowsecurity then
    execute format('alter table %s force row level security', p_partition);
  end if;
  if not v_closed then
    perform packhorse.copy_policies(p_table, p_partition);
  end if;
  perform packhorse.copy_owner(p_table, p_partition);
  perform packhorse.copy_privileges(p_table, p_partition, v_closed);
end
$$;
comment on function packhorse.finish_partition(regclass, regclass) is
  'Give an attached partition the owner, replica identity, security and privileges of its table.';

create or replace function packhorse.ensure_message_archive_partitions(p_days_ahead integer default 7)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms' as $$
-- Make the archive's partitions from today to p_days_ahead (0..60) days ahead, UTC; returns how many are new.
-- SECURITY DEFINER with a pinned search_path: only the owner of the table may make partitions. Attaching
-- takes SHARE UPDATE EXCLUSIVE on the parent: readers and writers go on. While somebody else has that for
-- long (DETACH CONCURRENTLY behind a dump) it fails with 55P03, and the next call makes them.
declare
  v_today constant date := (clock_timestamp() at time zone 'UTC')::date;
  v_day date;
  v_table regclass;
  v_name text;
  v_made integer := 0;
begin
  if p_days_ahead is null or p_days_ahead not between 0 and 60 then
    perform packhorse.refuse_argument('days_ahead', 'must be between 0 and 60');
  end if;
  perform pg_advisory_xact_lock(hashtext('packhorse message_archive'));
  -- a series of dates would be one of the session's midnights, and a day whose midnight is none ends it early
  for v_day in select v_today + n from generate_series(0, p_days_ahead) n loop
    continue when packhorse.partition_covers('packhorse.message_archive', v_day::timestamp at time zone 'UTC',
      (v_day + 1)::timestamp at time zone 'UTC');
    v_name := 'message_archive_' || to_char(v_day, 'YYYYMMDD');
    -- a table that was detached has the name still: completions do not wait for somebody to look at it
    for v_other in 2..100 loop
      exit when to_regclass(format('packhorse.%I', v_name)) is null;
      v_name := 'message_archive_' || to_char(v_day, 'YYYYMMDD') || '_' || v_other;
    end loop;
    v_table := packhorse.create_partition_table('packhorse.message_archive', null, v_name);
    execute format('alter table packhorse.message_archive attach partition %s for values from (%L) to (%L)',
      v_table, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
    perform packhorse.finish_partition('packhorse.message_archive', v_table);
    v_made := v_made + 1;
  end loop;
  return v_made;
end
$$;
comment on function packhorse.ensure_message_archive_partitions(integer) is
  'Make the archive''s daily partitions ahead; returns how many are new.';

create or replace function packhorse.drop_expired_archive_partitions() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
-- Retention of the archive: drop daily partitions whose every message is older than the longest keep_done of
-- all queues, and than configuration keeps it: where partitions.message_archive is switched off, or exports,
-- or rests for longer, none is dropped here. What it cannot have now it drops next time. A drop needs the
-- whole archive for an instant, and while it waits for that every completion waits behind it. So it is not
-- even tried while a transaction that lasts (a dump, a report) uses the archive.
declare
  v_users text[];
  v_policy constant jsonb := (select t.policy from packhorse.maintenance_tasks t
    where t.task = 'partitions.message_archive.drop');
  v_keep constant interval :=
    case when v_policy is null then '0' else make_interval(days => (v_policy ->> 'keep_days')::integer) end;
  v_oldest timestamptz := (select date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC'
    - greatest(coalesce(max(keep_done), interval '7 days'), v_keep) - interval '1 day' from packhorse.queues);
  v_table regclass;
  v_dropped integer := 0;
begin
  if v_keep is null or not pg_try_advisory_xact_lock(hashtext('packhorse message_archive')) then
    return 0; -- another one is at it
  end if;
  for v_table in
    select c.oid::regclass from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'packhorse.message_archive'::regclass::oid
      and c.relname ~ '^message_archive_[0-9]{8}(_[0-9]+)?$'
      and to_date(substr(c.relname, 17, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' < v_oldest
    order by c.relname limit 10
  loop
    for v_look in 1..2 loop
      v_users := array(
        select l.virtualtransaction from pg_locks l
        where l.relation in ('packhorse.message_archive'::regclass::oid, v_table::oid) and l.granted
          and l.pid is distinct from pg_backend_pid()
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and (v_look = 1 or l.virtualtransaction = any (v_users)));
      exit when v_look = 2 or cardinality(v_users) = 0;
      perform pg_sleep(0.1);
    end loop;
    exit when cardinality(v_users) > 0;
    begin
      execute format('drop table %s', v_table);
      v_dropped := v_dropped + 1;
    exception when lock_not_available then
      exit;
    end;
  end loop;
  return v_dropped;
end
$$;
comment on function packhorse.drop_expired_archive_partitions() is
  'Drop archive partitions past their retention; returns how many.';

create or replace function packhorse.partition_ends(p_now timestamptz)
returns table (table_name text, ends_at timestamptz, every text)
language sql stable as $$
-- Until when inserts find a partition, by table: those of the queue's and the platform's schema that are
-- partitioned by a time, and those that a policy of [partitions] looks after, wherever they are. Infinity for
-- an open end. every: day, week or month, by the width of the partition that ends last.
  with kept as (
    select (select r.plan ->> 'table' from packhorse.maintenance_runs r
            where r.task = t.task and r.started_at > p_now - interval '30 days'
            order by r.id desc limit 1) as name
    from packhorse.maintenance_tasks t where t.task like 'partitions.%.make'
  ), bounds as (
    select case when n.nspname = any (h.schemas) then p.relname::text
      else n.nspname || '.' || p.relname end as name, a.atttypid = 'timestamptz'::regtype as zoned,
    regexp_match(pg_get_expr(c.relpartbound, c.oid),
      'FROM \(''?([^'']+?)''?\) TO \(''?([^'']+?)''?\)') as texts
    from (select array[(parse_ident('packhorse.x'))[1], (parse_ident('platform.x'))[1]] as schemas) h
    cross join pg_partitioned_table k
    join pg_class p on p.oid = k.partrelid
    join pg_namespace n on n.oid = p.relnamespace
    join pg_attribute a on a.attrelid = p.oid and a.attnum = k.partattrs[0]
    join pg_inherits i on i.inhparent = p.oid and not i.inhdetachpending
    join pg_class c on c.oid = i.inhrelid
    where k.partstrat = 'r' and k.partnatts = 1
      and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
      and (n.nspname = any (h.schemas) or exists (select from kept where to_regclass(kept.name) = p.oid))
  ), ranges as ( -- columns without a zone hold UTC
    select b.name, case when b.texts[1] = 'MINVALUE' then '-infinity'
      when b.zoned then b.texts[1]::timestamptz
        else b.texts[1]::timestamp at time zone 'UTC' end as lower_at,
      case when b.texts[2] = 'MAXVALUE' then 'infinity' when b.zoned then b.texts[2]::timestamptz
        else b.texts[2]::timestamp at time zone 'UTC' end as upper_at
    from bounds b where b.texts is not null
  ), reached as (
    select r.name, r.lower_at, r.upper_at, greatest(p_now, max(r.upper_at) over (
        partition by r.name
        order by r.lower_at, r.upper_at rows between unbounded preceding and 1 preceding)) as reached_at
    from ranges r
  )
  -- up to the first gap: there inserts fail, whatever is made behind it
  select r.name, coalesce(min(r.reached_at) filter (where r.lower_at > r.reached_at), max(r.upper_at)),
    case when (array_agg(r.upper_at - interval '27 days' >= r.lower_at order by r.upper_at desc))[1]
      then 'month'
      when (array_agg(r.upper_at - interval '6 days' >= r.lower_at order by r.upper_at desc))[1] then 'week'
      else 'day' end
  from reached r group by r.name order by r.name;
$$;
comment on function packhorse.partition_ends(timestamptz) is
  'Until when inserts into a table that is partitioned by a time find a partition.';

select packhorse.ensure_message_archive_partitions();

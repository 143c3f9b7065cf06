-- Queue settings as functions: declare, set, pause, resume (SPEC Q8), and the wake-up hint (SPEC Q10).
--
-- Refusals of the whole SQL API carry private SQLSTATEs:
--   PH001 bad argument (its name in COLUMN)   PH002 unknown queue   PH003 lease lost
--   PH004 no such message                     PH005 not possible in the message's state
-- Lock and duration: new objects only, milliseconds.

create function declare_queue(p_queue text) returns boolean
language plpgsql set search_path from current as $$
-- Make the queue known; true when it is new. Safe to repeat. Locks nothing when the queue exists.
begin
  if exists (select from queues where name = p_queue) then
    return false;
  end if;
  if p_queue is null or p_queue !~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then
    raise exception using errcode = 'PH001', column = 'queue',
      message = format('queue: %L is not a queue name', left(p_queue, 120)),
      hint = 'Use a letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.';
  end if;
  insert into queues (name) values (p_queue) on conflict do nothing;
  insert into queue_wakeups (queue) values (p_queue) on conflict do nothing;
  return true;
end
$$;
comment on function declare_queue(text) is 'Make a queue known; true when it is new.';

create function require_queue(p_queue text) returns void
language plpgsql stable set search_path from current as $$
-- Raise PH002 with the nearest known name unless the queue exists; 42501 when no queue would be seen whatever exists.
declare
  v_near text;
begin
  if exists (select from queues where name = p_queue) then
    return;
  elsif p_queue is null then
    raise exception using errcode = 'PH002', column = 'queue', message = 'queue: must not be null';
  elsif row_security_active('queues') and not exists (select from queues)
    and not pg_has_role('packhorse_producer', 'usage') and not pg_has_role('packhorse_worker', 'usage') then
    raise exception using errcode = '42501', column = 'queue', message = format('queue: role %I has no rights of packhorse_producer', current_user),
      hint = 'Grant packhorse_producer to it (a role with NOINHERIT does not get its rights by that), or call from a security definer function.';
  end if;
  select name into v_near from queues
  order by (left(name, 3) = left(p_queue, 3)) desc, abs(length(name) - length(p_queue)), name limit 1;
  raise exception using errcode = 'PH002', column = 'queue',
    message = format('queue: unknown queue %L', left(p_queue, 120)),
    hint = case when v_near is null then 'No queue exists yet. ' else format('Did you mean %L? ', v_near) end
      || 'A new queue is made by: select declare_queue('
      || case when p_queue ~ '^[A-Za-z_][A-Za-z0-9._-]{0,99}$' then quote_literal(p_queue) else 'name' end || ')';
end
$$;
comment on function require_queue(text) is 'Raise PH002, naming a near miss, unless the queue exists.';

create function set_queue(p_queue text, p_settings jsonb, p_operator text default current_user) returns queues
language plpgsql set search_path from current as $$
-- Change settings of one queue; keys are column names of `queues`, null resets a limit to "none".
-- Locks the queue's row. Unknown keys and values out of range raise PH001, which names the key, and change nothing.
declare
  v_known constant text[] := array['max_concurrency', 'max_concurrency_per_key', 'rate_limit', 'rate_interval',
    'rate_burst', 'keep_done', 'max_attempts', 'crash_limit', 'backoff_initial', 'backoff_multiplier',
    'backoff_max', 'backoff_jitter', 'on_dead'];
  v_unknown text;
  v_key text;
  v_constraint text;
  v_new_rate constant boolean := p_settings ?| array['rate_limit', 'rate_interval', 'rate_burst'];
  v_row queues;
begin
  perform require_queue(p_queue);
  if p_settings is null or jsonb_typeof(p_settings) <> 'object' then
    raise exception using errcode = 'PH001', column = 'settings', message = 'settings: must be a JSON object';
  end if;
  select key into v_unknown from jsonb_object_keys(p_settings) as k(key) where key <> all (v_known) limit 1;
  if found then
    raise exception using errcode = 'PH001', column = v_unknown,
      message = format('%s: not a queue setting', left(v_unknown, 60)),
      hint = 'Known settings: ' || array_to_string(v_known, ', ');
  end if;
  select * into v_row from queues where name = p_queue for update;
  begin
    for v_key in select jsonb_object_keys(p_settings) loop -- one by one: the error of a value has no name in it
      v_row := jsonb_populate_record(v_row, jsonb_build_object(v_key, p_settings -> v_key));
    end loop;
    v_key := null;
    update queues set
      max_concurrency = v_row.max_concurrency, max_concurrency_per_key = v_row.max_concurrency_per_key,
      rate_limit = v_row.rate_limit, rate_interval = v_row.rate_interval, rate_burst = v_row.rate_burst,
      -- a changed rate starts with a full bucket; any other change leaves the bucket as it is
      rate_tokens = case when v_new_rate then coalesce(v_row.rate_burst, v_row.rate_limit, 0) else rate_tokens end,
      rate_refilled_at = case when v_new_rate then clock_timestamp() else rate_refilled_at end,
      keep_done = v_row.keep_done, max_attempts = v_row.max_attempts, crash_limit = v_row.crash_limit,
      backoff_initial = v_row.backoff_initial, backoff_multiplier = v_row.backoff_multiplier,
      backoff_max = v_row.backoff_max, backoff_jitter = v_row.backoff_jitter, on_dead = v_row.on_dead,
      updated_at = clock_timestamp()
    where name = p_queue returning * into v_row;
  exception when check_violation or not_null_violation or data_exception then
    get stacked diagnostics v_unknown = column_name, v_constraint = constraint_name;
    v_key := coalesce(v_key, nullif(v_unknown, ''), substring(v_constraint from '^queues_(.*)_[a-z]+$'), 'settings');
    raise exception using errcode = 'PH001', column = v_key, message = format('%s: %s', v_key, case sqlstate
        when '23514' then format('%s is out of range', left(p_settings ->> v_key, 60)) when '23502' then 'must not be null' else sqlerrm end),
      hint = coalesce((select 'Allowed: ' || regexp_replace(pg_get_constraintdef(c.oid), '^CHECK |::\w+( precision)?|[()]', '', 'g')
        from pg_constraint c where c.conrelid = 'queues'::regclass and c.conname = v_constraint),
        'Numbers as JSON numbers, intervals as texts like "5 minutes".');
  end;
  insert into operator_actions (action, operator, details)
  values ('set_queue', p_operator, jsonb_build_object('queue', p_queue, 'settings', p_settings));
  perform wake_queue(p_queue); -- a wider limit lets messages start
  return v_row;
end
$$;
comment on function set_queue(text, jsonb, text) is 'Change settings of a queue; works within seconds, no restart.';

create function pause_queue(p_queue text, p_operator text default current_user) returns boolean
language plpgsql set search_path from current as $$
-- No claim takes messages of a paused queue; running ones finish. True when it was not paused before.
begin
  perform require_queue(p_queue);
  update queues set paused_at = clock_timestamp(), paused_by = p_operator where name = p_queue and paused_at is null;
  if not found then
    return false;
  end if;
  insert into operator_actions (action, operator, details)
  values ('pause_queue', p_operator, jsonb_build_object('queue', p_queue));
  return true;
end
$$;
comment on function pause_queue(text, text) is 'Stop claims from a queue; true when it was not paused before.';

create function wake_queue(p_queue text) returns void
language plpgsql set search_path from current as $$
-- Tell sleeping workers that the queue has work: one NOTIFY, only when somebody sleeps and nobody watches (SPEC Q10).
begin
  if exists (select from queue_wakeups where queue = p_queue and wake_until > clock_timestamp()
      and (attended_until is null or attended_until <= clock_timestamp())) then
    perform pg_notify('packhorse_wake', p_queue);
  end if;
end
$$;
comment on function wake_queue(text) is 'Wake sleeping workers of a queue; for producers that insert rows themselves.';

create function resume_queue(p_queue text, p_operator text default current_user) returns boolean
language plpgsql set search_path from current as $$
-- Let claims take from the queue again; true when it was paused.
begin
  perform require_queue(p_queue);
  update queues set paused_at = null, paused_by = null where name = p_queue and paused_at is not null;
  if not found then
    return false;
  end if;
  insert into operator_actions (action, operator, details)
  values ('resume_queue', p_operator, jsonb_build_object('queue', p_queue));
  perform wake_queue(p_queue);
  return true;
end
$$;
comment on function resume_queue(text, text) is 'Let claims take from the queue again; true when it was paused.';

create function announce_sleep(p_queues text[], p_for interval default '10 seconds') returns void
language plpgsql set search_path from current as $$
-- A worker that found nothing asks producers for a NOTIFY until now + p_for. It must claim once more
-- afterwards: a producer that committed just before did not see the announcement. While it sleeps it asks again
-- before half of p_for has passed: when nobody listens any more, NOTIFY ends with the last request.
-- A row that somebody has locked is looked at again for 0.1 s; whoever keeps it longer keeps no worker from its work.
declare
  v_look integer := 0;
begin
  loop
    update queue_wakeups set wake_until = clock_timestamp() + p_for
    where queue in (
      select queue from queue_wakeups
      where queue = any (p_queues) and (wake_until is null or wake_until < clock_timestamp() + p_for / 2)
      for no key update skip locked);
    v_look := v_look + 1;
    exit when v_look = 10 or not exists (
      select from queue_wakeups
      where queue = any (p_queues) and (wake_until is null or wake_until < clock_timestamp() + p_for / 2));
    perform pg_sleep(0.01);
  end loop;
end
$$;
comment on function announce_sleep(text[], interval) is 'A sleeping worker asks for NOTIFY; claim once more afterwards.';

create function attend_queues(p_queues text[], p_types text[], p_for interval default '1 second') returns text[]
language plpgsql set search_path from current as $$
-- One awake worker watches these queues until now + p_for: it looks every few milliseconds, and producers need not
-- NOTIFY. Returns the queues that it has got: those that nobody else watches, and on which no live worker of the
-- fleet runs a type that this one (p_types) does not. keep_attending goes on, hand_over_queues ends it.
-- Waits for nobody: a queue whose row is locked is left out.
declare
  v_got text[];
begin
  with free as (
    select w.queue from queue_wakeups w
    where w.queue = any (p_queues) and (w.attended_until is null or w.attended_until <= clock_timestamp())
      and not exists (select from workers o where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.last_seen_at > clock_timestamp() - interval '1 minute')
    for no key update of w skip locked
  ), taken as (
    update queue_wakeups w set attended_until = clock_timestamp() + p_for from free where w.queue = free.queue returning w.queue
  ) select coalesce(array_agg(queue), '{}') into v_got from taken;
  return v_got;
end
$$;
comment on function attend_queues(text[], text[], interval) is 'One awake worker watches queues, so that producers need no NOTIFY; returns those that it has got.';

create function keep_attending(p_queues text[], p_types text[], p_for interval default '1 second') returns text[]
language plpgsql set search_path from current as $$
-- The worker that watches these queues goes on until now + p_for. Returns those that it has to leave: a worker is there
-- now that runs other types, so NOTIFY begins again. Waits for nobody: a queue whose row is locked stays as it is.
declare
  v_left text[];
begin
  with mine as (
    select w.queue, exists (select from workers o where w.queue = any (o.queues) and not o.message_types <@ p_types
        and o.last_seen_at > clock_timestamp() - interval '1 minute') as shared
    from queue_wakeups w where w.queue = any (p_queues) for no key update of w skip locked
  ), kept as (
    update queue_wakeups w set attended_until = case when not mine.shared then clock_timestamp() + p_for end
    from mine where w.queue = mine.queue returning w.queue, mine.shared
  ) select coalesce(array_agg(queue) filter (where shared), '{}') into v_left from kept;
  perform pg_notify('packhorse_wake', q) from unnest(v_left) q;
  return v_left;
end
$$;
comment on function keep_attending(text[], text[], interval) is 'Watch queues for longer; returns those that this worker has to leave.';

create function hand_over_queues(p_queues text[], p_wake boolean default true, p_leave boolean default true) returns void
language plpgsql set search_path from current as $$
-- For a worker that watches these queues. p_leave: it watches no longer, and producers NOTIFY again; it must claim once
-- more afterwards, like after announce_sleep. p_wake: wake those that sleep, once, for there is more than it can start.
-- A row that somebody has locked is left: what is watched there ends by itself, soon.
begin
  if p_leave then
    update queue_wakeups set attended_until = null
    where queue in (
      select queue from queue_wakeups where queue = any (p_queues) and attended_until is not null
      order by queue for no key update skip locked);
  end if;
  if p_wake then
    perform pg_notify('packhorse_wake', queue) from queue_wakeups where queue = any (p_queues) and wake_until > clock_timestamp();
  end if;
end
$$;
comment on function hand_over_queues(text[], boolean, boolean) is 'A watching worker wakes the sleepers once, or watches no longer, or both.';

create function partition_covers(p_table regclass, p_from timestamptz, p_until timestamptz) returns boolean
language sql stable set search_path from current as $$
-- Has a table that is partitioned by a timestamptz an attached partition that takes every row of p_from to p_until? By its bounds; names
-- mean nothing: a detached table has the name of the partition that it was.
  select exists (
    select from pg_inherits i join pg_class c on c.oid = i.inhrelid
    cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''?([^'']+?)''?\) TO \(''?([^'']+?)''?\)') as at) b
    where i.inhparent = p_table and not i.inhdetachpending
      and case b.at[1] when 'MINVALUE' then '-infinity' else b.at[1]::timestamptz end <= p_from
      and case b.at[2] when 'MAXVALUE' then 'infinity' else b.at[2]::timestamptz end >= p_until);
$$;
comment on function partition_covers(regclass, timestamptz, timestamptz) is 'Do inserts of a span of time find one partition?';

create function create_partition_table(p_table regclass, p_schema text, p_name text) returns regclass
language plpgsql set search_path from current as $$
-- Make a table that can be attached as a partition of p_table: its columns, defaults, checks, storage, compression, statistics, tablespace
-- and access method. A partitioned table has no storage parameters of its own: they are those of the partition that was made last.
-- `create table ... partition of` would copy as much, and lock the parent against all readers and writers. Locks: ACCESS SHARE on the parent.
declare
  v_using text := (select a.amname from pg_class c join pg_am a on a.oid = c.relam where c.oid = p_table);
  v_space text := (select s.spcname from pg_class c join pg_tablespace s on s.oid = c.reltablespace where c.oid = p_table);
  v_with text := (
    select string_agg(format('%s = %L', split_part(o.text, '=', 1), substr(o.text, strpos(o.text, '=') + 1)), ', ')
    from (
      select c.oid, c.reloptions, c.reltoastrelid from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = p_table and c.relkind = 'r' order by c.oid desc limit 1) l
    cross join lateral (
      select unnest(l.reloptions) as text
      union all
      select 'toast.' || unnest(t.reloptions) from pg_class t where t.oid = l.reltoastrelid) o);
  v_new text := format('%I.%I', p_schema, p_name);
  v_column record;
begin
  execute format('create table %s (like %s including defaults including constraints including generated including storage '
    'including compression including statistics)%s%s%s', v_new, p_table, ' using ' || quote_ident(v_using), ' with (' || v_with || ')',
    ' tablespace ' || quote_ident(v_space));
  for v_column in
    select a.attname, a.attstattarget, array_to_string(a.attoptions, ', ') as options from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and (a.attstattarget >= 0 or a.attoptions is not null)
  loop
    if v_column.attstattarget >= 0 then
      execute format('alter table %s alter column %I set statistics %s', v_new, v_column.attname, v_column.attstattarget);
    end if;
    if v_column.options is not null then
      execute format('alter table %s alter column %I set (%s)', v_new, v_column.attname, v_column.options);
    end if;
  end loop;
  return v_new::regclass;
end
$$;
comment on function create_partition_table(regclass, text, text) is 'Make a table that can be attached as a partition: like its parent.';

create function finish_partition(p_table regclass, p_partition regclass) returns void
language plpgsql set search_path from current as $$
-- Give a partition, just attached in the same transaction, what attaching does not: replica identity, row-level security (forced or not)
-- with its policies, owner and privileges of the table; what default privileges of the host added is taken away. Indexes, foreign keys and row
-- triggers came with the attachment, publications hold for the table and so for its partitions.
-- Partitions of our own tables stay closed instead: row-level security, no policy, no privilege; everybody goes through the table.
-- Locks: the new partition alone, which nobody else can see yet.
declare
  v_parent pg_class := (select c from pg_class c where c.oid = p_table);
  v_owner constant text := v_parent.relowner::regrole::text;
  v_closed constant boolean := p_table in (to_regclass('message_archive'), coalesce(to_regclass('messages'), 0));
  v_index text;
  v_row record;
begin
  if v_parent.relreplident = 'i' then
    select c.relname into v_index from pg_index x join pg_inherits i on i.inhparent = x.indexrelid
    join pg_index y on y.indexrelid = i.inhrelid and y.indrelid = p_partition join pg_class c on c.oid = y.indexrelid
    where x.indrelid = p_table and x.indisreplident;
  end if;
  if v_parent.relreplident in ('f', 'n') or v_index is not null then
    execute format('alter table %s replica identity %s', p_partition,
      case v_parent.relreplident when 'f' then 'full' when 'n' then 'nothing' else format('using index %I', v_index) end);
  end if;
  if v_parent.relrowsecurity or v_closed then
    execute format('alter table %s enable row level security', p_partition);
  end if;
  if v_parent.relforcerowsecurity then
    execute format('alter table %s force row level security', p_partition);
  end if;
  for v_row in
    select p.polname, case when p.polpermissive then 'permissive' else 'restrictive' end as kind,
      case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end as verb,
      (select string_agg(case r.role when 0 then 'public' else r.role::regrole::text end, ', ') from unnest(p.polroles) as r (role)) as roles,
      pg_get_expr(p.polqual, p.polrelid) as qual, pg_get_expr(p.polwithcheck, p.polrelid) as checked
    from pg_policy p where p.polrelid = p_table and not v_closed
  loop
    execute format('create policy %I on %s as %s for %s to %s%s%s', v_row.polname, p_partition, v_row.kind, v_row.verb, v_row.roles,
      ' using (' || v_row.qual || ')', ' with check (' || v_row.checked || ')');
  end loop;
  if v_parent.relowner <> (select c.relowner from pg_class c where c.oid = p_partition) then
    execute format('alter table %s owner to %s', p_partition, v_owner);
    for v_row in select s.stxnamespace::regnamespace as schema, s.stxname from pg_statistic_ext s
      where s.stxrelid = p_partition and s.stxowner <> v_parent.relowner loop
      execute format('alter statistics %s.%I owner to %s', v_row.schema, v_row.stxname, v_owner);
    end loop;
  end if;
  for v_row in select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as name
    from pg_class c cross join aclexplode(c.relacl) a where c.oid = p_partition and a.grantee <> c.relowner loop
    execute format('revoke all on %s from %s', p_partition, v_row.name);
  end loop;
  for v_row in
    select a.privilege_type as privilege, a.grantee, a.is_grantable from aclexplode(v_parent.relacl) a
    union all
    select format('%s (%I)', a.privilege_type, t.attname), a.grantee, a.is_grantable
    from pg_attribute t cross join aclexplode(t.attacl) a where t.attrelid = p_table and t.attnum > 0 and not t.attisdropped
  loop
    if not v_closed and v_row.grantee <> v_parent.relowner then
      execute format('grant %s on %s to %s%s', v_row.privilege, p_partition,
        case v_row.grantee when 0 then 'public' else v_row.grantee::regrole::text end, case when v_row.is_grantable then ' with grant option' else '' end);
    end if;
  end loop;
end
$$;
comment on function finish_partition(regclass, regclass) is 'Give an attached partition the owner, replica identity, security and privileges of its table.';

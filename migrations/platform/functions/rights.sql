-- Who may do what on the platform (SPEC N2, O9): see functions/rights.sql of the queue, which compares.
--
-- The worker works on everything; a producer reports what happened (events, webhooks, audit) and reads
-- nothing back; a reader sees everything but secrets. The host's roles, as Supabase has them: service_role
-- does what the worker does and keeps what the host gave it besides; authenticated and anon have what is
-- listed here, and lose what default privileges gave them.

create or replace function platform.platform_rights() returns setof text
language sql stable as $$
-- Statements that make the rights on the objects of the platform what is written here; none when they are.
-- Roles that the server has not are passed by, and so are tables of the host that were left alone.
  with here as (
    select c.relnamespace as schema from pg_class c where c.oid = 'platform.companies'::regclass::oid
  ), names as (
    select array_agg(n.name) as names
    from packhorse.packhorse_migrations m cross join lateral unnest(m.objects) as n (name)
    where m.name like 'platform/%'
      and not exists (select from platform.platform_adopted_tables a
        where a.name = n.name and a.is_left_alone)
  )
  select format('grant usage on schema %s to %s', h.schema::regnamespace, r.rolname)
  from here h join pg_roles r
    on r.rolname in ('packhorse_worker', 'packhorse_producer', 'packhorse_reader', 'authenticated', 'anon',
      'service_role')
  where not has_schema_privilege(r.oid, h.schema, 'usage')
  union all -- what only the owner may call, the default privileges of the host gave its servers
  select format('revoke execute on function %s from service_role', p.oid::regprocedure)
  from here h join pg_proc p on p.pronamespace = h.schema and p.proname = 'refresh_platform_access'
  cross join lateral aclexplode(p.proacl) a join pg_roles r
    on r.oid = a.grantee and r.rolname = 'service_role'
  union all
  select d.* from here h cross join names n
  cross join lateral packhorse.differing_rights(h.schema, n.names,
    platform.worker_rights(n.names) || platform.guest_rights(), array['service_role']) d;
$$;
comment on function platform.platform_rights() is
  'Statements that make rights on the platform what SECURITY.md lists; none when they are.';

create or replace function platform.worker_rights(p_names text[]) returns jsonb
language sql stable as $$
-- What our own roles may do, for differing_rights(). p_names: all objects of the platform.
  select jsonb_build_array(
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT', 'UPDATE', 'DELETE'), 'names',
      (select jsonb_agg(o.name) from unnest(p_names) as o (name)
        where o.name not in ('audit_events', 'platform_adopted_tables'))),
    -- FOR UPDATE SKIP LOCKED needs the right to update some column; no new row passes the policies
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT', 'DELETE', 'UPDATE (id)'),
      'names', jsonb_build_array('audit_events')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table', 'privileges', jsonb_build_array('SELECT'),
      'names', jsonb_build_array('platform_adopted_tables')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'sequence', 'privileges', jsonb_build_array('USAGE'),
      'names', jsonb_build_array('messages_id_seq')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'), 'names',
      (select jsonb_agg(o.name) from unnest(p_names) as o (name)
        where o.name not in ('refresh_platform_access', 'claim_guest_bookings',
        'take_back_audit_events'))),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'table', 'privileges', jsonb_build_array('SELECT'),
      'names',
      (select jsonb_agg(o.name) from unnest(p_names) as o (name)
       where o.name not in ('whatsapp_auth', 'whatsapp_keys', 'guest_sessions', 'platform_backfill_rows'))),
    -- all but the token
    jsonb_build_object('role', 'packhorse_reader', 'on', 'table',
      'names', jsonb_build_array('guest_sessions'),
      'privileges', jsonb_build_array('SELECT (id)', 'SELECT (email)', 'SELECT (full_name)', 'SELECT (phone)',
        'SELECT (metadata)', 'SELECT (expires_at)', 'SELECT (created_at)', 'SELECT (expired_at)')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('normalize_phone', 'get_agent_conversation', 'get_event_counts_by_type',
        'get_conversion_funnel', 'get_user_referral_credits', 'get_messages_stats', 'get_recent_messages',
        'get_database_stats', 'get_whatsapp_auth_stats', 'platform_rights', 'worker_rights', 'guest_rights')
      || coalesce((select jsonb_agg(o.name) from unnest(p_names) as o (name)
        where o.name like 'check\_%' or o.name like 'refuse\_%'), '[]')),
    jsonb_build_object('role', 'packhorse_producer', 'on', 'table', 'privileges', jsonb_build_array('INSERT'),
      'names', jsonb_build_array('platform_events', 'webhook_events', 'audit_events')),
    jsonb_build_object('role', 'packhorse_producer', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'), 'names', jsonb_build_array('normalize_phone')));
$$;
comment on function platform.worker_rights(text[]) is
  'Rights of the worker, reader and producer on the platform, for differing_rights().';

create or replace function platform.guest_rights() returns jsonb
language sql stable as $$
-- What the host's users (authenticated) and guests (anon) may do, for differing_rights(). Which rows of it,
-- the policies say.
  select jsonb_build_array(
    jsonb_build_object('role', 'authenticated', 'on', 'table', 'privileges', jsonb_build_array('SELECT'),
      'names', jsonb_build_array('whatsapp_users', 'agent_chat_sessions', 'webhook_events', 'audit_events',
        'referrals', 'clients')),
    jsonb_build_object('role', 'authenticated', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT'),
      'names', jsonb_build_array('platform_events', 'guest_sessions', 'bookings')),
    jsonb_build_object('role', 'authenticated', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT', 'UPDATE', 'DELETE'),
      'names', jsonb_build_array('amara_conversations', 'amara_messages')),
    jsonb_build_object('role', 'authenticated', 'on', 'routine', 'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('normalize_phone', 'platform_user_id', 'platform_is_admin',
        'current_guest_token', 'current_guest_session_id', 'get_agent_conversation', 'get_guest_session',
        'create_guest_session', 'claim_guest_bookings', 'get_event_counts_by_type',
        'get_conversion_funnel', 'get_user_referral_credits', 'export_person_data',
        'check_number', 'check_period', 'refuse_value')),
    jsonb_build_object('role', 'anon', 'on', 'table', 'privileges', jsonb_build_array('INSERT'),
      'names', jsonb_build_array('platform_events')),
    jsonb_build_object('role', 'anon', 'on', 'table', 'privileges', jsonb_build_array('SELECT', 'INSERT'),
      'names', jsonb_build_array('guest_sessions', 'bookings')),
    jsonb_build_object('role', 'anon', 'on', 'routine', 'privileges', jsonb_build_array('EXECUTE'), 'names',
      jsonb_build_array('normalize_phone', 'platform_user_id', 'current_guest_token',
        'current_guest_session_id', 'get_guest_session', 'create_guest_session')));
$$;
comment on function platform.guest_rights() is
  'Rights of authenticated and anon on the platform, for differing_rights().';

create or replace function platform.host_policies()
returns table (table_name text, policy_name text, command text, role_name text, using_rows text,
  check_rows text)
language sql stable as $$
-- The policies of the host's roles. Each calls a function in a subquery, which is evaluated once per
-- statement.
  with own (table_name, command, role_name, policy, using_rows, check_rows) as (values
    ('whatsapp_users', 'select', 'authenticated', 'own', 'id = (select platform.platform_user_id())', null),
    ('agent_chat_sessions', 'select', 'authenticated', 'own',
      'user_id = (select platform.platform_user_id())', null),
    ('clients', 'select', 'authenticated', 'own', 'user_id = (select platform.platform_user_id())', null),
    ('referrals', 'select', 'authenticated', 'own',
      'referrer_id = (select platform.platform_user_id()) or referee_id = (select platform.platform_user_id())', null),
    ('amara_conversations', 'all', 'authenticated', 'own', 'user_id = (select platform.platform_user_id())',
      'user_id = (select platform.platform_user_id())'),
    ('amara_messages', 'all', 'authenticated', 'own',
      'exists (select from platform.amara_conversations c where c.id = conversation_id and c.user_id = (select platform.platform_user_id()))',
      'exists (select from platform.amara_conversations c where c.id = conversation_id and c.user_id = (select platform.platform_user_id()))'),
    ('platform_events', 'insert', 'authenticated', 'own', null,
      'user_id is null or user_id = (select platform.platform_user_id())'),
    ('platform_events', 'insert', 'anon', 'guest', null,
      'user_id is null and coalesce(pg_catalog.octet_length(properties::text), 0) <= 65536'),
    ('platform_events', 'select', 'authenticated', 'admin', '(select platform.platform_is_admin())', null),
    ('webhook_events', 'select', 'authenticated', 'admin', '(select platform.platform_is_admin())', null),
    ('audit_events', 'select', 'authenticated', 'admin', '(select platform.platform_is_admin())', null),
    ('bookings', 'select', 'authenticated', 'own', 'customer_id = (select platform.platform_user_id())',
      null),
    ('bookings', 'insert', 'authenticated', 'own', null,
      'customer_id = (select platform.platform_user_id()) and client_id is null and guest_session_id is null'),
    ('bookings', 'select', 'anon', 'guest', 'guest_session_id = (select platform.current_guest_session_id())',
      null),
    ('bookings', 'insert', 'anon', 'guest', null,
      'guest_session_id = (select platform.current_guest_session_id()) and status = ''pending'' and client_id is null and customer_id is null'))
  select o.table_name, format('%s_%s_%s', o.table_name, o.policy, o.command), o.command, o.role_name,
    o.using_rows, o.check_rows from own o
  union all
  select 'guest_sessions', 'guest_sessions_' || r.name || '_insert', 'insert', r.name, null,
    'pg_catalog.length(session_token) >= 32'
    ' and expires_at <= pg_catalog.clock_timestamp() + interval ''24 hours 5 minutes'' and expired_at is null'
    ' and metadata operator(pg_catalog.->) ''converted_to_user_id'' is null and metadata operator(pg_catalog.->) ''converted_at'' is null'
  from (values ('anon'), ('authenticated')) as r (name)
  union all
  select 'guest_sessions', 'guest_sessions_' || r.name || '_select', 'select', r.name,
    'session_token = (select platform.current_guest_token()) and expires_at > pg_catalog.clock_timestamp()',
    null
  from (values ('anon'), ('authenticated')) as r (name)
  union all -- what the worker may do to rows, service_role may
  select p.tablename::text, replace(p.policyname, '_worker', '_service'), lower(p.cmd), 'service_role',
    p.qual, p.with_check
  from pg_policies p
  where p.schemaname = (parse_ident('platform.x'))[1] and p.policyname ~ '_worker(_[a-z]+)?$'
    and p.roles = array['packhorse_worker'::name];
$$;
comment on function platform.host_policies() is
  'The policies that the roles authenticated, anon and service_role of the host get.';

create or replace function platform.missing_host_keys()
returns table (table_name text, column_name text, target text, target_column text, action text,
  is_missing boolean)
language sql stable as $$
-- Foreign keys to the users of the host that its tables make possible and that are missing, or not validated
-- (is_missing false). Tables of the host that were left alone, and those with such a key of their own, have
-- none.
  with homes as (
    select h.relnamespace as schema from pg_class h where h.oid = 'platform.companies'::regclass::oid
  )
  select k.table_name, k.column_name, format('%I.%I', n.nspname, t.relname), k.target_column, k.action,
    c.oid is null
  from (values
    ('audit_events', 'user_id', 'profiles', 'user_id', 'no action'),
    ('platform_events', 'user_id', 'auth.users', 'id', 'set null'),
    ('amara_conversations', 'user_id', 'auth.users', 'id', 'cascade'),
    ('referrals', 'referrer_id', 'auth.users', 'id', 'cascade'),
    ('referrals', 'referee_id', 'auth.users', 'id', 'cascade')
  ) as k (table_name, column_name, target_name, target_column, action)
  cross join homes h
  join pg_namespace n on true
  join pg_class t on t.relnamespace = n.oid
    and case k.target_name when 'profiles' then t.oid = platform.host_table('profiles')::oid
      else n.nspname = 'auth' and t.relname = 'users' end
  join pg_attribute a on a.attrelid = t.oid and a.attname = k.target_column
    and a.atttypid = 'uuid'::regtype::oid and not a.attisdropped
  join pg_class o on o.relnamespace = h.schema and o.relname = k.table_name::name
  left join pg_constraint c on c.conrelid = o.oid
    and c.conname = format('%s_%s_host_fkey', k.table_name, k.column_name)
  where coalesce(not c.convalidated, true)
    and not exists (select from platform.platform_adopted_tables d
      where d.name = k.table_name and d.is_left_alone)
    -- an adopted table may have had such a key
    and not exists (select from pg_constraint e
      where e.contype = 'f' and e.confrelid = t.oid and e.conrelid = o.oid
        and e.conname <> format('%s_%s_host_fkey', k.table_name, k.column_name)
        and e.conkey = array[(select w.attnum from pg_attribute w
          where w.attrelid = o.oid and w.attname = k.column_name)]);
$$;
comment on function platform.missing_host_keys() is
  'Foreign keys to the users of the host that could be made and are not.';

create or replace function platform.add_host_keys() returns integer
language plpgsql as $$
-- Foreign keys to the users of the host, where it has these tables: added without a look at the rows, then
-- validated; how many are new. What stands in the way of one is a warning with its reason (rows that point at
-- nobody, a missing right), and the others are made.
declare
  v_key record;
  v_made integer := 0;
begin
  for v_key in select * from platform.missing_host_keys() loop
    begin
      if v_key.is_missing then
        execute format(
          'alter table platform.%I add constraint %I foreign key (%I) references %s (%I) on delete %s not valid', v_key.table_name,
          v_key.table_name || '_' || v_key.column_name || '_host_fkey', v_key.column_name, v_key.target,
          v_key.target_column, v_key.action);
        v_made := v_made + 1;
      end if;
    exception when insufficient_privilege or invalid_foreign_key or duplicate_object then
      raise warning '%.% has no foreign key to %: %', v_key.table_name, v_key.column_name, v_key.target,
        sqlerrm;
      continue;
    end;
    begin
      execute format('alter table platform.%I validate constraint %I', v_key.table_name,
        v_key.table_name || '_' || v_key.column_name || '_host_fkey');
    exception when foreign_key_violation or insufficient_privilege then
      raise warning '%.% has rows that point at nobody in %: %', v_key.table_name, v_key.column_name,
        v_key.target, sqlerrm
        using hint = 'New rows are checked. Correct the old ones, and call refresh_platform_access() again.';
    end;
  end loop;
  return v_made;
end
$$;
comment on function platform.add_host_keys() is
  'Add foreign keys to the users of the host; returns how many are new.';

create or replace function platform.grant_service_role() returns integer
language plpgsql as $$
-- service_role, the host's own servers, may do what the worker may: here by grants, on the queue by
-- membership. How many are new.
declare
  v_statement text;
  v_made integer := 0;
begin
  if not exists (select from pg_roles r where r.rolname = 'service_role') then
    return 0;
  end if;
  for v_statement in
    select format('grant %s on %s %s to service_role',
      string_agg(a.privilege_type || coalesce(' (' || quote_ident(o.column_name) || ')', ''), ', '),
      case o.kind when 'view' then 'table' else o.kind end, o.name)
    from (select c.relnamespace as schema,
      (select array_agg(n.name) from packhorse.packhorse_migrations m
        cross join lateral unnest(m.objects) as n (name)
        where m.name like 'platform/%') as names
      from pg_class c where c.oid = 'platform.companies'::regclass::oid) h
    cross join lateral packhorse.own_objects(h.schema, h.names) o cross join lateral aclexplode(o.acl) a
    where a.grantee = 'packhorse_worker'::regrole::oid and not exists (
      select from aclexplode(o.acl) b
      where b.grantee = 'service_role'::regrole::oid and b.privilege_type = a.privilege_type)
    group by o.kind, o.name
  loop
    execute v_statement;
    v_made := v_made + 1;
  end loop;
  if not pg_has_role('service_role', 'packhorse_worker', 'usage') then
    begin
      execute 'grant packhorse_worker to service_role'
        || case when current_setting('server_version_num')::integer >= 160000 then ' with inherit true'
          else '' end;
      v_made := v_made + 1;
    exception when insufficient_privilege then
      raise warning 'service_role may not work on the queue: %',
        sqlerrm using hint = 'An administrator can say: grant packhorse_worker to service_role';
    end;
  end if;
  return v_made;
end
$$;
comment on function platform.grant_service_role() is
  'Let service_role do what the worker may; returns how many grants are new.';

create or replace function platform.refresh_platform_access() returns integer
language plpgsql as $$
-- Add what the host's tables and roles make possible and is missing: foreign keys to its users, policies and
-- grants of its roles. Returns how many objects it made, 0 when all is there. Run at the end of the
-- migrations, and by hand after the host has got roles or tables. For the owner. Locks: SHARE ROW EXCLUSIVE
-- on a table and the host's users for a new key, ACCESS EXCLUSIVE on a table for an instant for a policy.
declare
  v_row record;
  v_made integer := platform.add_host_keys();
begin
  for v_row in
    select p.* from platform.host_policies() p join pg_roles r on r.rolname = p.role_name::name
    where not exists (select from pg_policies e
        where e.schemaname = (parse_ident('platform.x'))[1] and e.tablename = p.table_name::name
          and e.policyname = p.policy_name::name)
      and not exists (select from platform.platform_adopted_tables a
        where a.name = p.table_name and a.is_left_alone)
  loop
    execute format('create policy %I on platform.%I for %s to %I', v_row.policy_name, v_row.table_name,
      v_row.command, v_row.role_name)
      || coalesce(' using (' || v_row.using_rows || ')', '')
        || coalesce(' with check (' || v_row.check_rows || ')', '');
    v_made := v_made + 1;
  end loop;
  for v_row in select r.statement from platform.platform_rights() as r (statement) loop
    execute v_row.statement;
    v_made := v_made + 1;
  end loop;
  return v_made + platform.grant_service_role();
end
$$;
comment on function platform.refresh_platform_access() is
  'Add the keys, policies and grants that the host''s tables and roles make possible; returns how many.';

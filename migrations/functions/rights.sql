-- Who may do what (SPEC N2, O9); SECURITY.md says it for people. `packhorse migrate up` makes it so after
-- every change, whatever default privileges the host has set, and `packhorse doctor` shows what differs.
--
-- The producer has functions only. They run with the rights of the owner, check what they are given, and
-- answer with what they made: so a producer reads nothing, chooses no id, and cannot touch the windows and
-- locks of others.

create or replace function packhorse.own_objects(p_schema oid, p_names text[])
returns table (kind text, object oid, name text, owner oid, column_name text, acl aclitem[])
language sql stable as $$
-- What these names stand for in a schema: tables with their identity sequences, partitions and row types,
-- views, sequences, types, routines. name: quoted, for a statement. acl: with PostgreSQL's own defaults. A
-- column that has rights of its own has a row of its own.
  with relations as (
    select c.oid, c.relkind, c.relowner, c.relacl, c.reltype from pg_class c
    where c.relnamespace = p_schema and c.relkind in ('r', 'p', 'v', 'm', 'S')
      and (c.relname::text = any (p_names)
      or exists (select from pg_depend d join pg_class t on t.oid = d.refobjid
        where d.classid = 'pg_class'::regclass::oid and d.objid = c.oid
        and d.refclassid = 'pg_class'::regclass::oid and d.deptype in ('a', 'i') and t.relnamespace = p_schema
        and t.relname::text = any (p_names))
      or exists (select from pg_inherits i join pg_class t on t.oid = i.inhparent
        where i.inhrelid = c.oid and t.relnamespace = p_schema and t.relname::text = any (p_names)))
  )
  select case r.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, r.oid,
    r.oid::regclass::text, r.relowner, null,
    coalesce(r.relacl, acldefault((case r.relkind when 'S' then 's' else 'r' end)::"char", r.relowner))
  from relations r
  union all
  select case r.relkind when 'v' then 'view' else 'table' end, r.oid, r.oid::regclass::text, r.relowner,
    a.attname::text, a.attacl
  from relations r join pg_attribute a
    on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped and a.attacl is not null
  union all
  select 'routine', p.oid, p.oid::regprocedure::text, p.proowner, null,
    coalesce(p.proacl, acldefault('f'::"char", p.proowner))
  from pg_proc p where p.pronamespace = p_schema and p.proname::text = any (p_names)
  union all -- PUBLIC may use every type, as it may use those of PostgreSQL
  select 'type', t.oid, t.oid::regtype::text, t.typowner, null, t.typacl
  from pg_type t where t.typnamespace = p_schema and t.typacl is not null
    and (t.typname::text = any (p_names) or t.oid in (select r.reltype from relations r));
$$;
comment on function packhorse.own_objects(oid, text[]) is
  'What names stand for in a schema, with owner and rights.';

create or replace function packhorse.differing_rights(p_schema oid, p_names text[], p_wanted jsonb,
  p_left_alone text[] default '{}')
returns setof text
language sql stable as $$
-- Statements that make the rights on these objects what p_wanted says, and nothing else; none when they are.
-- p_wanted: an array of {role, on: table, view, sequence or routine, privileges (as SELECT, or UPDATE (id)
-- for a column), names}; without names all of that kind. The rights of roles in p_left_alone stay. A
-- partition has none: everybody goes through its table.
  with own as (
    select o.*, o.kind = 'table'
      and exists (select from pg_inherits i where i.inhrelid = o.object) as is_partition
    from packhorse.own_objects(p_schema, p_names) o
  ), wanted as (
    select distinct o.kind, o.object, o.name, r.oid as grantee, p.privilege
    from jsonb_to_recordset(p_wanted) as w (role text, "on" text, privileges jsonb, names jsonb)
    join pg_roles r on r.rolname = w.role::name
    cross join lateral jsonb_array_elements_text(w.privileges) as p (privilege)
    join own o on o.kind = w."on" and o.column_name is null and not o.is_partition
      and (w.names is null or exists (
        select from jsonb_array_elements_text(w.names) as n (name)
        where n.name = coalesce(
          (select c.relname::text from pg_class c where c.oid = o.object and o.kind <> 'routine'),
          (select f.proname::text from pg_proc f where f.oid = o.object and o.kind = 'routine'))))
  ), given as (
    select o.kind, o.object, o.name, a.grantee,
      a.privilege_type || coalesce(' (' || quote_ident(o.column_name) || ')', '') as privilege
    from own o cross join lateral aclexplode(o.acl) a
    where a.grantee <> o.owner
      and not exists (select from pg_roles r where r.oid = a.grantee and r.rolname::text = any (p_left_alone))
  )
  select format('revoke %s on %s %s from %s', string_agg(distinct g.privilege, ', '),
    case g.kind when 'view' then 'table' else g.kind end, g.name,
    case g.grantee when 0::oid then 'public' else g.grantee::regrole::text end)
  from given g
  where not exists (select from wanted w
    where w.kind = g.kind and w.object = g.object and w.grantee = g.grantee and w.privilege = g.privilege)
  group by g.kind, g.name, g.grantee
  union all
  select format('grant %s on %s %s to %s', string_agg(w.privilege, ', '),
    case w.kind when 'view' then 'table' else w.kind end, w.name, w.grantee::regrole)
  from wanted w
  where not exists (select from given g
    where g.kind = w.kind and g.object = w.object and g.grantee = w.grantee and g.privilege = w.privilege)
  group by w.kind, w.name, w.grantee;
$$;
comment on function packhorse.differing_rights(oid, text[], jsonb, text[]) is
  'Statements that make rights what they should be; none when they are.';

create or replace function packhorse.wanted_queue_rights(p_names text[]) returns jsonb
language sql stable as $$
-- What our roles may do on the objects of the queue, for differing_rights(). p_names: all of them.
  select jsonb_build_array(
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT', 'UPDATE', 'DELETE'),
      'names', jsonb_build_array('queues', 'queue_wakeups', 'message_queue', 'message_archive',
        'dead_letters', 'workers', 'daemon_requests', 'message_types', 'message_dedup', 'processed_messages',
        'conversation_locks', 'message_results', 'rate_limiters', 'schedules', 'schedule_runs',
        'maintenance_runs', 'maintenance_tasks', 'detached_partitions', 'backfills', 'backfill_copies',
        'fleet_statistics', 'scopes', 'claim_marks', 'queue_turns', 'key_rates', 'service_endpoints',
        'forwarded_messages')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'UPDATE'), 'names', jsonb_build_array('installation')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT', 'UPDATE'),
      'names', jsonb_build_array('access_tokens')),
    -- the audit trail can be written and read, not rewritten
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table',
      'privileges', jsonb_build_array('SELECT', 'INSERT'), 'names', jsonb_build_array('operator_actions')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table', 'privileges', jsonb_build_array('SELECT'),
      'names', jsonb_build_array('packhorse_migrations')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'sequence', 'privileges', jsonb_build_array('USAGE'),
      'names', jsonb_build_array('message_queue_id_seq', 'message_lease_token_seq')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'table', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('explain_message', 'explain_ended', 'explain_running',
        'explain_conversation', 'explain_limits', 'explain_line', 'explain_steps', 'explain_last_error',
        'message_steps', 'describe_steps', 'bounded_text', 'explain_scopes', 'explain_time',
        'scope_covers', 'scope_rests',
        'names_type', 'fits_pattern', 'stands_for', 'explain_turn', 'key_tokens', 'bucket_level',
        'takes_turns', 'turn_key',
        'is_due', 'is_worth_doing', 'runs_apart', 'is_copy', 'queue_is_open', 'queue_goes_to', 'queue_room',
        'key_room',
        'conversation_holders', 'rate_tokens_at', 'worker_problems', 'fleet_statistics',
        'retry_span', 'message_backoff', 'bounded_delay', 'require_queue',
        'partition_ends', 'endpoint_states', 'snapshots_are_visible', 'oldest_snapshot_seconds',
        'count_queue_messages', 'count_undeclared_messages', 'count_undeclared_states',
        'estimated_messages', 'count_dead_letters', 'estimated_dead_letters', 'count_bound',
        'has_platform_table', 'maintenance_gates', 'message_uuid',
        'message_id_of', 'archive_reading', 'recent_ends', 'ends_by_hour', 'health_level', 'health_worst',
        'health_count', 'health_duration', 'refuse_argument',
        'own_objects', 'differing_rights', 'wanted_queue_rights', 'queue_rights')
        || coalesce((select jsonb_agg(o.name) from unnest(p_names) as o (name) where o.name like 'health\_%'),
          '[]')),
    jsonb_build_object('role', 'packhorse_producer', 'on', 'routine',
      'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('enqueue_message', 'enqueue_messages', 'enqueue_payloads', 'enqueue_rows',
        'enqueue_alike', 'enqueue_by_token', 'announce_messages', 'types_instead', 'wake_channel',
        'cancel_own_message', 'is_new_message', 'mark_message_processed', 'acquire_conversation_lock',
        'release_conversation_lock', 'get_message_result', 'message_uuid', 'message_id_of')));
$$;
comment on function packhorse.wanted_queue_rights(text[]) is
  'What our roles may do on the objects of the queue.';

create or replace function packhorse.queue_rights() returns setof text
language sql stable as $$
-- Statements that make the rights on schema and objects of the queue what is written here; none when they
-- are.
  with here as (
    select c.relnamespace as schema from pg_class c where c.oid = 'packhorse.message_queue'::regclass::oid
  ), names as (
    select array_agg(n.name)
      || array['packhorse_migrations', 'packhorse_import', 'packhorse_import_plan', 'lock_token'] as names
    from packhorse.packhorse_migrations m cross join lateral unnest(m.objects) as n (name)
    where m.name not like 'platform/%'
  ), schema_rights as (
    select n.oid::regnamespace::text as name, n.nspname <> 'public' as is_ours, n.nspowner as owner,
      a.grantee, a.privilege_type as privilege
    from pg_namespace n
    cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n'::"char", n.nspowner))) a
    where n.oid = (select h.schema from here h)
  )
  select format('revoke %s on schema %s from %s', s.privilege, s.name,
    case s.grantee when 0::oid then 'public' else s.grantee::regrole::text end)
  from schema_rights s left join pg_roles r on r.oid = s.grantee
  where s.is_ours and s.grantee <> s.owner
    and (s.privilege <> 'USAGE' or coalesce(r.rolname::text, '') not like 'packhorse\_%')
  union
  select format('grant usage on schema %s to %s', h.schema::regnamespace, r.role)
  from here h
  cross join (values ('packhorse_worker'), ('packhorse_producer'), ('packhorse_reader')) as r (role)
  where not has_schema_privilege(r.role::name, h.schema, 'usage')
  union all
  select d.* from here h cross join names n
  cross join lateral packhorse.differing_rights(h.schema, n.names, packhorse.wanted_queue_rights(n.names)) d;
$$;
comment on function packhorse.queue_rights() is
  'Statements that make rights on the queue what SECURITY.md lists; none when they are.';

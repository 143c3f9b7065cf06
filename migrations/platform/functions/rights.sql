-- Who may do what on the platform (SPEC N2, O9): see functions/rights.sql of the queue, which compares.
--
-- The worker works on everything; a producer reports what happened (events, webhooks, audit) and reads nothing back; a reader sees everything
-- but secrets. service_role, the host's own servers, keeps what the host gave it.

create or replace function platform.platform_rights() returns setof text
language sql stable as $$
-- Statements that make the rights on the objects of the platform what is written here; none when they are.
  with here as (
    select c.relnamespace as schema from pg_class c where c.oid = 'platform.companies'::regclass::oid
  ), names as (
    select array_agg(n.name) as names
    from packhorse.packhorse_migrations m cross join lateral unnest(m.objects) as n (name) where m.name like 'platform/%'
  )
  select format('grant usage on schema %s to %s', h.schema::regnamespace, r.role)
  from here h cross join (values ('packhorse_worker'), ('packhorse_producer'), ('packhorse_reader')) as r (role)
  where not has_schema_privilege(r.role::name, h.schema, 'usage')
  union all
  select d.* from here h cross join names n cross join lateral packhorse.differing_rights(h.schema, n.names, jsonb_build_array(
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table', 'privileges', jsonb_build_array('SELECT', 'INSERT', 'UPDATE', 'DELETE'),
      'names', jsonb_build_array('companies', 'clients', 'services', 'staff', 'staff_schedules', 'sync_status', 'appointments_cache',
        'guest_sessions', 'bookings', 'agent_chat_sessions', 'ai_conversation_memory', 'workflow_states', 'conversations',
        'amara_conversations', 'amara_messages', 'webhook_events', 'messages', 'reminders', 'dialog_contexts', 'whatsapp_auth',
        'whatsapp_keys')),
    -- FOR UPDATE SKIP LOCKED needs the right to update some column; no new row passes the policies
    jsonb_build_object('role', 'packhorse_worker', 'on', 'table', 'privileges', jsonb_build_array('SELECT', 'INSERT', 'DELETE', 'UPDATE (id)'),
      'names', jsonb_build_array('platform_events', 'audit_events')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'sequence', 'privileges', jsonb_build_array('USAGE'),
      'names', jsonb_build_array('messages_id_seq')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_worker', 'on', 'routine', 'privileges', jsonb_build_array('EXECUTE')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'table', 'privileges', jsonb_build_array('SELECT'), 'names',
      (select jsonb_agg(o.name) from unnest(n.names) as o (name) where o.name not in ('whatsapp_auth', 'whatsapp_keys'))),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'view', 'privileges', jsonb_build_array('SELECT')),
    jsonb_build_object('role', 'packhorse_reader', 'on', 'routine', 'privileges', jsonb_build_array('EXECUTE'),
      'names', jsonb_build_array('check_text', 'check_span', 'check_period', 'refuse_agent_session', 'get_agent_conversation',
        'get_event_counts_by_type', 'get_conversion_funnel', 'get_user_referral_credits', 'get_messages_stats', 'get_recent_messages',
        'get_database_stats', 'platform_rights')),
    jsonb_build_object('role', 'packhorse_producer', 'on', 'table', 'privileges', jsonb_build_array('INSERT'),
      'names', jsonb_build_array('platform_events', 'webhook_events', 'audit_events'))), array['service_role']) d;
$$;
comment on function platform.platform_rights() is 'Statements that make rights on the platform what SECURITY.md lists; none when they are.';

-- What the tables of the conversation platform stand on (SPEC C6): the normal form of phone numbers, a
-- domain, a record of adopted tables.
--
-- The host may have tables of our names already, from the system that it had before. One with all columns of
-- the contract is adopted: it keeps its rows, and later migrations add what it lacks. Anything else of our
-- names would stop a later migration, and half a platform fits nobody: found here, before anything is
-- recorded, all of it in one error.
-- Lock and duration: new objects only, milliseconds.

create table platform.platform_adopted_tables (
  name          text        not null,
  is_left_alone boolean     not null,
  adopted_at    timestamptz not null default clock_timestamp(),
  constraint platform_adopted_tables_pkey primary key (name)
);
comment on table platform.platform_adopted_tables is
  'Tables that stood here before the platform came: a way back leaves them. is_left_alone: the form of the host, which nothing of ours touches.';

do $$
declare
  v_mine constant oid := (select n.oid from pg_namespace n where n.nspname = (parse_ident('platform.x'))[1]);
  v_problems text;
  v_drops text;
  -- columns that a table must have to be adopted, with their types; of two tables the host's own form is
  -- enough, and they are left as they are
  v_adoptable constant jsonb := jsonb_build_object(
    'whatsapp_users', 'id uuid',
    'agent_chat_sessions', 'id uuid, user_id uuid, user_phone text, agent_type text, agent_id uuid, '
      'conversation_history jsonb, context jsonb, status text, created_at timestamptz, '
      'updated_at timestamptz, last_message_at timestamptz, expires_at timestamptz',
    'ai_conversation_memory', 'id uuid, user_phone text, agent_type text, conversation_history jsonb, '
      'context jsonb, last_interaction timestamptz, session_id uuid, created_at timestamptz, '
      'updated_at timestamptz',
    'workflow_states', 'id uuid, user_phone text, workflow_type text, current_step text, '
      'workflow_data jsonb, status text, agent_type text, started_at timestamptz, updated_at timestamptz, '
      'completed_at timestamptz, timeout_at timestamptz, error_info jsonb, correlation_id text',
    'webhook_events', 'id uuid, event_category text, event_type text, webhook_id text, source text, '
      'destination text, payload jsonb, headers jsonb, status text, retry_count integer, error_code text, '
      'error_message text, created_at timestamptz, delivered_at timestamptz, metadata jsonb',
    'audit_events', 'id uuid, event_category text, event_type text, user_id uuid, actor_type text, '
      'actor_ip text, resource_type text, resource_id uuid, action text, changes jsonb, metadata jsonb, '
      'status text, error_message text, created_at timestamptz',
    'platform_events', 'id uuid, event_type text, user_id uuid, session_id text, properties jsonb, '
      'created_at timestamptz',
    'amara_conversations', 'id uuid, user_id uuid, locale text, is_active boolean, '
      'last_message_at timestamptz, created_at timestamptz, updated_at timestamptz',
    'amara_messages', 'id uuid, conversation_id uuid, role text, content text, tool_calls jsonb, '
      'metadata jsonb, created_at timestamptz',
    'guest_sessions', 'id uuid, session_token text, email text, full_name text, phone text, metadata jsonb, '
      'expires_at timestamptz, created_at timestamptz',
    'referrals', 'referrer_id uuid, referrer_credit_amount integer, status text',
    'companies', 'id bigint, name text, yclients_company_id bigint, phone text, email text, website text, '
      'marketplace_app_id text, marketplace_connected_at timestamptz, marketplace_permissions jsonb, '
      'settings jsonb, timezone text, locale text, is_active boolean, subscription_status text, '
      'created_at timestamptz, updated_at timestamptz',
    'clients', 'id bigint, company_id bigint, yclients_client_id bigint, phone text, name text, email text, '
      'sex text, birth_date date, discount numeric, loyalty_card text, visits_count integer, '
      'last_visit_date date, first_visit_date date, tags text[], comment text, importance integer, '
      'is_deleted boolean, synced_at timestamptz, created_at timestamptz, updated_at timestamptz',
    'services', 'id bigint, company_id bigint, yclients_service_id bigint, title text, category_id bigint, '
      'category_name text, price_min numeric, price_max numeric, duration integer, comment text, '
      'weight integer, is_active boolean, synced_at timestamptz, created_at timestamptz, '
      'updated_at timestamptz',
    'staff', 'id bigint, company_id bigint, yclients_staff_id bigint, name text, specialization text, '
      'avatar_url text, phone text, email text, rating numeric, comments_count integer, weight integer, '
      'is_active boolean, is_hidden boolean, synced_at timestamptz, created_at timestamptz, '
      'updated_at timestamptz',
    'staff_schedules', 'id bigint, company_id bigint, staff_id bigint, yclients_schedule_id bigint, '
      'date date, start_time time, end_time time, is_working boolean, is_day_off boolean, '
      'synced_at timestamptz, created_at timestamptz, updated_at timestamptz',
    'appointments_cache', 'id bigint, company_id bigint, cache_key text, appointments jsonb, '
      'cached_at timestamptz, expires_at timestamptz',
    'dialog_contexts', 'id bigint, phone text, company_id bigint, context jsonb, current_step text, '
      'booking_data jsonb, expires_at timestamptz, created_at timestamptz, updated_at timestamptz',
    'sync_status', 'id bigint, company_id bigint, entity_type text, last_sync_at timestamptz, '
      'last_success_at timestamptz, last_error text, records_synced integer, records_failed integer, '
      'created_at timestamptz, updated_at timestamptz',
    'whatsapp_auth', 'company_id text, creds jsonb, created_at timestamptz, updated_at timestamptz',
    'whatsapp_keys', 'company_id text, key_type text, key_id text, value jsonb, created_at timestamptz, '
      'updated_at timestamptz, expires_at timestamptz',
    'bookings', 'id bigint, company_id bigint, yclients_booking_id bigint, client_id bigint, '
      'service_id bigint, staff_id bigint, customer_id uuid, guest_session_id uuid, datetime timestamptz, '
      'duration integer, status text, cost numeric, paid numeric, comment text, client_comment text, '
      'source text, synced_at timestamptz, created_at timestamptz, updated_at timestamptz',
    'reminders', 'id bigint, company_id bigint, booking_id bigint, remind_at timestamptz, type text, '
      'status text, sent_at timestamptz, error text, created_at timestamptz, updated_at timestamptz',
    'messages', 'id bigint, company_id bigint, phone text, message text, direction text, message_id text, '
      'from_me boolean, status text, processed boolean, processed_at timestamptz, ai_response text, '
      'processing_time_ms integer, context_id bigint, intent text, created_at timestamptz');
  v_relations constant text[] := array[
    'platform_backfill_rows', 'conversations', 'messages_id_seq', 'phone_number',
    'message_queue_by_status', 'workflow_health', 'ai_agent_usage'];
  v_functions constant text[] := array[
    'add_agent_message', 'add_host_keys', 'advance_workflow', 'append_entry', 'check_limit', 'check_message',
    'check_number', 'check_object', 'check_period', 'check_person_caller', 'check_phone', 'check_span',
    'check_text', 'claim_guest_bookings', 'cleanup_expired_appointments_cache',
    'cleanup_expired_dialog_contexts', 'cleanup_expired_guest_sessions', 'cleanup_expired_whatsapp_keys',
    'cleanup_old_audit_events', 'cleanup_old_conversations', 'cleanup_old_platform_events',
    'cleanup_old_webhook_events', 'convert_guest_to_user', 'create_guest_session',
    'create_messages_partition', 'current_guest_session_id', 'current_guest_token', 'drop_messages_partition',
    'end_overdue_workflow', 'enqueue_due_reminders', 'enqueue_reminder', 'erase_person_business',
    'erase_person_data', 'erase_person_queue', 'erase_person_records', 'erase_person_referrals',
    'erase_person_talk', 'expire_agent_chat_sessions', 'export_host_table', 'export_person_data',
    'export_person_queue', 'export_person_talk', 'find_person', 'find_person_messages', 'finish_workflow',
    'forget_company_keys', 'get_agent_conversation', 'get_conversion_funnel',
    'get_database_stats', 'get_event_counts_by_type', 'get_guest_session', 'get_messages_stats',
    'get_or_create_agent_session', 'get_or_create_conversation', 'get_or_create_conversation_memory',
    'get_recent_messages', 'get_user_referral_credits', 'get_whatsapp_auth_stats', 'grant_service_role',
    'guest_rights', 'host_policies', 'host_table', 'is_conversation_of', 'is_unfinished_copy',
    'lock_conversation',
    'maintain_messages_partitions', 'make_messages_partition', 'mark_finished', 'mark_session_ended',
    'mark_timed_out_workflows', 'mark_workflow_completed', 'may_name_phone', 'mentions_phone',
    'merge_context', 'missing_host_keys', 'normalize_phone', 'normalize_phone_columns', 'note_person_request',
    'phone_patterns', 'platform_is_admin', 'platform_rights', 'platform_user_id', 'protect_audit_events',
    'refresh_platform_access', 'refuse_agent_session', 'refuse_value', 'refuse_workflow',
    'release_stuck_conversations', 'set_agent_session_status', 'start_workflow', 'take_back_audit_events',
    'touch_amara_conversations',
    'touch_conversation_memory', 'touch_updated_at', 'unlock_conversation', 'update_conversation_memory',
    'worker_rights', 'workflow_time_limit'];
begin
  with theirs as (
    select c.oid, c.relname::text as name, c.relkind, coalesce(
      (select jsonb_object_agg(a.attname, a.atttypid::bigint) from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '{}') as columns
    from pg_class c where c.relnamespace = v_mine and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  ), unfit as (
    -- a family of types is enough: varchar(50) holds what text holds, integer what bigint holds here
    select t.name, string_agg(w.wanted[1] || ' ' || w.wanted[2], ', ' order by d.place) as lacks
    from theirs t
    cross join lateral unnest(string_to_array(v_adoptable ->> t.name, ', ')) with ordinality as d (text,
      place)
    cross join lateral (select string_to_array(d.text, ' ') as wanted) w
    left join pg_type h on h.oid = (t.columns ->> w.wanted[1])::oid
    join pg_type o on o.oid = w.wanted[2]::regtype
    where h.oid is null or h.typcategory <> o.typcategory or (o.typcategory = 'U' and h.oid <> o.oid)
    group by t.name
  ), problems (name, problem, statement) as (
    select t.name, format('%I lacks %s', t.name, u.lacks),
      format('alter table %I.%I rename to %I', n.nspname, t.name, t.name || '_old')
    from theirs t join unfit u using (name) join pg_namespace n on n.oid = v_mine
    union all
    select t.name, format('%I is not %s', t.name,
      case t.name when 'messages' then 'partitioned by range (created_at)' else 'an ordinary table' end),
      format('alter table %I.%I rename to %I', n.nspname, t.name, t.name || '_old')
    from theirs t join pg_namespace n on n.oid = v_mine
    where v_adoptable ? t.name and not exists (select from unfit u where u.name = t.name)
      and case when t.name = 'messages'
      then t.relkind <> 'p' or pg_get_partkeydef(t.oid) <> 'RANGE (created_at)' else t.relkind <> 'r' end
    union all -- what other tables of ours point at
    select t.name, format('%I has no key of id alone', t.name),
      format('alter table %I.%I add primary key (id)', n.nspname, t.name)
    from theirs t join pg_namespace n on n.oid = v_mine
    where v_adoptable ? t.name and t.relkind = 'r' and t.columns ? 'id' and t.name <> 'referrals'
      and not exists (select from unfit u where u.name = t.name) and not exists (
      select from pg_index i join pg_attribute a on a.attrelid = t.oid and a.attname = 'id'
      where i.indrelid = t.oid and i.indisunique and i.indpred is null and i.indkey::text = a.attnum::text)
    union all
    select t.name, format('%I exists already', t.name),
      case t.relkind when 'v' then format('drop view %I.%I', n.nspname, t.name)
      else format('alter table %I.%I rename to %I', n.nspname, t.name, t.name || '_old') end
    from theirs t join pg_namespace n on n.oid = v_mine where t.name = any (v_relations)
      and not (t.name = 'messages_id_seq' and exists (select from theirs m where m.name = 'messages'))
    union all
    select y.typname::text, format('%I exists already', y.typname),
      format('alter type %s rename to %I', y.oid::regtype, y.typname || '_old')
    from pg_type y where y.typnamespace = v_mine and y.typname = any (v_relations) and y.typrelid = 0
    union all
    select p.proname::text, format('%I exists already', p.proname),
      format('drop function %s', p.oid::regprocedure)
    from pg_proc p where p.pronamespace = v_mine and p.proname = any (v_functions)
  )
  select string_agg(p.problem, '; ' order by p.name, p.statement),
    string_agg(p.statement || ';', ' ' order by p.name, p.statement) into v_problems, v_drops
  from problems p;
  if v_problems is not null then
    raise exception using errcode = 'duplicate_object',
      message = format(
        'the schema %I has things of our names that the platform cannot adopt, and nothing was changed: %s',
        v_mine::regnamespace, v_problems),
      hint = format(
        'Add what a table lacks, or move it away; drop functions and views that ours replace. Or give the platform a schema of its own: '
        'the setting platform_schema. %s', v_drops);
  end if;
  insert into platform.platform_adopted_tables (name, is_left_alone)
  select c.relname, c.relname in ('whatsapp_users', 'referrals')
  from pg_class c where c.relnamespace = v_mine and c.relkind in ('r', 'p') and v_adoptable ? c.relname::text;
end
$$;

create function platform.normalize_phone(p_phone text) returns text
language plpgsql immutable strict parallel safe as $$
-- The normal form of a phone number or WhatsApp address: its digits, without 00 in front. An address of
-- another kind (with letters, say) comes back trimmed, nothing as null. Applied twice it changes nothing
-- more. Indexes and unique keys stand on it: it never changes.
declare
  v_phone text := p_phone;
  v_before text;
begin
  -- nearly all are one of these two; what follows costs ten times as much
  if v_phone ~ '^[+]?[1-9][0-9]*$' then
    return ltrim(v_phone, '+');
  end if;
  loop
    v_before := v_phone;
    v_phone := regexp_replace(v_phone, '^[ \t\n\r\f\v]+|[ \t\n\r\f\v]+$', '', 'g');
    v_phone := regexp_replace(v_phone, '^(whatsapp|tel):', '', 'i');
    v_phone := regexp_replace(v_phone, '(:[0-9]+)?@(s\.whatsapp\.net|c\.us)$', '', 'i');
    exit when v_phone = v_before;
  end loop;
  if v_phone ~ '^[-0-9 \t\n\r\f\v+()./]*[0-9][-0-9 \t\n\r\f\v+()./]*$' then
    v_phone := regexp_replace(regexp_replace(v_phone, '[^0-9]', '', 'g'), '^(00)+', '');
  end if;
  return case when v_phone <> '' then v_phone end;
end
$$;
comment on function platform.normalize_phone(text) is
  'The normal form of a phone number: digits, without 00 in front; other addresses trimmed; nothing as null.';

create domain platform.phone_number as text constraint phone_number_length
  check (length(value) between 1 and 100);
comment on domain platform.phone_number is
  'A phone number or another address of a person in a channel: 1 to 100 characters.';

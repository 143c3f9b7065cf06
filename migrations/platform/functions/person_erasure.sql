-- Erasure of a person (PLATFORM 11): what names the person goes, what others need (amounts, bookings,
-- records) stays without it.

create or replace function platform.erase_person_talk(p_user_ids uuid[], p_phones text[])
returns table (table_name text, action text, rows bigint)
language plpgsql as $$
-- Delete who a person is and what it said: the tables of agents, conversations and the assistant.
begin
  return query with gone as (delete from platform.agent_chat_sessions s
    where platform.normalize_phone(s.user_phone) = any (p_phones) or s.user_id = any (p_user_ids) returning 1)
    select 'agent_chat_sessions', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.ai_conversation_memory m
    where platform.normalize_phone(m.user_phone) = any (p_phones) returning 1)
    select 'ai_conversation_memory', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.workflow_states w
    where platform.normalize_phone(w.user_phone) = any (p_phones) returning 1)
    select 'workflow_states', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.conversations c
    where platform.normalize_phone(c.phone) = any (p_phones) returning 1)
    select 'conversations', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.dialog_contexts d where d.phone = any (p_phones)
    returning 1)
    select 'dialog_contexts', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.messages m where m.phone = any (p_phones) returning 1)
    select 'messages', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.amara_messages m using platform.amara_conversations c
    where c.id = m.conversation_id and c.user_id = any (p_user_ids) returning 1)
    select 'amara_messages', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.amara_conversations c where c.user_id = any (p_user_ids)
    returning 1)
    select 'amara_conversations', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.whatsapp_users u where u.id = any (p_user_ids) returning 1)
    select 'whatsapp_users', 'deleted', count(*) from gone;
  return query with gone as (delete from platform.whatsapp_keys k
    where platform.normalize_phone(k.key_id) = any (p_phones) returning 1)
    select 'whatsapp_keys', 'deleted', count(*) from gone;
end
$$;
comment on function platform.erase_person_talk(uuid[], text[]) is
  'Used by erase_person_data: who a person is, and what it said.';

create or replace function platform.erase_person_business(
  p_user_ids uuid[], p_phones text[], p_client_ids bigint[], p_company_ids bigint[], p_guest_ids uuid[],
  p_booking_ids bigint[]
) returns table (table_name text, action text, rows bigint)
language plpgsql as $$
-- Take a person out of bookings, clients, guest sessions and reminders; the rows that others need stay.
declare
  v_pseudonym constant uuid := gen_random_uuid();
begin
  -- a booking that is being made holds its session: wait for it, or the session would be deleted under it
  perform from platform.guest_sessions g where g.id = any (p_guest_ids) for update;
  return query with changed as (update platform.guest_sessions g
    set email = 'erased', full_name = 'erased', phone = null, metadata = '{}'
    where g.id = any (p_guest_ids)
      and exists (select from platform.bookings b where b.guest_session_id = g.id) returning 1)
    select 'guest_sessions', 'emptied', count(*) from changed;
  return query with gone as (delete from platform.guest_sessions g
    where g.id = any (p_guest_ids)
      and not exists (select from platform.bookings b where b.guest_session_id = g.id) returning 1)
    select 'guest_sessions', 'deleted', count(*) from gone;
  return query with changed as (update platform.bookings b
    set customer_id = case when b.customer_id = any (p_user_ids) then v_pseudonym else b.customer_id end,
      comment = null, client_comment = null, metadata = '{}'
    where b.id = any (p_booking_ids) returning 1)
    select 'bookings', 'emptied', count(*) from changed;
  return query with changed as (update platform.reminders r
    set status = case when r.status = 'pending' then 'cancelled' else r.status end, phone = null,
      payload = '{}', conversation_key = null
    where r.phone = any (p_phones) or r.booking_id = any (p_booking_ids) returning 1)
    select 'reminders', 'emptied', count(*) from changed;
  return query with changed as (update platform.clients c
    set phone = 'erased-' || c.id::text, name = null, email = null, sex = null, birth_date = null,
      loyalty_card = null, tags = null, comment = null,
        user_id = null, is_deleted = true
    where c.id = any (p_client_ids) returning 1)
    select 'clients', 'emptied', count(*) from changed;
  return query with gone as (delete from platform.appointments_cache a
    where a.company_id = any (p_company_ids) returning 1)
    select 'appointments_cache', 'deleted', count(*) from gone;
end
$$;
comment on function platform.erase_person_business(uuid[], text[], bigint[], bigint[], uuid[], bigint[])
  is 'Used by erase_person_data: bookings, clients, guests, reminders.';

create or replace function platform.erase_person_referrals(p_user_ids uuid[])
returns table (table_name text, action text, rows bigint)
language plpgsql as $$
-- The person becomes a pseudonym; amounts stay. Where the host's key refuses one that is no user, or its
-- table has another form, the rows are reported: they go when the host deletes the user.
declare
  v_count bigint;
begin
  update platform.referrals r
  set referrer_id = case when r.referrer_id = any (p_user_ids) then gen_random_uuid() else r.referrer_id end,
      referee_id = case when r.referee_id = any (p_user_ids) then gen_random_uuid() else r.referee_id end
  where r.referrer_id = any (p_user_ids) or r.referee_id = any (p_user_ids);
  get diagnostics v_count = row_count;
  return query select 'referrals', 'emptied', v_count;
exception when foreign_key_violation or undefined_column then
  return query select 'referrals', 'reported', count(*) from platform.referrals r
    where r.referrer_id = any (p_user_ids) or to_jsonb(r) ->> 'referee_id' = any (p_user_ids::text[]);
end
$$;
comment on function platform.erase_person_referrals(uuid[]) is
  'Used by erase_person_data: the person becomes a pseudonym.';

create or replace function platform.erase_person_records(p_user_ids uuid[], p_phones text[])
returns table (table_name text, action text, rows bigint)
language plpgsql as $$
-- Take a person out of events, webhooks, audit records and the ledger of backfills. Audit records of security
-- stay as they are; the others may be changed because erase_person_data sets
-- packhorse_platform.audit_exception (see protect_audit_events).
declare
  v_patterns constant text[] := platform.phone_patterns(p_phones);
begin
  return query with changed as (update platform.platform_events e
    set user_id = null, session_id = null, properties = '{}'
    where e.user_id = any (p_user_ids) returning 1)
    select 'platform_events', 'emptied', count(*) from changed;
  return query with changed as (update platform.webhook_events e
    set payload = null, headers = null, destination = null, error_message = null
    where (e.destination like any (v_patterns) or e.payload::text like any (v_patterns))
      and (platform.normalize_phone(e.destination) = any (p_phones)
        or platform.mentions_phone(e.payload, p_phones)) returning 1)
    select 'webhook_events', 'emptied', count(*) from changed;
  return query with changed as (update platform.audit_events e
    set user_id = null, actor_ip = null, changes = null,
      metadata = jsonb_build_object('erased_at', clock_timestamp())
    where e.user_id = any (p_user_ids) and e.event_category <> 'security' returning 1)
    select 'audit_events', 'emptied', count(*) from changed;
  return query with changed as (update platform.platform_backfill_rows r set old_value = null
    where r.old_value::text like any (v_patterns)
      and platform.mentions_phone(r.old_value, p_phones) returning 1)
    select 'platform_backfill_rows', 'emptied', count(*) from changed;
end
$$;
comment on function platform.erase_person_records(uuid[], text[]) is
  'Used by erase_person_data: events, webhooks, audit records, the ledger of backfills.';

create or replace function platform.erase_person_queue(p_phones text[])
returns table (table_name text, action text, rows bigint)
language plpgsql as $$
-- Empty what the queue keeps of a person: archive and dead letters lose payload, arguments, steps, errors and
-- keys (a dead letter that blocks its conversation keeps the key), results go, ids of webhooks lose their
-- correlation id. Live messages are reported, not touched.
declare
  v_own jsonb;
begin
  select coalesce(jsonb_agg(to_jsonb(f)), '[]') into v_own from platform.find_person_messages(p_phones) f;
  return query select 'message_queue', 'reported', count(*) from jsonb_to_recordset(v_own) as o (place text)
  where o.place = 'message_queue';
  return query with changed as (update packhorse.message_archive a
    set payload = '{}', options = '{}', error = null, history = null, steps = null, conversation_key = null
    where a.id in (select o.id from jsonb_to_recordset(v_own) as o (place text, id bigint)
      where o.place = 'message_archive') returning 1)
    select 'message_archive', 'emptied', count(*) from changed;
  return query with changed as (update packhorse.dead_letters d
    set payload = '{}', options = '{}', error_message = null, error_details = null, traceback = null,
      history = null, steps = null,
        concurrency_key = null, fairness_key = null,
        conversation_key = case when d.blocks_conversation then d.conversation_key end
    where d.id in (select o.id from jsonb_to_recordset(v_own) as o (place text, id bigint)
      where o.place = 'dead_letters') returning 1)
    select 'dead_letters', 'emptied', count(*) from changed;
  return query with gone as (delete from packhorse.message_results r
    where r.result_key in (select o.result_key from jsonb_to_recordset(v_own) as o (result_key text))
    returning 1)
    select 'message_results', 'deleted', count(*) from gone;
  return query with changed as (update packhorse.processed_messages p set correlation_id = null
    where p.correlation_id
      in (select o.correlation_id from jsonb_to_recordset(v_own) as o (correlation_id text)) returning 1)
    select 'processed_messages', 'emptied', count(*) from changed;
end
$$;
comment on function platform.erase_person_queue(text[]) is
  'Used by erase_person_data: what the queue keeps of a person.';

create or replace function platform.erase_person_data(p_user_id uuid default null, p_phone text default null,
  p_reason text default null)
returns table (table_name text, action text, rows bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- Erase a person: a row per table says what was done (deleted, emptied, reported) and to how many rows. All
-- of it is one transaction, with an audit record of the counts. Safe to repeat. Tables of the host are
-- reported. Locks what it changes. Raises PH001, 42501.
declare
  v_caller record;
  v_person record;
  v_done jsonb;
begin
  select k.* into v_caller from platform.check_person_caller(p_user_id, p_phone) k;
  if not v_caller.is_server then
    raise exception using errcode = 'insufficient_privilege',
      message = 'erase_person_data is for servers, not for users';
  end if;
  select f.* into v_person from platform.find_person(p_user_id, p_phone, true) f;
  -- not in the head of the function: there only a superuser may name a setting of ours
  perform set_config('packhorse_platform.audit_exception', 'erasure', true);
  select jsonb_agg(jsonb_build_array(d.table_name, d.action, d.rows)) into v_done from (
    select t.*
    from platform.erase_person_business(v_person.user_ids, v_person.phones, v_person.client_ids,
      v_person.company_ids, v_person.guest_ids, v_person.booking_ids) t
    union all select t.* from platform.erase_person_referrals(v_person.user_ids) t
    union all select t.* from platform.erase_person_records(v_person.user_ids, v_person.phones) t
    union all select t.* from platform.erase_person_queue(v_person.phones) t
    union all select t.* from platform.erase_person_talk(v_person.user_ids, v_person.phones) t) d;
  perform set_config('packhorse_platform.audit_exception', '', true);
  select v_done || coalesce(jsonb_agg(jsonb_build_array(h.name, 'reported', jsonb_array_length(h.found))),
    '[]') into v_done
  from (select n.name, platform.export_host_table(n.name, v_person.user_ids, 1000) as found
    from (values ('notifications'), ('profiles')) as n (name)) h where h.found is not null;
  perform platform.note_person_request('person_data_erasure', 'delete', v_caller.role, p_reason,
    (select jsonb_object_agg((d.value ->> 0) || ' ' || (d.value ->> 1), d.value -> 2)
      from jsonb_array_elements(v_done) d));
  return query select d.value ->> 0, d.value ->> 1, (d.value ->> 2)::bigint
  from jsonb_array_elements(v_done) with ordinality d order by d.ordinality;
end
$$;
comment on function platform.erase_person_data(uuid, text, text) is
  'Erase a person from all tables; a row per table says what was done.';

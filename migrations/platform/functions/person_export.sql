-- Export of what is kept about a person (PLATFORM 11). Secrets (session_token, whatsapp_auth, whatsapp_keys)
-- are in no export.

create or replace function platform.export_host_table(p_table text, p_user_ids uuid[], p_limit integer)
returns jsonb
language plpgsql stable as $$
-- The newest p_limit rows of a table of the host (host_table) that belong to these users, by user_id, else
-- id; null when there is no such table.
declare
  v_table constant regclass := platform.host_table(p_table);
  v_rows jsonb;
begin
  if v_table is null then
    return null;
  end if;
  execute format('select coalesce(jsonb_agg(t.data), ''[]'') from (
      select to_jsonb(h) as data from %s h
      where coalesce(to_jsonb(h) ->> ''user_id'', to_jsonb(h) ->> ''id'') = any ($1)
      order by to_jsonb(h) ->> ''created_at'' desc nulls last limit $2) t', v_table)
  into v_rows using p_user_ids::text[], p_limit;
  return v_rows;
end
$$;
comment on function platform.export_host_table(text, uuid[], integer) is
  'The rows of a table of the host that belong to a person.';

create or replace function platform.export_person_queue(p_phones text[]) returns jsonb
language sql stable as $$
-- What the queue has of a person: live messages, the archive, dead letters, results, ids of webhooks.
  with own as materialized (select f.* from platform.find_person_messages(p_phones) f)
  select jsonb_build_object(
    'message_queue',
    (select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'queue', m.queue,
      'message_type', m.message_type, 'payload', m.payload,
        'options', m.options, 'steps', m.steps, 'conversation_key', m.conversation_key,
        'created_at', m.created_at)), '[]')
      from packhorse.message_queue m where m.id in (select o.id from own o where o.place = 'message_queue')),
    'message_archive', (select coalesce(jsonb_agg(to_jsonb(a)), '[]') from packhorse.message_archive a
      where a.id in (select o.id from own o where o.place = 'message_archive')),
    'dead_letters', (select coalesce(jsonb_agg(to_jsonb(d)), '[]') from packhorse.dead_letters d
      where d.id in (select o.id from own o where o.place = 'dead_letters')),
    'message_results', (select coalesce(jsonb_agg(to_jsonb(r)), '[]') from packhorse.message_results r
      where r.result_key in (select o.result_key from own o)),
    'processed_messages', (select coalesce(jsonb_agg(to_jsonb(p)), '[]') from packhorse.processed_messages p
      where p.correlation_id in (select o.correlation_id from own o)));
$$;
comment on function platform.export_person_queue(text[]) is 'What the queue has of a person.';

create or replace function platform.export_person_talk(p_user_ids uuid[], p_phones text[]) returns jsonb
language sql stable as $$
-- What a person said, and who it is: the tables of agents, conversations and the assistant.
  select jsonb_build_object(
    'whatsapp_users', (select coalesce(jsonb_agg(to_jsonb(u)), '[]') from platform.whatsapp_users u
      where u.id = any (p_user_ids)),
    'agent_chat_sessions', (select coalesce(jsonb_agg(to_jsonb(s)), '[]') from platform.agent_chat_sessions s
      where platform.normalize_phone(s.user_phone) = any (p_phones) or s.user_id = any (p_user_ids)),
    'ai_conversation_memory',
    (select coalesce(jsonb_agg(to_jsonb(m)), '[]') from platform.ai_conversation_memory m
      where platform.normalize_phone(m.user_phone) = any (p_phones)),
    'workflow_states', (select coalesce(jsonb_agg(to_jsonb(w)), '[]') from platform.workflow_states w
      where platform.normalize_phone(w.user_phone) = any (p_phones)),
    'conversations', (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from platform.conversations c
      where platform.normalize_phone(c.phone) = any (p_phones)),
    'dialog_contexts', (select coalesce(jsonb_agg(to_jsonb(d)), '[]') from platform.dialog_contexts d
      where d.phone = any (p_phones)),
    'messages', (select coalesce(jsonb_agg(to_jsonb(m)), '[]') from platform.messages m
      where m.phone = any (p_phones)),
    'amara_conversations',
    (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from platform.amara_conversations c
      where c.user_id = any (p_user_ids)),
    'amara_messages', (select coalesce(jsonb_agg(to_jsonb(m)), '[]') from platform.amara_messages m
      join platform.amara_conversations c on c.id = m.conversation_id
      where c.user_id = any (p_user_ids)));
$$;
comment on function platform.export_person_talk(uuid[], text[]) is 'What a person said, and who it is.';

create or replace function platform.export_person_data(p_user_id uuid default null, p_phone text default null)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- What is kept about a person: one key per table, its rows as an array. Tables of the host are there when
-- they exist. Writes an audit record with the counts. A user may ask for its own id. Locks nothing. Raises
-- PH001, 42501 (a user asks for somebody else).
declare
  v_caller record;
  v_person record;
  v_host record;
  v_data jsonb;
  v_patterns text[];
begin
  select k.* into v_caller from platform.check_person_caller(p_user_id, p_phone) k;
  select f.* into v_person from platform.find_person(p_user_id, p_phone, v_caller.is_server) f;
  v_patterns := platform.phone_patterns(v_person.phones);
  v_data := platform.export_person_talk(v_person.user_ids, v_person.phones)
    || platform.export_person_queue(v_person.phones) || jsonb_build_object(
    'guest_sessions', (select coalesce(jsonb_agg(to_jsonb(g) - 'session_token'::text), '[]')
      from platform.guest_sessions g where g.id = any (v_person.guest_ids)),
    'bookings', (select coalesce(jsonb_agg(to_jsonb(b)), '[]') from platform.bookings b
      where b.id = any (v_person.booking_ids)),
    'clients', (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from platform.clients c
      where c.id = any (v_person.client_ids)),
    'reminders', (select coalesce(jsonb_agg(to_jsonb(r)), '[]') from platform.reminders r
      where r.phone = any (v_person.phones) or r.booking_id = any (v_person.booking_ids)),
    'platform_events', (select coalesce(jsonb_agg(to_jsonb(e)), '[]') from platform.platform_events e
      where e.user_id = any (v_person.user_ids)),
    'webhook_events', (select coalesce(jsonb_agg(to_jsonb(e)), '[]') from platform.webhook_events e
      where (e.destination like any (v_patterns) or e.payload::text like any (v_patterns))
        and (platform.normalize_phone(e.destination) = any (v_person.phones)
          or platform.mentions_phone(e.payload, v_person.phones))),
    'referrals', (select coalesce(jsonb_agg(to_jsonb(r)), '[]') from platform.referrals r
      where r.referrer_id = any (v_person.user_ids)
        or to_jsonb(r) ->> 'referee_id' = any (v_person.user_ids::text[])),
    'audit_events', (select coalesce(jsonb_agg(to_jsonb(e)), '[]') from platform.audit_events e
      where e.user_id = any (v_person.user_ids)));
  for v_host in select n.name, n.most, platform.export_host_table(n.name, v_person.user_ids, n.most) as found
      from (values ('notifications', 100), ('profiles', 1000)) as n (name, most) loop
    v_data := v_data || case when v_host.found is null then '{}'
      else jsonb_build_object(v_host.name, v_host.found) end;
  end loop;
  perform platform.note_person_request('person_data_export', 'view', v_caller.role, null,
    (select jsonb_object_agg(d.key, jsonb_array_length(d.value)) from jsonb_each(v_data) d));
  return v_data;
end
$$;
comment on function platform.export_person_data(uuid, text) is
  'What is kept about a person, one key per table.';

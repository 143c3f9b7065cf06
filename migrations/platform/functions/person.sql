-- Who a person is, in all tables (PLATFORM 11): by a user id, a phone, or both. What is found is exported by
-- person_export.sql and erased by person_erasure.sql. These functions read whole tables: they are for a
-- request of a person, not for every message. A condition of the query itself (phone_patterns) passes by
-- nearly all rows.

create or replace function platform.may_name_phone(p_text text, p_phones text[]) returns boolean
language sql immutable as $$
-- False when a JSON text names none of these phones (normal forms) for certain: it has not their digits, in
-- order and with nothing between them but what may stand there. Most texts need no closer look. The first
-- condition is the cheap one.
  select exists (
    select from unnest(p_phones) as p (phone)
    where p.phone !~ '^[0-9]+$'
      or (p_text like '%' || array_to_string(string_to_array(p.phone, null), '%') || '%'
      and strpos(translate(p_text, ' +()-./\tnrfv', ''), p.phone) > 0)); -- JSON writes a tab as \t
$$;
comment on function platform.may_name_phone(text, text[]) is
  'Could a JSON text name one of these phones? A quick look.';

create or replace function platform.phone_patterns(p_phones text[]) returns text[]
language sql immutable parallel safe as $$
-- For LIKE ANY: every text that names one of these phones (normal forms) has its digits in order. Another
-- address: every text. The condition stands in the queries that read whole tables, not in a function, which
-- would be called for every row.
  select array_agg(case when p.phone ~ '^[0-9]+$'
    then '%' || array_to_string(string_to_array(p.phone, null), '%') || '%' else '%' end)
  from unnest(p_phones) as p (phone);
$$;
comment on function platform.phone_patterns(text[]) is
  'For LIKE ANY: what a text that names one of these phones looks like.';

create or replace function platform.mentions_phone(p_value jsonb, p_phones text[]) returns boolean
language sql immutable as $$
-- Does some text or number in a JSON value, at any depth, stand for one of these phones (normal forms)?
  select case when platform.may_name_phone(p_value::text, p_phones) then exists (
    select from jsonb_path_query(p_value, '$.**') as v (value)
    where jsonb_typeof(v.value) in ('string', 'number')
      and platform.normalize_phone(v.value operator(pg_catalog.#>>) '{}') = any (p_phones)) else false end;
$$;
comment on function platform.mentions_phone(jsonb, text[]) is 'Does a JSON value name one of these phones?';

create or replace function platform.is_conversation_of(p_key text, p_phones text[]) returns boolean
language sql immutable as $$
-- Is a conversation key one of these phones (normal forms), or does it end in a colon and one of them?
  select case when exists (
      select from unnest(p_phones) as p (phone)
      where p.phone !~ '^[0-9]+$' or strpos(translate(p_key, E' \t\n\r\f\x0b+()-./', ''), p.phone) > 0)
    then platform.normalize_phone(p_key) = any (p_phones)
      or platform.normalize_phone(regexp_replace(p_key, '^.*:', '')) = any (p_phones) else false end;
$$;
comment on function platform.is_conversation_of(text, text[]) is
  'Does a conversation key stand for one of these phones?';

create or replace function platform.find_person(
  p_user_id uuid, p_phone text, p_by_email boolean, out user_ids uuid[], out phones text[],
  out client_ids bigint[], out company_ids bigint[], out guest_ids uuid[],
  out booking_ids bigint[]
)
language plpgsql stable as $$
-- All ids under which a person is known. whatsapp_users says which user ids a phone has, and the other way
-- round; a guest session found by phone or conversion leads to others with its e-mail, if p_by_email: anybody
-- can make a guest session with any e-mail, so for a user who asks for itself that would lead to others.
-- Phones are normal forms. Raises PH001 (neither is given).
begin
  if p_user_id is null and p_phone is null then
    perform platform.refuse_value('user_id', 'must not be null without a phone',
      'Give a user id, a phone, or both.');
  elsif p_phone is not null then
    phones := array[platform.check_phone('phone', p_phone)];
  end if;
  -- by to_jsonb: a host's own whatsapp_users may lack a column
  user_ids := array(
    select p_user_id where p_user_id is not null
    union
    select u.id from platform.whatsapp_users u
    where platform.normalize_phone(to_jsonb(u) ->> 'phone_number') = any (phones)
      or platform.normalize_phone(to_jsonb(u) ->> 'wa_id') = any (phones));
  phones := array(
    select p.phone from unnest(phones) as p (phone)
    union
    select platform.normalize_phone(f.given) from platform.whatsapp_users u
    cross join lateral (values (to_jsonb(u) ->> 'phone_number'), (to_jsonb(u) ->> 'wa_id')) as f (given)
    where u.id = any (user_ids) and platform.normalize_phone(f.given) is not null);
  select coalesce(array_agg(c.id), '{}'), coalesce(array_agg(distinct c.company_id), '{}') into client_ids,
    company_ids
  from platform.clients c where c.phone = any (phones) or c.user_id = any (user_ids);
  guest_ids := array(
    with found as (
      select g.id, lower(g.email) as email from platform.guest_sessions g
      where (g.phone = any (phones) and p_by_email)
        or lower(g.metadata ->> 'converted_to_user_id') = any (user_ids::text[])
    )
    select f.id from found f
    union
    select g.id from platform.guest_sessions g
    where p_by_email and lower(g.email) in (select f.email from found f));
  booking_ids := array(
    select b.id from platform.bookings b
    where b.customer_id = any (user_ids) or b.client_id = any (client_ids)
      or b.guest_session_id = any (guest_ids));
end
$$;
comment on function platform.find_person(uuid, text, boolean) is
  'All ids under which a person is known, by user id and phone.';

create or replace function platform.find_person_messages(p_phones text[])
returns table (place text, id bigint, result_key text, correlation_id text)
language sql stable as $$
-- Messages of the queue that belong to a person by their conversation key: place is message_queue,
-- message_archive or dead_letters. result_key: where dramatiq's results of the message are kept, in the
-- default namespace.
  select m.place, m.id,
    md5(format('dramatiq-results:%s:%s:%s', m.queue, m.message_type,
      coalesce(m.options ->> 'message_id', m.id::text))), m.correlation_id
  from (
    select 'message_queue', q.id, q.queue::text, q.message_type::text, q.options::jsonb,
      q.conversation_key::text, q.correlation_id::text from packhorse.message_queue q
    union all
    select 'message_archive', a.id, a.queue, a.message_type, a.options, a.conversation_key, a.correlation_id
    from packhorse.message_archive a
    union all
    select 'dead_letters', d.id, d.queue, d.message_type, d.options, d.conversation_key, d.correlation_id
    from packhorse.dead_letters d
  ) as m (place, id, queue, message_type, options, conversation_key, correlation_id)
  where m.conversation_key like any (platform.phone_patterns(p_phones))
    and platform.is_conversation_of(m.conversation_key, p_phones);
$$;
comment on function platform.find_person_messages(text[]) is
  'Messages of the queue that belong to a person, by their conversation key.';

create or replace function platform.check_person_caller(p_user_id uuid, p_phone text, out role text,
  out is_server boolean)
language plpgsql stable as $$
-- Who asks for the data of a person: its role, and whether that is a worker, service_role or the owner, who
-- may ask for anybody. Raises 42501 when it is not, unless a user asks for itself.
declare
  v_owner constant oid := (select c.relowner from pg_class c
    where c.oid = 'platform.companies'::regclass::oid);
begin
  -- what the session has set: in a function of the owner current_user is the owner
  role := current_setting('role', true);
  if coalesce(role, '') in ('', 'none') then
    role := session_user::text;
  end if;
  is_server := role = 'service_role' or pg_has_role(role::name, 'packhorse_worker'::name, 'member')
    or pg_has_role(role::name, v_owner, 'member');
  if not is_server and (p_user_id is null or p_user_id is distinct from platform.platform_user_id()
    or p_phone is not null) then
    raise exception using errcode = 'insufficient_privilege', message = 'a user may export its own data only',
      hint = 'Give your own user id, and no phone.';
  end if;
end
$$;
comment on function platform.check_person_caller(uuid, text) is
  'Who asks for the data of a person; refuses a user that asks for somebody else.';

create or replace function platform.note_person_request(p_type text, p_action text, p_role text,
  p_reason text, p_counts jsonb) returns void
language sql volatile as $$
-- An audit record of the category security: who asked, why, and how many rows; nothing of the person.
  insert into platform.audit_events (event_category, event_type, actor_type, action, resource_type, metadata)
  values ('security', p_type, case when p_role = 'authenticated' then 'user' else 'system' end, p_action,
    'person',
    jsonb_strip_nulls(jsonb_build_object('actor', p_role, 'reason', left(p_reason, 1000), 'rows', p_counts)));
$$;
comment on function platform.note_person_request(text, text, text, text, jsonb) is
  'Record that the data of a person was exported or erased.';

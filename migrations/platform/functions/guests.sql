-- Guests: sessions by a secret token, and the step from guest to user (SPEC C5). The token is the proof of
-- who somebody is; no function gives one out but the one that makes it.

create or replace function platform.create_guest_session(p_email text, p_full_name text,
  p_phone text default null, p_metadata jsonb default '{}')
returns table (id uuid, session_token text, expires_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- A session of 24 hours with a token made here; one row. For clients that cannot read back what they insert.
-- Raises PH001.
begin
  if p_email is null or length(p_email) > 320 or p_email !~ '^[^@[:space:]]+@[^@[:space:]]+$' then
    perform platform.refuse_value('email', 'must be an address of at most 320 characters',
      'name@example.com');
  end if;
  perform platform.check_text('full_name', p_full_name, 500);
  if p_phone is not null then
    perform platform.check_phone('phone', p_phone);
  end if;
  perform platform.check_object('metadata', coalesce(p_metadata, '{}'), 65536);
  if p_metadata -> 'converted_to_user_id' is not null or p_metadata -> 'converted_at' is not null then
    perform platform.refuse_value('metadata', 'must not have the keys of a conversion',
      'convert_guest_to_user() sets them.');
  end if;
  return query
  insert into platform.guest_sessions as g (email, full_name, phone, metadata)
  values (p_email, p_full_name, p_phone, coalesce(p_metadata, '{}'))
  returning g.id, g.session_token::text, g.expires_at;
end
$$;
comment on function platform.create_guest_session(text, text, text, jsonb) is
  'A guest session of 24 hours, with its token.';

create or replace function platform.get_guest_session(p_session_token text)
returns table (id uuid, email text, full_name text, phone text, metadata jsonb, expires_at timestamptz,
  created_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
-- The session with this token; no row when there is none, or it has expired. Locks nothing.
  select g.id, g.email::text, g.full_name::text, g.phone::text, g.metadata, g.expires_at, g.created_at
  from platform.guest_sessions g where g.session_token = p_session_token and g.expires_at > clock_timestamp();
$$;
comment on function platform.get_guest_session(text) is
  'The unexpired guest session with this token, without the token.';

create or replace function platform.cleanup_expired_guest_sessions(p_limit integer default null)
returns integer
language plpgsql as $$
-- End up to p_limit (1..100000; null: all) guest sessions whose time is over, oldest first: those without a
-- booking are deleted, the others stay for their bookings and are marked with expired_at. Returns how many
-- ended. Locks the sessions, and looks for bookings only then: one that is being made holds its session,
-- which is skipped. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_ids uuid[];
begin
  perform platform.check_limit(p_limit);
  v_ids := array(
    select g.id from platform.guest_sessions g
    where g.expires_at <= v_now and g.expired_at is null
    order by g.expires_at
    limit p_limit
    for update skip locked);
  update platform.guest_sessions g set expired_at = v_now
  where g.id = any (v_ids) and exists (select from platform.bookings b where b.guest_session_id = g.id);
  delete from platform.guest_sessions g where g.id = any (v_ids) and g.expired_at is null;
  return cardinality(v_ids);
end
$$;
comment on function platform.cleanup_expired_guest_sessions(integer)
  is 'End expired guest sessions: deleted, or marked when a booking needs them; returns how many.';

create or replace function platform.convert_guest_to_user(p_guest_session_id uuid, p_user_id uuid)
returns integer
language plpgsql as $$
-- The guest registered: its bookings become the user's, in one statement, so that each keeps exactly one
-- owner; metadata says so with converted_to_user_id and converted_at. Safe to repeat. Returns how many
-- bookings moved, 0 when the guest had none. Locks the session, then its bookings. Raises PH001, PH004 (no
-- such session), PH005 (expired, or converted to somebody else).
declare
  v_now constant timestamptz := clock_timestamp();
  v_guest platform.guest_sessions;
  v_count integer;
begin
  if p_guest_session_id is null then
    perform platform.refuse_value('guest_session_id', 'must not be null');
  elsif p_user_id is null then
    perform platform.refuse_value('user_id', 'must not be null');
  end if;
  select * into v_guest from platform.guest_sessions g where g.id = p_guest_session_id for update;
  if not found then
    raise exception using errcode = 'PH004', column = 'guest_session_id',
      message = format('guest_session_id: there is no guest session %s', p_guest_session_id);
  elsif lower(v_guest.metadata ->> 'converted_to_user_id') <> p_user_id::text then
    raise exception using errcode = 'PH005', column = 'guest_session_id',
      message = format('guest_session_id: it was converted to another user at %s',
        v_guest.metadata ->> 'converted_at');
  elsif v_guest.metadata ->> 'converted_to_user_id' is null and v_guest.expires_at <= v_now then
    raise exception using errcode = 'PH005', column = 'guest_session_id',
      message = format('guest_session_id: it expired at %s', v_guest.expires_at),
      hint = 'An expired session proves nothing about who somebody is.';
  end if;
  update platform.guest_sessions g
  set metadata = coalesce(g.metadata, '{}')
    || jsonb_build_object('converted_to_user_id', p_user_id, 'converted_at', v_now)
  where g.id = p_guest_session_id and g.metadata ->> 'converted_to_user_id' is null;
  update platform.bookings b set customer_id = p_user_id, guest_session_id = null
  where b.guest_session_id = p_guest_session_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.convert_guest_to_user(uuid, uuid) is
  'Give the bookings of a guest to the user that the guest became; returns how many.';

create or replace function platform.claim_guest_bookings(p_session_token text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- The user who calls takes over the bookings of the guest session with this token. Returns how many; safe to
-- repeat. Locks as convert_guest_to_user does. Raises 42501 (nobody is logged in), PH004 (no session has this
-- token), PH005 (expired, or another's).
declare
  v_user constant uuid := platform.platform_user_id();
  v_guest uuid;
begin
  if v_user is null then
    raise exception using errcode = 'insufficient_privilege',
      message = 'claim_guest_bookings: nobody is logged in',
      hint = 'Call it with the access token of the user that has just registered.';
  end if;
  select g.id into v_guest from platform.guest_sessions g where g.session_token = p_session_token;
  if not found then
    raise exception using errcode = 'PH004', column = 'session_token',
      message = 'session_token: no guest session has it';
  end if;
  return platform.convert_guest_to_user(v_guest, v_user);
end
$$;
comment on function platform.claim_guest_bookings(text) is
  'Take over the bookings of a guest session by its token; returns how many.';

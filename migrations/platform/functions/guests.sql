-- The step from guest to user (SPEC C5).

create or replace function platform.cleanup_expired_guest_sessions(p_limit integer default 5000) returns integer
language plpgsql as $$
-- End up to p_limit (1..100000) guest sessions whose time is over, oldest first: those without a booking are
-- deleted, the others stay for their bookings and are marked with expired_at. Returns how many ended.
-- Locks the sessions, and looks for bookings only then: one that is being made holds its session, which is
-- skipped. Raises PH001.
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
  is 'End a batch of expired guest sessions: deleted, or marked when a booking needs them; returns how many.';

create or replace function platform.convert_guest_to_user(p_guest_session_id uuid, p_user_id uuid) returns integer
language plpgsql as $$
-- The guest registered: its bookings become the user's, in one statement, so that each keeps exactly one
-- owner. Safe to repeat. Returns how many bookings moved, 0 when the guest had none.
-- Locks the session, then its bookings. Raises PH001, PH004 (no such session), PH005 (expired, or converted
-- to somebody else).
declare
  v_now constant timestamptz := clock_timestamp();
  v_guest platform.guest_sessions;
  v_count integer;
begin
  if p_guest_session_id is null then
    perform packhorse.refuse_argument('guest_session_id', 'must not be null');
  elsif p_user_id is null then
    perform packhorse.refuse_argument('user_id', 'must not be null');
  end if;
  select * into v_guest from platform.guest_sessions g where g.id = p_guest_session_id for update;
  if not found then
    raise exception using errcode = 'PH004', column = 'guest_session_id',
      message = format('guest_session_id: there is no guest session %s', p_guest_session_id);
  elsif v_guest.converted_user_id <> p_user_id then
    raise exception using errcode = 'PH005', column = 'guest_session_id',
      message = format('guest_session_id: it was converted to another user at %s', v_guest.converted_at);
  elsif v_guest.converted_user_id is null and v_guest.expires_at <= v_now then
    raise exception using errcode = 'PH005', column = 'guest_session_id',
      message = format('guest_session_id: it expired at %s', v_guest.expires_at),
      hint = 'An expired session proves nothing about who somebody is.';
  end if;
  update platform.guest_sessions g set converted_at = v_now, converted_user_id = p_user_id
  where g.id = p_guest_session_id and g.converted_user_id is null;
  update platform.bookings b set customer_id = p_user_id, guest_session_id = null where b.guest_session_id = p_guest_session_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.convert_guest_to_user(uuid, uuid) is 'Give the bookings of a guest to the user that the guest became; returns how many.';

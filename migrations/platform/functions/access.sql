-- Who asks (SPEC C5, O9): a user or a guest of the host, by the claims and headers that PostgREST sets. The
-- policies of the host's roles call these.

create or replace function platform.platform_user_id() returns uuid
language plpgsql stable as $$
-- The user of the request: `sub` of the claims. Null when there is none, when it is no UUID, and when the
-- claims are no JSON: no statement fails by what a token holds.
declare
  v_subject text;
begin
  v_subject := nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub';
  return case when lower(v_subject) ~ '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then v_subject::uuid end;
exception when data_exception or program_limit_exceeded then -- claims that are no JSON have no subject
  return null;
end
$$;
comment on function platform.platform_user_id() is
  'The user of the request by its claims; null when there is none.';

create or replace function platform.host_table(p_name text) returns regclass
language sql stable as $$
-- A table of the host, beside ours or in public; null without one. Functions with the owner's rights read it,
-- and `profiles` decides who is an admin, so it counts only when it is the platform owner's, the database
-- owner's or a superuser's: anybody may create a table in a schema that is open to all.
  select c.oid::regclass
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  join pg_roles o on o.oid = c.relowner
  where c.relname = p_name::name and c.relkind in ('r', 'p')
    and n.nspname in ((parse_ident('platform.x'))[1]::name, 'public')
    and (o.rolsuper or o.oid
      = (select t.relowner from pg_class t where t.oid = 'platform.companies'::regclass::oid)
      or o.oid = (select d.datdba from pg_database d where d.datname = current_database()))
  order by n.nspname = 'public' limit 1;
$$;
comment on function platform.host_table(text) is
  'A table of the host that may be believed; null without one.';

create or replace function platform.platform_is_admin() returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
-- Is the user of the request an admin? By app_metadata.role or user_role of its claims, which the host signs,
-- or by its row in profiles. Never by user_metadata, which users write themselves. SECURITY DEFINER: users
-- need not read the profiles of others.
declare
  v_claims jsonb;
  v_user constant uuid := platform.platform_user_id();
  v_profiles constant regclass := platform.host_table('profiles');
  v_key text;
  v_found boolean := false;
begin
  begin
    v_claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
  exception when data_exception or program_limit_exceeded then
    return false;
  end;
  if v_claims #>> '{app_metadata,role}' = 'admin' or v_claims ->> 'user_role' = 'admin' then
    return true;
  elsif v_user is null or v_profiles is null
    or not has_column_privilege(v_profiles::oid, 'role', 'select') is not distinct from true then
    return false;
  end if;
  select a.attname into v_key from pg_attribute a
  where a.attrelid = v_profiles::oid and a.attname in ('user_id', 'id') and a.atttypid = 'uuid'::regtype::oid
    and not a.attisdropped
  order by a.attname desc limit 1;
  if v_key is not null then
    execute format('select exists (select from %s p where p.%I = $1 and p.role::text = %L)', v_profiles,
      v_key, 'admin') into v_found using v_user;
  end if;
  return v_found;
end
$$;
comment on function platform.platform_is_admin() is
  'Is the user of the request an admin, by its claims or its profile?';

create or replace function platform.current_guest_token() returns text
language plpgsql stable as $$
-- The token that the guest sent: the setting packhorse.guest_token, else the header x-guest-session. Null
-- when there is none, whatever the headers hold. Its name is put together here: `packhorse.` is a qualifier,
-- in whose place the migrator puts the schema of the queue.
declare
  v_headers jsonb;
begin
  if current_setting('packhorse' || '.guest_token', true) <> '' then
    return current_setting('packhorse' || '.guest_token', true);
  end if;
  v_headers := nullif(current_setting('request.headers', true), '')::jsonb;
  return case when jsonb_typeof(v_headers -> 'x-guest-session') = 'string'
    then nullif(v_headers ->> 'x-guest-session', '') end;
exception when data_exception or program_limit_exceeded then -- headers that are no JSON have no token
  return null;
end
$$;
comment on function platform.current_guest_token() is
  'The token of the guest session that the request carries; null without one.';

create or replace function platform.current_guest_session_id() returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
-- The unexpired session with the token of the request, else null. SECURITY DEFINER: policies of bookings ask
-- for roles that see no session.
begin
  return (select g.id from platform.guest_sessions g
    where g.session_token = platform.current_guest_token() and g.expires_at > clock_timestamp());
end
$$;
comment on function platform.current_guest_session_id() is
  'The unexpired guest session of the request; null without one.';

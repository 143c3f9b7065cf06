-- Tokens of the page (SPEC O6): made, used, revoked. The database sees the SHA-256 of a token, never the
-- token.

create or replace function packhorse.create_access_token(
  p_name text, p_role text, p_sha256 bytea, p_operator text default session_user, p_reason text default null
) returns uuid
language plpgsql set lock_timeout = '500ms' as $$
-- A new token; its id. Recorded. Raises PH001 for a name that a token in force has, and for what is out of
-- range.
declare
  v_id uuid;
begin
  if p_name is null or length(p_name) not between 1 and 100 or p_name ~ '[[:cntrl:]]' then
    perform packhorse.refuse_argument('name',
      'must have 1 to 100 characters, none of them a control character');
  elsif p_role is null or p_role not in ('viewer', 'operator', 'admin') then
    perform packhorse.refuse_argument('role', format('there is no role %L', left(p_role, 60)),
      'One of: viewer, operator, admin.');
  elsif p_sha256 is null or length(p_sha256) <> 32 then
    perform packhorse.refuse_argument('sha256', 'must be a SHA-256, 32 bytes');
  end if;
  insert into packhorse.access_tokens (name, role, token_sha256, created_by)
  values (p_name, p_role, p_sha256, p_operator)
  on conflict do nothing returning id into v_id;
  if v_id is null then
    perform packhorse.refuse_argument('name', format('there is a token %L in force', p_name),
      'Choose another name, or revoke that one first.');
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('create_access_token', p_operator, p_reason,
    jsonb_build_object('name', p_name, 'role', p_role, 'token', v_id));
  return v_id;
end
$$;
comment on function packhorse.create_access_token(text, text, bytea, text, text) is
  'A new token of the page; its id.';

create or replace function packhorse.use_access_token(p_sha256 bytea)
returns table (id uuid, name text, role text)
language sql as $$
-- The token in force that has this hash, which is noted as used now; no row when there is none.
  update packhorse.access_tokens t set last_used_at = clock_timestamp()
  where t.token_sha256 = p_sha256 and t.revoked_at is null
  returning t.id, t.name, t.role;
$$;
comment on function packhorse.use_access_token(bytea) is
  'The token in force with this hash; its use is noted.';

create or replace function packhorse.revoke_access_token(p_name text, p_operator text default session_user,
  p_reason text default null) returns boolean
language plpgsql set lock_timeout = '500ms' as $$
-- End a token and its sessions; false when no token in force has this name. Recorded.
declare
  v_id uuid;
begin
  update packhorse.access_tokens t set revoked_at = clock_timestamp()
  where t.name = p_name and t.revoked_at is null returning t.id into v_id;
  if v_id is null then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('revoke_access_token', p_operator, p_reason, jsonb_build_object('name', p_name, 'token', v_id));
  return true;
end
$$;
comment on function packhorse.revoke_access_token(text, text, text) is
  'End a token of the page; false when there is none of this name.';

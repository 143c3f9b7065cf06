-- Tokens of the page (SPEC O6) and of producers (SPEC W8): made, used, revoked. The database sees the SHA-256
-- of a token, never the token.

create or replace function packhorse.create_access_token(
  p_name text, p_role text, p_sha256 bytea, p_operator text default session_user, p_reason text default null,
  p_queues text[] default null
) returns uuid
language plpgsql set lock_timeout = '500ms' as $$
-- A new token; its id. Recorded. p_queues: those of a producer, one at least. Raises PH001 for a name that a
-- token in force has, and for what is out of range, PH002 for a queue that does not exist.
declare
  v_id uuid;
begin
  if p_name is null or length(p_name) not between 1 and 100 or p_name ~ '[[:cntrl:]]' then
    perform packhorse.refuse_argument('name',
      'must have 1 to 100 characters, none of them a control character');
  elsif p_role is null or p_role not in ('viewer', 'operator', 'admin', 'producer') then
    perform packhorse.refuse_argument('role', format('there is no role %L', left(p_role, 60)),
      'One of: viewer, operator, admin, producer.');
  elsif p_sha256 is null or length(p_sha256) <> 32 then
    perform packhorse.refuse_argument('sha256', 'must be a SHA-256, 32 bytes');
  elsif (p_role = 'producer') <> (coalesce(cardinality(p_queues), 0) > 0) then
    perform packhorse.refuse_argument('queues',
      case p_role when 'producer' then 'a producer names the queues that it may use'
        else 'only a producer has queues' end);
  end if;
  perform packhorse.require_queue(q.name) from unnest(p_queues) as q (name);
  insert into packhorse.access_tokens (name, role, token_sha256, created_by, queues)
  values (p_name, p_role, p_sha256, p_operator, case when p_role = 'producer' then p_queues end)
  on conflict do nothing returning id into v_id;
  if v_id is null then
    perform packhorse.refuse_argument('name', format('there is a token %L in force', p_name),
      'Choose another name, or revoke that one first.');
  end if;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('create_access_token', p_operator, p_reason,
    jsonb_strip_nulls(jsonb_build_object('name', p_name, 'role', p_role, 'token', v_id, 'queues', p_queues)));
  return v_id;
end
$$;
comment on function packhorse.create_access_token(text, text, bytea, text, text, text[]) is
  'A new token of the page or of a producer; its id.';

create or replace function packhorse.use_access_token(p_sha256 bytea)
returns table (id uuid, name text, role text)
language sql as $$
-- The token of the page in force that has this hash, which is noted as used now; no row when there is none.
  update packhorse.access_tokens t set last_used_at = clock_timestamp()
  where t.token_sha256 = p_sha256 and t.revoked_at is null and t.role <> 'producer'
  returning t.id, t.name, t.role;
$$;
comment on function packhorse.use_access_token(bytea) is
  'The token in force with this hash; its use is noted.';

create or replace function packhorse.enqueue_by_token(p_sha256 bytea, p_messages jsonb)
returns table (message_id bigint, duplicate boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- enqueue_messages for a caller whom a producer's token names. Raises PH001 for `token` when none in force
-- has this hash and for `token.queues` when it may not use one of the queues, and what enqueue_messages
-- raises.
declare
  v_token packhorse.access_tokens;
  v_other record;
begin
  select * into v_token from packhorse.access_tokens t
  where t.token_sha256 = p_sha256 and t.revoked_at is null and t.role = 'producer';
  if not found then
    perform packhorse.refuse_argument('token', 'no token of a producer in force is this one',
      'packhorse token create NAME --role producer --queue QUEUE makes one; it is shown once.');
  end if;
  if jsonb_typeof(p_messages) = 'array' then
    select e.ordinality as place, e.value ->> 'queue' as queue into v_other
    from jsonb_array_elements(p_messages) with ordinality e
    where e.value ->> 'queue' <> all (v_token.queues) order by e.ordinality limit 1;
    if found then
      perform packhorse.refuse_argument('token.queues',
        format('messages[%s] is for the queue %L, which this token may not use',
          v_other.place, left(v_other.queue, 100)),
        format('It may use: %s.', array_to_string(v_token.queues, ', ')));
    end if;
  end if;
  if v_token.last_used_at is null or v_token.last_used_at < clock_timestamp() - interval '1 minute' then
    update packhorse.access_tokens t set last_used_at = clock_timestamp()
    where t.id = (select l.id from packhorse.access_tokens l where l.id = v_token.id
      for no key update skip locked);
  end if;
  return query select e.message_id, e.duplicate from packhorse.enqueue_messages(p_messages) e;
end
$$;
comment on function packhorse.enqueue_by_token(bytea, jsonb) is
  'Put messages on queues that the token of a producer names; ids in order.';

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

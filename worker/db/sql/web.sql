-- name: web_begin
-- Begin a question of the page: it changes nothing, ends after a second, waits for no lock, and takes one
-- core: what many look at must not take all of them from who works.
begin read only;
set local statement_timeout = '1s';
set local lock_timeout = '100ms';
set local jit = off;
set local max_parallel_workers_per_gather = 0

-- name: web_begin_as_reader
-- The same with the rights of packhorse_reader.
begin read only;
set local statement_timeout = '1s';
set local lock_timeout = '100ms';
set local jit = off;
set local max_parallel_workers_per_gather = 0;
set local role packhorse_reader

-- name: web_many_cores
-- What a person has asked for once, a count before an act, may take as many as the server gives to anybody.
set local max_parallel_workers_per_gather = default

-- name: create_access_token
-- A new token; its id.
select packhorse.create_access_token(%s, %s, %s, %s, %s, %s)::text;

-- name: use_access_token
-- The token in force with this hash, noted as used.
select id::text, name, role from packhorse.use_access_token(%s);

-- name: access_tokens_in_force
-- Tokens in force, by id.
select id::text, name, role from packhorse.access_tokens where id = any (%s::uuid[]) and revoked_at is null
  and role <> 'producer';

-- name: has_access_tokens
-- Is any token of the page in force?
select exists (
  select from packhorse.access_tokens where revoked_at is null and role <> 'producer');

-- name: list_access_tokens
-- Tokens, those in force first; none of their hashes.
select id::text, name, role, queues, created_at, created_by, last_used_at, revoked_at
from packhorse.access_tokens
order by revoked_at is not null, name, created_at limit 1000;

-- name: revoke_access_token
-- End a token; false when there is none of this name.
select packhorse.revoke_access_token(%s, %s, %s);

-- name: enqueue_by_token
-- Ids of new messages, or of those that they repeat, in order.
select message_id, duplicate from packhorse.enqueue_by_token(%s, %s);

-- name: enqueue_by_token_once
-- The same with a dedup_key for each message, which its place is a part of when there may be many.
select e.message_id, e.duplicate
from packhorse.enqueue_by_token(%(token)s, (
  select pg_catalog.jsonb_agg(case when pg_catalog.jsonb_typeof(m.value) <> 'object' then m.value
    else m.value || pg_catalog.jsonb_build_object(
      'dedup_key', %(key)s::text || case when %(many)s then ':' || m.place else '' end,
      'dedup_window', coalesce(m.value ->> 'dedup_window', %(window)s)) end order by m.place)
  from pg_catalog.jsonb_array_elements(%(messages)s::jsonb) with ordinality as m (value, place))) e;

-- name: etta_conversations_copy
-- Conversations of the assistant's old name, with their ids. One without a person, or whose person is gone,
-- is explained.
with read as materialized (select s.id, to_jsonb(s) as j from {source} s where {in_batch}),
  judged as materialized (
  select r.id, r.j, case when r.j ->> 'user_id' is null then 'no user'
    when not {user_exists} then 'the user is gone' end as hindered, t.id is not null as is_there
  from read r left join lateral (select a.id from platform.amara_conversations a where a.id = r.id limit 1) t
    on true
), copied as (
  insert into platform.amara_conversations (id, user_id, locale, is_active, last_message_at, created_at,
    updated_at)
  select g.id, (g.j ->> 'user_id')::uuid, coalesce(g.j ->> 'locale', 'en'),
    coalesce((g.j ->> 'is_active')::boolean, true),
    coalesce((g.j ->> 'last_message_at')::timestamptz, (g.j ->> 'created_at')::timestamptz,
      statement_timestamp()),
    coalesce((g.j ->> 'created_at')::timestamptz, statement_timestamp()),
    coalesce((g.j ->> 'updated_at')::timestamptz, (g.j ->> 'created_at')::timestamptz, statement_timestamp())
  from judged g where g.hindered is null and not g.is_there on conflict do nothing returning id
), told as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value)
  select %(backfill)s, %(label)s, g.id::text, 'skipped', g.hindered, g.j from judged g
  where g.hindered is not null and not g.is_there
  on conflict (backfill, source_table, source_id) do update
  set reason = excluded.reason, old_value = excluded.old_value, recorded_at = excluded.recorded_at
    where l.reason <> excluded.reason or l.old_value is distinct from excluded.old_value
  returning (xmax = 0) as is_new
), untold as (
  delete from platform.platform_backfill_rows l
  where l.backfill = %(backfill)s and l.source_table = %(label)s
    and l.source_id = any (array(select c.id::text from copied c))
)
select (select count(*) from copied), (select count(*) from told where is_new);

-- name: etta_messages_copy
-- Messages, after their conversations. One whose conversation was not copied is explained.
with read as materialized (select s.id, to_jsonb(s) as j from {source} s where {in_batch}),
  judged as materialized (
  select r.id, r.j, case
    when (select true from platform.amara_conversations c
      where c.id = (r.j ->> 'conversation_id')::uuid limit 1) is null then 'its conversation was not copied'
    when coalesce(r.j ->> 'role', '') not in ('user', 'assistant', 'system') then 'another role'
    when r.j ->> 'content' is null then 'no content' end as hindered,
    t.id is not null as is_there
  from read r left join lateral (select a.id from platform.amara_messages a where a.id = r.id limit 1) t
    on true
), copied as (
  insert into platform.amara_messages (id, conversation_id, role, content, tool_calls, metadata, created_at)
  select g.id, (g.j ->> 'conversation_id')::uuid, g.j ->> 'role', g.j ->> 'content',
    nullif(g.j -> 'tool_calls', 'null'), nullif(g.j -> 'metadata', 'null'),
    coalesce((g.j ->> 'created_at')::timestamptz, statement_timestamp())
  from judged g where g.hindered is null and not g.is_there on conflict do nothing returning id
), told as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value)
  select %(backfill)s, %(label)s, g.id::text, 'skipped', g.hindered, g.j from judged g
  where g.hindered is not null and not g.is_there
  on conflict (backfill, source_table, source_id) do update
  set reason = excluded.reason, old_value = excluded.old_value, recorded_at = excluded.recorded_at
    where l.reason <> excluded.reason or l.old_value is distinct from excluded.old_value
  returning (xmax = 0) as is_new
), untold as (
  delete from platform.platform_backfill_rows l
  where l.backfill = %(backfill)s and l.source_table = %(label)s
    and l.source_id = any (array(select c.id::text from copied c))
)
select (select count(*) from copied), (select count(*) from told where is_new);

-- name: etta_user_key
-- The foreign key of amara_conversations.user_id: its table and column; no row when the host has none.
select n.nspname::text, c.relname::text, a.attname::text from pg_constraint k join pg_class c
  on c.oid = k.confrelid join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = k.confrelid and a.attnum = k.confkey[1] join pg_attribute u
  on u.attrelid = k.conrelid and u.attnum = k.conkey[1]
where k.conrelid = 'platform.amara_conversations'::regclass and k.contype = 'f' and u.attname = 'user_id';

-- name: etta_user_exists
-- Does the foreign key accept the person?
exists (select from {users} u where u.{user} = (r.j ->> 'user_id')::uuid);

-- name: etta_accounts
-- Every row of the source: copied, explained, or missing.
select count(*), count(t.id), count(*) filter (where t.id is null and l.source_id is not null),
  count(*) filter (where t.id is null and l.source_id is null),
  (array_agg(s.id::text order by s.id) filter (where t.id is null and l.source_id is null))[1:10]
from {source} s left join {target} t on t.id = s.id
left join platform.platform_backfill_rows l
  on l.backfill = %(backfill)s and l.source_table = %(label)s and l.source_id = s.id::text;

-- name: etta_take_back
-- The way back: copies of these rows go, unless the assistant goes on with them.
delete from {target} t using {source} s
where {in_batch} and t.id = s.id and to_jsonb(t) -> {time} = to_jsonb(s) -> {time} and not {in_use};

-- name: etta_in_use
-- A conversation in use has messages: those that were copied are taken back first.
exists (select from platform.amara_messages m where m.conversation_id = t.id);

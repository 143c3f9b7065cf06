-- name: sessions_facts
-- What an operator wants to know before: both tables, and people that nobody knows.
with old as (
  select count(*) as rows, count(*) filter (where s.expires_at > statement_timestamp()) as active,
    max(s.created_at) as newest from {source} s
), people as (
  select platform.normalize_phone(s.phone) as person, count(*) as sessions from {source} s group by 1
), known as (
  select p.person, p.sessions,
    exists (select from platform.whatsapp_users u where platform.normalize_phone(u.wa_id) = p.person
    or platform.normalize_phone(u.phone_number) = p.person) as is_known
  from people p
)
select o.rows, o.active, o.newest, pg_total_relation_size(to_regclass(%(source)s)) as bytes,
  (select count(*) from platform.agent_chat_sessions t) as target_rows,
  coalesce((select sum(k.sessions) from known k where not k.is_known), 0)::bigint as unknown
from old o;

-- name: sessions_unknown_examples
-- Ten sessions of people that nobody knows; ids, for phones are not shown.
select s.id::text from {source} s
where not exists (select from platform.whatsapp_users u
  where platform.normalize_phone(u.wa_id) = platform.normalize_phone(s.phone)
  or platform.normalize_phone(u.phone_number) = platform.normalize_phone(s.phone))
order by s.id limit 10;

-- name: sessions_column
-- The mark of migrated rows; and what updated_at was before somebody changed one, as the source had it.
alter table platform.agent_chat_sessions add column if not exists migrated_from_simple boolean default false,
  add column if not exists migrated_changed_from timestamptz;

-- name: sessions_mark_function
-- Who changes a migrated session makes it his own: neither a repeated run nor the way back touches it. Time
-- ends sessions, which is no change.
create or replace function platform.mark_migrated_session() returns trigger language plpgsql as $function$
begin
  if to_jsonb(new) - '{{status,ended_at,updated_at}}'::text[] = to_jsonb(old)
    - '{{status,ended_at,updated_at}}'::text[]
    and (new.status is not distinct from old.status or new.status = 'expired') then
    new.updated_at := old.updated_at;
  elsif old.migrated_changed_from is null then
    new.migrated_changed_from := coalesce(old.updated_at, '-infinity');
  end if;
  return new;
end
$function$;

-- name: sessions_mark_comment
-- For whoever meets it.
comment on function platform.mark_migrated_session() is
  'Of the backfill agent_sessions: remembers that a migrated session was changed.';

-- name: sessions_mark_revoke
-- Nobody calls it.
revoke all on function platform.mark_migrated_session() from {roles};

-- name: sessions_mark_trigger
-- Its name sorts last: it sees what other triggers have done.
create or replace trigger zz_mark_migrated_session before update on platform.agent_chat_sessions for each row
  when (old.migrated_from_simple) execute function platform.mark_migrated_session();

-- name: sessions_view
-- The old table's shape for readers that are not moved yet.
create or replace view platform.ai_agent_sessions_compat {options} as
select s.id, s.user_phone::text as phone, s.context, s.created_at, s.updated_at, s.expires_at
from platform.agent_chat_sessions s where s.migrated_from_simple;

-- name: sessions_view_comment
-- For whoever meets it.
comment on view platform.ai_agent_sessions_compat is
  'Migrated sessions in the shape of ai_agent_sessions; until the clean-up of the backfill agent_sessions.';

-- name: sessions_any_there
-- Has the target a row of the batch? Ids are kept; the pages of its index that say no are those that the copy
-- writes to.
select exists (select from {source} s where {in_batch}
  and (select true from platform.agent_chat_sessions t where t.id = s.id limit 1));

-- name: sessions_there
-- A row of the target with the id of one of the source.
left join lateral (select a.id, a.migrated_from_simple from platform.agent_chat_sessions a
  where a.id = s.id limit 1) t on true;

-- name: sessions_forget_stale
-- Copies that nobody has changed, of rows that the source has changed since: they are copied again. Here and
-- below, subqueries with a limit are found by their index, row by row, whatever the planner thinks of a table
-- that grows meanwhile.
delete from platform.agent_chat_sessions d where d.id = any (array(
  select s.id from {source} s
  cross join lateral (select a.* from platform.agent_chat_sessions a where a.id = s.id limit 1) t
  where {in_batch} and t.migrated_from_simple and t.migrated_changed_from is null
    and (s.context is distinct from t.context or s.expires_at is distinct from t.expires_at
      or s.updated_at is distinct from t.updated_at
      or s.phone is distinct from t.user_phone)));

-- name: sessions_make_way
-- Of several active rows of one phone the newest is taken: an older copy that nobody has changed gives way,
-- and is explained.
with newest as materialized (
  select distinct on (platform.normalize_phone(s.phone)) s.id, s.updated_at,
    platform.normalize_phone(s.phone) as person
  from {source} s
  where {in_batch} and s.expires_at > statement_timestamp()
    and (select true from platform.agent_chat_sessions t where t.id = s.id limit 1) is null
  order by platform.normalize_phone(s.phone), s.updated_at desc nulls last, s.id desc
), older as materialized (
  select t.id, n.id as taken from newest n cross join lateral (
    select a.id, a.migrated_from_simple and a.migrated_changed_from is null as is_copy,
      count(*) over () as active from platform.agent_chat_sessions a
    where a.status = 'active' and platform.normalize_phone(a.user_phone) = n.person limit 2) t
  cross join lateral (select s.updated_at from {source} s where s.id = t.id limit 1) o
  where t.is_copy and t.active = 1
    and (coalesce(o.updated_at, '-infinity'), t.id) < (coalesce(n.updated_at, '-infinity'), n.id)
), gone as (
  delete from platform.agent_chat_sessions t using older o where t.id = o.id returning t.id
), explained as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value, target_id)
  select %(backfill)s, %(label)s, o.id::text, 'skipped', 'a newer session of this phone is active',
    to_jsonb(s), o.taken::text
  from older o join gone g on g.id = o.id join {source} s on s.id = o.id
  on conflict (backfill, source_table, source_id) do update
  set outcome = excluded.outcome, reason = excluded.reason, old_value = excluded.old_value,
    target_id = excluded.target_id, recorded_at = excluded.recorded_at
  returning 1
)
select count(*) from explained;

-- name: sessions_copy
-- Rows of the batch that are not there become sessions with their old ids, or are explained.
with fresh as materialized (
  -- the normal form costs more than all else of an expired row: only where it is compared
  select s.*,
    case when s.expires_at > statement_timestamp() or (select exists (select from platform.whatsapp_users))
      then platform.normalize_phone(s.phone) end as person,
    coalesce(s.expires_at > statement_timestamp(), false) as is_active, {is_taken} as is_taken
  from {source} s {there} where {in_batch} and {is_new}
), ranked as (
  select f.*,
    row_number() over (partition by case when f.is_active then coalesce(f.person, f.id::text) end collate "C"
      order by f.updated_at desc nulls last, f.id desc) as place from fresh f
), judged as materialized (
  select r.*, case when r.is_taken then 'a session with this id is there already'
    when not r.is_active then null
    when r.place > 1 then 'a newer session of this phone is active'
    when (select true from platform.agent_chat_sessions t
      where t.status = 'active' and platform.normalize_phone(t.user_phone) = r.person limit 1)
      then 'an active session of this phone is there already' end as hindered
  from ranked r
), copied as (
  insert into platform.agent_chat_sessions (id, user_id, user_phone, agent_type, context, status, created_at,
    updated_at, last_message_at, expires_at, ended_at, migrated_from_simple)
  select j.id,
    case when j.person is not null
      then (select case when count(*) = 1 then (array_agg(u.id))[1] end from platform.whatsapp_users u
      where platform.normalize_phone(u.wa_id) = j.person
        or platform.normalize_phone(u.phone_number) = j.person) end,
    j.phone, 'generic', j.context, case when j.is_active then 'active' else 'expired' end, j.created_at,
    j.updated_at, j.updated_at, j.expires_at,
    case when not j.is_active then j.expires_at end, true
  from judged j where j.hindered is null
  {on_conflict}
  returning id
), told as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value)
  select %(backfill)s, %(label)s, j.id::text, 'skipped',
    coalesce(j.hindered, case when j.is_active then 'an active session of this phone is there already'
      else 'a unique key of agent_chat_sessions refuses it' end), w.whole
  from judged j cross join lateral (select to_jsonb(s) as whole from {source} s where s.id = j.id limit 1) w
  where not exists (select from copied c where c.id = j.id)
  on conflict (backfill, source_table, source_id) do update
  set outcome = excluded.outcome, reason = excluded.reason, old_value = excluded.old_value,
    recorded_at = excluded.recorded_at
    where l.reason <> excluded.reason or l.old_value is distinct from excluded.old_value
  returning (xmax = 0) as is_new
), untold as (
  delete from platform.platform_backfill_rows l
  where l.backfill = %(backfill)s and l.source_table = %(label)s
    and l.source_id = any (array(select c.id::text from copied c))
    and (select exists (select from platform.platform_backfill_rows e where e.backfill = %(backfill)s))
)
select (select count(*) from copied), (select count(*) from told where is_new);

-- name: sessions_explain_changed
-- Rows that the source has changed after somebody had changed their copy: the copy stays, the row is in the
-- ledger.
insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
  old_value, target_id)
select %(backfill)s, %(label)s, s.id::text, 'changed',
  'the row and its copy were both changed; the copy stays', to_jsonb(s), t.id::text
from {source} s
cross join lateral (select a.* from platform.agent_chat_sessions a where a.id = s.id limit 1) t
where {in_batch} and t.migrated_from_simple and t.migrated_changed_from <> coalesce(s.updated_at, '-infinity')
on conflict (backfill, source_table, source_id) do update
set outcome = excluded.outcome, reason = excluded.reason, old_value = excluded.old_value,
  recorded_at = excluded.recorded_at where l.old_value is distinct from excluded.old_value;

-- name: sessions_accounts
-- Every row of the source: copied, explained, or missing. stale: the source has changed it since.
select count(*) as source, count(*) filter (where a.is_copied) as migrated,
  count(*) filter (where not a.is_copied and a.is_told) as explained,
  count(*) filter (where not a.is_copied and not a.is_told) as missing,
  count(*) filter (where a.is_stale) as stale,
  (array_agg(a.id::text order by a.id) filter (where not a.is_copied and not a.is_told))[1:10] as examples
from (
  select s.id, coalesce(t.migrated_from_simple, false) as is_copied, l.source_id is not null as is_told,
    coalesce(t.migrated_from_simple, false) and case
      when t.migrated_changed_from is null
        then s.context is distinct from t.context or s.expires_at is distinct from t.expires_at
        or s.updated_at is distinct from t.updated_at or s.phone is distinct from t.user_phone
      else t.migrated_changed_from
        <> coalesce(s.updated_at, '-infinity') and (l.old_value ->> 'updated_at')::timestamptz
          is distinct from s.updated_at end as is_stale
  from {source} s left join platform.agent_chat_sessions t on t.id = s.id
  left join platform.platform_backfill_rows l
    on l.backfill = %(backfill)s and l.source_table = %(label)s and l.source_id = s.id::text
) a;

-- name: sessions_by_agent
-- Sessions by agent, and those of the last five minutes: new code makes them.
select t.agent_type, count(*) as sessions,
  count(*) filter (where t.created_at > statement_timestamp() - interval '5 minutes') as fresh,
  count(*) filter (where t.migrated_from_simple) as migrated from platform.agent_chat_sessions t
  group by t.agent_type order by 2 desc, 1 limit 20;

-- name: sessions_orphans
-- Copies whose row the source has no more: old code has deleted it since.
select count(*) from platform.agent_chat_sessions t
where t.migrated_from_simple and not exists (select from {source} s where s.id = t.id);

-- name: sessions_remember
-- Ids of the migrated rows, a thousand in a row: the mark goes.
insert into packhorse.backfill_copies (backfill, place, ids)
select %(backfill)s, n.place, array_agg(n.id::text order by n.id)
from (select t.id, (row_number() over (order by t.id) - 1) / 1000 as place from platform.agent_chat_sessions t
  where t.migrated_from_simple) n group by n.place;

-- name: sessions_drop_view
-- Its time is over.
drop view if exists platform.ai_agent_sessions_compat;

-- name: sessions_drop_trigger
-- With the mark goes who kept it.
drop trigger if exists zz_mark_migrated_session on platform.agent_chat_sessions;

-- name: sessions_drop_function
-- The same.
drop function if exists platform.mark_migrated_session();

-- name: sessions_drop_columns
-- The mark itself.
alter table platform.agent_chat_sessions drop column if exists migrated_from_simple,
  drop column if exists migrated_changed_from;

-- name: sessions_has_mark
-- Is the mark there?
select exists (select from pg_attribute a
  where a.attrelid = 'platform.agent_chat_sessions'::regclass and a.attname = 'migrated_from_simple'
    and not a.attisdropped);

-- name: sessions_take_back
-- The way back: the next copies that nobody has changed; how many, and the last id that was looked at.
with looked as (
  select t.id, t.migrated_from_simple and t.migrated_changed_from is null as is_copy
  from platform.agent_chat_sessions t
  where t.id > coalesce(%(after)s::uuid, '00000000-0000-0000-0000-000000000000') order by t.id limit %(limit)s
), gone as (
  delete from platform.agent_chat_sessions t using looked l where l.is_copy and t.id = l.id returning 1
)
select (select count(*) from gone), (select (array_agg(l.id order by l.id desc))[1]::text from looked l);

-- name: sessions_changed
-- Copies that somebody has changed: the first hundred, and how many.
select count(*), coalesce((array_agg(t.id::text order by t.id))[1:100], array[]::text[])
from platform.agent_chat_sessions t
where t.migrated_from_simple and t.migrated_changed_from is not null;

-- name: sessions_old_table
-- The old table as it was.
create table if not exists {source} (
  id uuid not null default gen_random_uuid() primary key,
  phone text not null,
  context jsonb default '{{}}',
  created_at timestamptz default clock_timestamp(),
  updated_at timestamptz default clock_timestamp(),
  expires_at timestamptz default clock_timestamp() + interval '24 hours'
);

-- name: sessions_old_secured
-- It was made by the owner, and nobody else has rights on it yet.
alter table {source} enable row level security;

-- name: sessions_old_revoke
-- What default privileges of the host have given: they are to be given again by hand.
revoke all on {source} from {roles};

-- name: sessions_old_phone_index
-- As the source had it.
create index if not exists {index} on {source} (phone);

-- name: sessions_old_expires_index
-- As the source had it.
create index if not exists {index} on {source} (expires_at);

-- name: sessions_restore_explained
-- Rows that were never copied, and those that the source had changed: as the ledger has them.
insert into {source} (id, phone, context, created_at, updated_at, expires_at)
select r.id, r.phone, r.context, r.created_at, r.updated_at, r.expires_at
from platform.platform_backfill_rows l cross join lateral jsonb_populate_record(null::{source}, l.old_value) r
where l.backfill = %(backfill)s and l.old_value is not null on conflict do nothing;

-- name: sessions_restore_copied
-- The migrated rows, as they are now.
insert into {source} (id, phone, context, created_at, updated_at, expires_at)
select t.id, t.user_phone, t.context, t.created_at, t.updated_at, t.expires_at
from packhorse.backfill_copies c cross join lateral unnest(c.ids) as i (id)
join platform.agent_chat_sessions t on t.id = i.id::uuid
where c.backfill = %(backfill)s and c.place = %(place)s on conflict do nothing;

-- name: backfill_copies_places
-- Where the ids of a finished backfill stand.
select c.place from packhorse.backfill_copies c where c.backfill = %s order by 1;

-- name: backfill_copies_forget
-- Nobody needs them any more.
delete from packhorse.backfill_copies where backfill = %s;

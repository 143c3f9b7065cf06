-- name: ids_column
-- What the catalogue says of the column: type, what stands on it, what would go with it.
select format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as is_required, a.atthasdef as has_default,
  coalesce((select array_agg(x.relname::text || case when i.indisunique then ' (unique)' else '' end
    order by 1) from pg_index i join pg_class x on x.oid = i.indexrelid
    where i.indrelid = a.attrelid and a.attnum = any (i.indkey::smallint[])), array[]::text[]) as indexes,
  coalesce((select array_agg(k.conname::text order by 1) from pg_constraint k
    where k.conrelid = a.attrelid and a.attnum = any (k.conkey)), array[]::text[]) as constraints,
  coalesce((select array_agg(distinct v.oid::regclass::text) from pg_depend d join pg_rewrite r
    on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
    join pg_class v on v.oid = r.ev_class
    where d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum),
    array[]::text[]) as views,
  coalesce((select array_agg(distinct p.polname::text) from pg_depend d join pg_policy p
    on d.classid = 'pg_policy'::regclass and p.oid = d.objid
    where d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum),
    array[]::text[]) as policies
from pg_attribute a
where a.attrelid = to_regclass(%(table)s) and a.attname = %(column)s and a.attnum > 0 and not a.attisdropped;

-- name: ids_counts
-- Values before: NULL, valid, invalid, and valid ones that no session has.
select count(*) as rows, count(*) filter (where s.{text} is null) as nulls,
  count(*) filter (where lower(s.{text}) ~ {form}) as valid,
  count(*) filter (where s.{text} is not null and lower(s.{text}) !~ {form}) as invalid,
  count(*)
    filter (where case when lower(s.{text}) ~ {form}
      then not exists (select from {target} t where t.{id} = s.{text}::uuid) end) as orphaned
from {source} s;

-- name: ids_add_uuid
-- Without a default: nothing is rewritten.
alter table {source} add column if not exists {uuid} uuid;

-- name: ids_add_text
-- For the way back after the clean-up.
alter table {source} add column if not exists {text} {type};

-- name: ids_keep_uuid
-- While the text is the column that clients write: what they write becomes a UUID, or NULL with its reason in
-- the ledger. With the rights of the owner: clients need none on the ledger or the sessions.
create or replace function platform.keep_session_ids()
returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
  v_id uuid;
begin
  if tg_op = 'UPDATE' and new.{text} is not distinct from old.{text} then
    return new;
  end if;
  if lower(new.{text}) ~ {form} then
    select t.{id} into v_id from {target} t where t.{id} = new.{text}::uuid for key share;
  end if;
  new.{uuid} := v_id;
  if v_id is null and new.{text} is not null then
    insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
      old_value)
    values ({backfill}, {label}, {key_of_new}, 'nulled',
      case when lower(new.{text}) ~ {form} then 'no such session' else 'no UUID' end, to_jsonb(new.{text}))
    on conflict (backfill, source_table, source_id) do update
    set reason = excluded.reason, old_value = excluded.old_value, recorded_at = excluded.recorded_at;
  elsif tg_op = 'UPDATE' then
    delete from platform.platform_backfill_rows l
    where l.backfill = {backfill} and l.source_table = {label} and l.source_id = {key_of_new};
  end if;
  return new;
end
$function$;

-- name: ids_keep_text
-- Once the UUID is the column that clients write: its text is kept for the way back.
create or replace function platform.keep_session_ids()
returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
  if tg_op = 'INSERT' or new.{uuid} is distinct from old.{uuid} then
    new.{text} := new.{uuid}::text;
  end if;
  return new;
end
$function$;

-- name: ids_note_loss
-- Before the swap: the foreign key, or who looks for orphans, takes a UUID away whose text stays. The ledger
-- says so.
create or replace function platform.note_lost_session_id()
returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value)
  values ({backfill}, {label}, {key_of_new}, 'nulled', 'its session was deleted', to_jsonb(new.{text}))
  on conflict (backfill, source_table, source_id) do update
  set reason = excluded.reason, old_value = excluded.old_value, recorded_at = excluded.recorded_at;
  return new;
end
$function$;

-- name: ids_note_trigger
-- Only for rows that lose one; batches pay nothing.
create or replace trigger zz_note_lost_session_id before update of {uuid} on {source} for each row
  when (old.{uuid} is not null and new.{uuid} is null
    and new.{text} is not distinct from old.{text}) execute function platform.note_lost_session_id();

-- name: ids_drop_note_trigger
-- With what it calls.
drop trigger if exists zz_note_lost_session_id on {source};

-- name: ids_drop_note_function
-- The same.
drop function if exists platform.note_lost_session_id();

-- name: ids_keep_comment
-- For whoever meets it.
comment on function platform.keep_session_ids() is
  'Of the backfill session_ids: keeps the text and the UUID of a column alike.';

-- name: ids_note_comment
-- For whoever meets it.
comment on function platform.note_lost_session_id() is
  'Of the backfill session_ids: writes down which UUIDs were lost with their sessions.';

-- name: ids_note_revoke
-- Nobody calls it.
revoke all on function platform.note_lost_session_id() from public;

-- name: ids_keep_revoke
-- Nobody calls it.
revoke all on function platform.keep_session_ids() from public;

-- name: ids_trigger
-- Of the column that clients write; its name sorts last.
create or replace trigger zz_keep_session_ids before insert
  or update of {written} on {source} for each row execute function platform.keep_session_ids();

-- name: ids_drop_trigger
-- With what it calls.
drop trigger if exists zz_keep_session_ids on {source};

-- name: ids_drop_function
-- The same.
drop function if exists platform.keep_session_ids();

-- name: ids_copy
-- One batch: the rows are locked, so that the trigger and this statement never judge two values of one row.
with batch as materialized (
  select {keys}, {key_text} as key, s.{text}::text as old from {source} s
  where {in_batch} and s.{text} is not null and s.{uuid} is null for update of s
), judged as materialized (
  select b.*, lower(b.old) ~ {form} as is_valid, t.{id} as found from batch b
  left join lateral (select a.{id} from {target} a
    where a.{id} = case when lower(b.old) ~ {form} then b.old::uuid end limit 1) t on true
), changed as (
  update {source} s set {uuid} = j.found from judged j where {same} and j.found is not null returning 1
), told as (
  insert into platform.platform_backfill_rows as l (backfill, source_table, source_id, outcome, reason,
    old_value)
  select {backfill}, {label}, j.key, 'nulled', case when j.is_valid then 'no such session' else 'no UUID' end,
    to_jsonb(j.old) from judged j where j.found is null
  on conflict (backfill, source_table, source_id) do update
  set reason = excluded.reason, old_value = excluded.old_value, recorded_at = excluded.recorded_at
    where l.old_value is distinct from excluded.old_value
  returning l.source_id
)
select (select count(*) from changed), coalesce((select array_agg(t.source_id) from told t), array[]::text[]);

-- name: ids_index_state
-- Is there an index of this name, is it of this table, and is it valid?
select i.indisvalid, i.indrelid = to_regclass(%(table)s) from pg_index i
where i.indexrelid = to_regclass(%(index)s);

-- name: ids_drop_index
-- A leftover of a build that was killed.
drop index concurrently if exists {index};

-- name: ids_create_index
-- Writers go on meanwhile.
create index concurrently {index_name} on {source} ({column}) where {column} is not null;

-- name: ids_create_further_index
-- One of those beside it.
create index concurrently {index_name} on {source} ({columns});

-- name: ids_key_state
-- Is there a foreign key of this name, and is it valid?
select k.convalidated from pg_constraint k where k.conrelid = to_regclass(%(table)s) and k.conname = %(name)s;

-- name: ids_add_key
-- From now on; rows that are there are looked at later.
alter table {source} add constraint {key} foreign key ({uuid})
  references {target} ({id}) on delete set null not valid;

-- name: ids_validate_key
-- Reads the table beside its writers.
alter table {source} validate constraint {key};

-- name: ids_drop_key
-- The way back.
alter table {source} drop constraint if exists {key};

-- name: ids_orphans
-- Sessions that were deleted between their batch and the key: such values become NULL as any that no session
-- has; the trigger writes them down.
update {source} s set {uuid} = null
where s.{uuid} is not null and not exists (select from {target} t where t.{id} = s.{uuid});

-- name: ids_accounts
-- Rows by what became of their value. missing: neither a UUID nor explained; wrong: another UUID than the
-- text says.
select count(*) as rows, count(s.{uuid}) as uuids,
  count(*) filter (where s.{text} is null and s.{uuid} is null) as nulls,
  count(*) filter (where s.{text} is not null and s.{uuid} is null and l.source_id is not null) as explained,
  count(*) filter (where s.{text} is not null and s.{uuid} is null and l.source_id is null) as missing,
  count(*)
    filter (where case when s.{uuid} is not null
      then s.{text} is null or lower(s.{text}) <> s.{uuid}::text end) as wrong,
  (array_agg({key_text} order by {key_text})
    filter (where s.{text} is not null and s.{uuid} is null and l.source_id is null))[1:10] as examples
from {source} s left join platform.platform_backfill_rows l
  on l.backfill = {backfill} and l.source_table = {label} and l.source_id = {key_text};

-- name: ids_rename_column
-- An instant.
alter table {source} rename column {from} to {to};

-- name: ids_rename_index
-- An instant.
alter index {index} rename to {to};

-- name: ids_rename_key
-- An instant.
alter table {source} rename constraint {from} to {to};

-- name: ids_drop_column
-- What is left of the other form.
alter table {source} drop column if exists {column};

-- name: ids_restore_texts
-- The way back after the clean-up: texts of the ledger return, others are those of the UUIDs.
update {source} s
set {text} = coalesce((select jsonb_build_array(l.old_value) ->> 0 from platform.platform_backfill_rows l
  where l.backfill = {backfill}
  and l.source_table = {label} and l.source_id = {key_text}), s.{uuid}::text)
where {in_batch} and s.{text} is null;

-- name: ids_data_type
-- As the information schema has it.
select c.data_type::text from information_schema.columns c
where c.table_schema = %(schema)s and c.table_name = %(table)s and c.column_name = %(column)s;

-- name: ids_key_is_used
-- Is the constraint in key_column_usage?
select exists (select from information_schema.key_column_usage u
  where u.table_schema = %(schema)s and u.table_name = %(table)s and u.column_name = %(column)s
  and u.constraint_name = %(key)s);

-- name: ids_index_is_listed
-- Is the index in pg_indexes?
select exists (select from pg_indexes i
  where i.schemaname = %(schema)s and i.tablename = %(table)s and i.indexname = %(index)s);

-- Copies of the backfills of logs: which stay, and the way back (SPEC C2).

create or replace function platform.is_unfinished_copy(p_metadata jsonb) returns boolean
language sql stable as $$
-- Is a row of the event logs, by its metadata, a copy that a backfill still compares with its source? No
-- retention takes it before the clean-up of the backfill: the comparison would miss it.
  select coalesce(p_metadata operator(pg_catalog.?) 'migrated_from' and exists (
    select from packhorse.backfills b
    cross join lateral (select '.' || (p_metadata ->> 'migrated_from')) as f (name)
    where b.state in ('running', 'copied', 'verified') and right(b.source, length(f.name)) = f.name), false);
$$;
comment on function platform.is_unfinished_copy(jsonb) is
  'Is an event a copy that a backfill still compares with its source? It stays until the clean-up.';

create or replace function platform.take_back_audit_events(p_from text, p_ids text[]) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
-- The way back of C2: remove the audit events that a backfill made of these rows of a source, those of
-- security, too. Its caller reads the ids from the source: a record whose row is gone stays. For the owner
-- alone. Returns how many are gone.
declare
  v_gone integer;
begin
  perform set_config('packhorse_platform.audit_exception', 'way_back', true);
  delete from platform.audit_events e
  where e.metadata operator(pg_catalog.?) 'migrated_from' and e.metadata ->> 'migrated_from' = p_from
    and e.metadata ->> 'migrated_id' = any (p_ids);
  get diagnostics v_gone = row_count;
  perform set_config('packhorse_platform.audit_exception', '', true);
  return v_gone;
end
$$;
comment on function platform.take_back_audit_events(text, text[]) is
  'The way back of the backfills of logs: remove migrated audit events whose source rows exist. For the owner.';

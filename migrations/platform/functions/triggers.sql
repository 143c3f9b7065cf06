-- Triggers: times that the database sets, phones in their normal form, what may not happen to audit records
-- (SPEC C1, C2, C5, C6).

create or replace function platform.touch_updated_at() returns trigger
language plpgsql as $$
-- Before update: the row says when it changed, on the database's clock; what a client gives does not count.
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
comment on function platform.touch_updated_at() is 'Trigger: updated_at is the time of the last change.';

create or replace function platform.normalize_phone_columns() returns trigger
language plpgsql as $$
-- Before insert or update: the phone is stored in its normal form, so that ON CONFLICT and unique keys see
-- nothing else.
begin
  new.phone := platform.normalize_phone(new.phone);
  return new;
end
$$;
comment on function platform.normalize_phone_columns() is 'Trigger: phone is stored in its normal form.';

create or replace function platform.mark_session_ended() returns trigger
language plpgsql as $$
-- Before insert or update: ended_at stands as long as the session is completed or expired, and is its first
-- such moment.
begin
  new.ended_at := case when new.status in ('completed', 'expired')
    then coalesce(new.ended_at, clock_timestamp()) end;
  return new;
end
$$;
comment on function platform.mark_session_ended() is
  'Trigger: ended_at says when a session became completed or expired.';

create or replace function platform.mark_workflow_completed() returns trigger
language plpgsql as $$
-- Before insert or update: completed_at stands in every final status, however the client got there.
begin
  new.completed_at := case
    when new.status in ('completed', 'failed', 'timeout', 'cancelled')
      then coalesce(new.completed_at, clock_timestamp()) end;
  return new;
end
$$;
comment on function platform.mark_workflow_completed() is
  'Trigger: completed_at says when a workflow ended, in whatever way.';

create or replace function platform.mark_finished() returns trigger
language plpgsql as $$
-- Before insert or update: finished_at stands as long as the status is one of the trigger's arguments.
begin
  new.finished_at := case
    when new.status = any (tg_argv) then coalesce(new.finished_at, clock_timestamp()) end;
  return new;
end
$$;
comment on function platform.mark_finished() is
  'Trigger: finished_at says when a booking or reminder was over.';

create or replace function platform.forget_company_keys() returns trigger
language plpgsql as $$
-- After delete: credentials and keys of a company go with it. Their company_id is a text, which no foreign
-- key can watch.
begin
  delete from platform.whatsapp_auth a where a.company_id = old.id::text;
  delete from platform.whatsapp_keys k where k.company_id = old.id::text;
  return null;
end
$$;
comment on function platform.forget_company_keys() is
  'Trigger: WhatsApp keys of a deleted company go with it.';

create or replace function platform.touch_amara_conversations() returns trigger
language plpgsql as $$
-- After insert: a conversation is as old as its last message, or a retention would take a living one.
-- One statement for all new rows; a copy of old messages does not make a conversation younger than it is.
begin
  update platform.amara_conversations c set last_message_at = said.last_at
  from (select i.conversation_id, max(i.created_at) as last_at from inserted i
    group by i.conversation_id) said
  where c.id = said.conversation_id and c.last_message_at < said.last_at;
  return null;
end
$$;
comment on function platform.touch_amara_conversations() is
  'Trigger: last_message_at of a conversation is the time of its last message.';

create or replace function platform.protect_audit_events() returns trigger
language plpgsql as $$
-- Before update, delete and truncate: a record is not rewritten, one of security does not go, and the owner
-- is no exception. Raises 42501. Two functions may, which run as the owner of the table and set
-- packhorse_platform.audit_exception for as long as they need it: `erasure` changes records that are not of
-- security, `way_back` deletes rows that a backfill made. The setting alone opens nothing: a worker that sets
-- it is not the owner.
declare
  v_exception text := case
    when current_setting('packhorse_platform.audit_exception', true) in ('erasure', 'way_back')
    and exists (select from pg_class c join pg_roles r on r.oid = c.relowner
      where c.oid = tg_relid and r.rolname = current_user)
    then current_setting('packhorse_platform.audit_exception', true) end;
begin
  if tg_op = 'UPDATE' and v_exception = 'erasure' and old.event_category <> 'security'
    and new.event_category = old.event_category then
    return new;
  elsif tg_op = 'UPDATE' then
    raise exception using errcode = 'insufficient_privilege',
      message = 'audit_events: a record is never changed';
  elsif tg_op = 'TRUNCATE' then
    raise exception using errcode = 'insufficient_privilege', message = 'audit_events: is never emptied',
      hint = 'Delete what is old with cleanup_old_audit_events().';
  elsif old.event_category = 'security'
    and (v_exception is distinct from 'way_back' or old.metadata ->> 'migrated_from' is null) then
    raise exception using errcode = 'insufficient_privilege',
      message = format('audit_events: record %s is of the category security, which is never deleted', old.id);
  end if;
  return old;
end
$$;
comment on function platform.protect_audit_events() is
  'Trigger: audit records are not changed, and those of security not deleted.';

do $$
-- Which triggers a table has. One of the host's own that is left alone gets none.
declare
  v_name text;
  v_alone constant text[] := array(select a.name from platform.platform_adopted_tables a
    where a.is_left_alone);
begin
  foreach v_name in array array['whatsapp_users', 'agent_chat_sessions', 'ai_conversation_memory',
    'workflow_states', 'conversations', 'referrals',
      'companies', 'clients', 'services', 'staff', 'staff_schedules', 'bookings', 'dialog_contexts',
      'reminders', 'sync_status', 'whatsapp_auth', 'whatsapp_keys'] loop
    continue when v_name = any (v_alone);
    execute format(
      'create or replace trigger %I before update on platform.%I for each row execute function platform.touch_updated_at()', v_name || '_touch', v_name);
  end loop;
  foreach v_name in array array['companies', 'clients', 'staff', 'dialog_contexts', 'messages', 'reminders',
    'guest_sessions'] loop
    execute format(
      'create or replace trigger %I before insert or update on platform.%I for each row execute function platform.normalize_phone_columns()',
      v_name || '_normalize_phone', v_name);
  end loop;
end
$$;
create or replace trigger set_amara_conversations_updated_at before update on platform.amara_conversations
  for each row execute function platform.touch_updated_at();
create or replace trigger agent_chat_sessions_mark_ended before insert
  or update on platform.agent_chat_sessions
  for each row execute function platform.mark_session_ended();
create or replace trigger workflow_states_mark_completed before insert or update on platform.workflow_states
  for each row execute function platform.mark_workflow_completed();
create or replace trigger bookings_mark_finished before insert or update on platform.bookings
  for each row execute function platform.mark_finished('declined', 'completed', 'cancelled', 'no_show');
create or replace trigger reminders_mark_finished before insert or update on platform.reminders
  for each row execute function platform.mark_finished('sent', 'failed', 'cancelled', 'expired');
create or replace trigger companies_forget_keys after delete on platform.companies
  for each row execute function platform.forget_company_keys();
create or replace trigger amara_messages_touch_conversations after insert on platform.amara_messages
  referencing new table as inserted for each statement execute function platform.touch_amara_conversations();
create or replace trigger audit_events_protect before update or delete on platform.audit_events
  for each row execute function platform.protect_audit_events();
create or replace trigger audit_events_protect_all before truncate on platform.audit_events
  for each statement execute function platform.protect_audit_events();

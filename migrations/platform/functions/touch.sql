-- The trigger that says when a row changed.

create or replace function platform.touch_updated_at() returns trigger
language plpgsql as $$
-- Before update: the row says when it changed, on the database's clock.
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
comment on function platform.touch_updated_at() is 'Trigger: updated_at is the time of the last change.';

create or replace trigger companies_touch before update on platform.companies for each row execute function platform.touch_updated_at();
create or replace trigger clients_touch before update on platform.clients for each row execute function platform.touch_updated_at();
create or replace trigger services_touch before update on platform.services for each row execute function platform.touch_updated_at();
create or replace trigger staff_touch before update on platform.staff for each row execute function platform.touch_updated_at();
create or replace trigger staff_schedules_touch before update on platform.staff_schedules for each row execute function platform.touch_updated_at();
create or replace trigger sync_status_touch before update on platform.sync_status for each row execute function platform.touch_updated_at();
create or replace trigger guest_sessions_touch before update on platform.guest_sessions for each row execute function platform.touch_updated_at();
create or replace trigger bookings_touch before update on platform.bookings for each row execute function platform.touch_updated_at();
create or replace trigger agent_chat_sessions_touch before update on platform.agent_chat_sessions for each row execute function platform.touch_updated_at();
create or replace trigger ai_conversation_memory_touch before update on platform.ai_conversation_memory for each row execute function platform.touch_updated_at();
create or replace trigger workflow_states_touch before update on platform.workflow_states for each row execute function platform.touch_updated_at();
create or replace trigger conversations_touch before update on platform.conversations for each row execute function platform.touch_updated_at();
create or replace trigger amara_conversations_touch before update on platform.amara_conversations for each row execute function platform.touch_updated_at();
create or replace trigger reminders_touch before update on platform.reminders for each row execute function platform.touch_updated_at();
create or replace trigger dialog_contexts_touch before update on platform.dialog_contexts for each row execute function platform.touch_updated_at();
create or replace trigger whatsapp_auth_touch before update on platform.whatsapp_auth for each row execute function platform.touch_updated_at();
create or replace trigger whatsapp_keys_touch before update on platform.whatsapp_keys for each row execute function platform.touch_updated_at();

-- The queue keeps its own forms of these names.
drop function packhorse.get_next_queue_message(uuid, text);
drop function packhorse.acquire_message_lock(uuid, uuid, integer);
drop function packhorse.release_message_lock(uuid, uuid, text);
drop function packhorse.schedule_message_retry(uuid, jsonb);
drop function packhorse.acquire_conversation_lock(uuid, uuid);
drop function packhorse.release_conversation_lock(uuid, uuid);
drop function packhorse.lock_token(uuid, uuid);

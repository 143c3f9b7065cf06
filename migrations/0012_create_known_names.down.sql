-- Way back of 0012_create_known_names. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function drop_expired_archive_partitions;
drop function cleanup_old_messages;
drop function cleanup_expired_windows;
drop function mark_message_processed;
drop function is_new_message;
drop function cleanup_stuck_webhook_conversations;
drop function release_conversation_lock;
drop function acquire_conversation_lock;
drop function release_message_lock;
drop function acquire_message_lock;
drop function get_next_queue_message;

-- Way back of platform/0005_create_ai_memory. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function cleanup_inactive_ai_memory;
drop function merge_ai_memory_context;
drop function add_ai_memory_message;
drop function get_or_create_ai_memory;
drop table ai_conversation_memory;

-- Way back of platform/0005_create_ai_memory. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.ai_conversation_memory;

-- Way back of platform/0004_create_agent_sessions. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.agent_chat_sessions;

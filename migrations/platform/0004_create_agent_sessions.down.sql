-- Way back of platform/0004_create_agent_sessions. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function expire_agent_chat_sessions;
drop function set_agent_session_status;
drop function get_agent_conversation;
drop function add_agent_message;
drop function refuse_agent_session;
drop function get_or_create_agent_session;
drop table agent_chat_sessions;

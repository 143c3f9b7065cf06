-- Way back of 0004_create_support_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.installation;
drop table packhorse.access_tokens;
drop table packhorse.rate_limiters;
drop table packhorse.message_results;
drop table packhorse.conversation_locks;
drop table packhorse.processed_messages;
drop table packhorse.message_dedup;
drop table packhorse.message_types;
drop table packhorse.daemon_requests;
drop table packhorse.workers;

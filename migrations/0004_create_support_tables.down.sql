-- Way back of 0004_create_support_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table rate_limiters;
drop table message_results;
drop table conversation_locks;
drop table processed_messages;
drop table message_dedup;
drop table message_types;
drop table workers;

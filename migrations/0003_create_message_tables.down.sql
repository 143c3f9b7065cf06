-- Way back of 0003_create_message_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table operator_actions;
drop table dead_letters;
drop table message_archive;
drop table message_queue;
drop sequence message_lease_token_seq;
drop domain message_trace_context;
drop domain message_correlation_id;
drop domain message_key;
drop domain message_name;
drop domain message_state;
drop domain message_count;
drop domain message_priority;

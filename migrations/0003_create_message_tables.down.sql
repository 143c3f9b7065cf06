-- Way back of 0003_create_message_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop type packhorse.claim_answer;
drop type packhorse.claimed_message;
drop type packhorse.ring_walk;
drop type packhorse.turn;
drop table packhorse.operator_actions;
drop table packhorse.dead_letters;
drop table packhorse.message_archive;
drop table packhorse.message_queue;
drop sequence packhorse.message_lease_token_seq;
drop domain packhorse.message_trace_context;
drop domain packhorse.message_correlation_id;
drop domain packhorse.message_key;
drop domain packhorse.message_name;
drop domain packhorse.message_state;
drop domain packhorse.message_count;
drop domain packhorse.message_priority;

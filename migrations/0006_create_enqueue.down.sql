-- Way back of 0006_create_enqueue. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function enqueue_payloads;
drop function enqueue_messages;
drop function enqueue_message;
drop function check_enqueue_arguments;
drop function check_batch;
drop function check_age;
drop function check_lease;
drop function refuse_delay;
drop function refuse_argument;

-- Way back of 0007_create_claim. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function pick_due_messages;
drop function next_of_conversations;
drop function pick_promoted_messages;
drop function next_start_at;
drop function rate_tokens_at;
drop function queue_allowance;
drop function waiting_in_front;
drop function waiting_behind;
drop function block_waiting_messages;
drop function conversation_holders;
drop type claimed_message;

-- Way back of 0013_create_views_and_explain. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function explain_message;
drop view dead_letter_groups;
drop view message_queue_health;
drop view blocked_conversations;
drop view all_messages;

-- Way back of platform/0007_create_conversations. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function release_stuck_conversations;
drop function unlock_conversation;
drop function lock_conversation;
drop function get_or_create_conversation;
drop table amara_messages;
drop function touch_amara_conversations;
drop table amara_conversations;
drop table conversations;

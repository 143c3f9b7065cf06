-- Way back of platform/0007_create_conversations. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.amara_messages;
drop table platform.amara_conversations;
drop table platform.conversations;

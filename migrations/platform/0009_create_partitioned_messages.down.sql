-- Way back of platform/0009_create_partitioned_messages. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.messages;

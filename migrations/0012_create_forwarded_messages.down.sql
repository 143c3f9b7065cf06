-- Way back of 0012_create_forwarded_messages. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.forwarded_messages;

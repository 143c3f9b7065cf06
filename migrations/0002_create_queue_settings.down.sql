-- Way back of 0002_create_queue_settings. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table queue_wakeups;
drop table queues;
drop domain message_json;
drop domain queue_name;

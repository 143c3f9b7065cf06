-- Way back of platform/0009_create_partitioned_messages. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function get_recent_messages;
drop function get_messages_stats;
drop function maintain_messages_partitions;
drop function create_messages_partition;
drop table messages;

-- Way back of 0005_create_queue_functions. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function finish_partition;
drop function create_partition_table;
drop function partition_covers;
drop function hand_over_queues;
drop function keep_attending;
drop function attend_queues;
drop function announce_sleep;
drop function resume_queue;
drop function wake_queue;
drop function pause_queue;
drop function set_queue;
drop function require_queue;
drop function declare_queue;

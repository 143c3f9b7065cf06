-- Way back of 0017_create_maintenance. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop view maintenance_health;
drop function maintenance_gates;
drop function cancel_maintenance_run;
drop function end_maintenance_run;
drop function beat_maintenance_run;
drop function start_maintenance_run;
drop function keep_messages_partitions;
drop function retention_keep;
drop function declare_policies;
drop table detached_partitions;
drop table maintenance_tasks;
drop table maintenance_runs;

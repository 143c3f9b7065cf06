-- Way back of 0006_create_maintenance. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.detached_partitions;
drop table packhorse.maintenance_tasks;
drop table packhorse.maintenance_runs;

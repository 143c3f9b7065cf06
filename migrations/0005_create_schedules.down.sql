-- Way back of 0005_create_schedules. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.schedule_runs;
drop table packhorse.schedules;

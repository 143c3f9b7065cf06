-- Way back of 0016_create_schedules. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop view schedule_health;
drop function settle_schedule_runs;
drop function fail_schedule_run;
drop function plan_schedule;
drop function run_schedule_now;
drop function fire_schedule;
drop function enqueue_schedule;
drop function resume_schedule;
drop function pause_schedule;
drop function require_schedule;
drop function remove_schedule;
drop function set_schedule;
drop table schedule_runs;
drop table schedules;

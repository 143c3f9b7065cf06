-- Way back of 0021_create_health_readings. Nothing is lost but what it made.

drop function ends_by_hour;
drop function recent_ends;
drop function archive_reading;
drop function health_absent;
drop function has_platform_table;
drop function health_duration;
drop function health_count;
drop function health_worst;
drop function health_level;

-- Way back of 0020_create_fleet_statistics. Takes ACCESS EXCLUSIVE locks for an instant; the numbers are counted anew.

drop function fleet_statistics();
drop function refresh_fleet_statistics(interval);
drop function schedule_statistics;
drop function table_statistics(timestamptz);
drop function snapshots_are_visible();
drop function partition_ends(timestamptz);
drop function count_blocked_conversations(integer);
drop function count_undeclared_messages(timestamptz, integer);
drop function count_queue_messages(timestamptz, integer);
drop function estimated_messages(text, text, timestamptz);
drop index dead_letters_queue_idx;
drop table fleet_statistics;

-- Way back of 0002_create_queue_settings. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.key_rates;
drop table packhorse.queue_turns;
drop table packhorse.queue_wakeups;
drop table packhorse.queues;
drop domain packhorse.message_json;
drop domain packhorse.queue_name;

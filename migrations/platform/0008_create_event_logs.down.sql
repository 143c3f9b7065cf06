-- Way back of platform/0008_create_event_logs. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.audit_events;
drop table platform.webhook_events;
drop table platform.platform_events;

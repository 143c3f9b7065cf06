-- Way back of platform/0010_create_reminders. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.reminders;

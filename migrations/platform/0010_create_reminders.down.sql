-- Way back of platform/0010_create_reminders. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function enqueue_due_reminders;
drop table reminders;

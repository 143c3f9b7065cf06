-- Way back of platform/0002_create_business_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.appointments_cache;
drop table platform.sync_status;
drop table platform.staff_schedules;
drop table platform.staff;
drop table platform.services;
drop table platform.clients;
drop table platform.companies;

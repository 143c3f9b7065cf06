-- Way back of platform/0003_create_guests_and_bookings. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.bookings;
drop table platform.guest_sessions;

-- Way back of platform/0003_create_guests_and_bookings. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function convert_guest_to_user;
drop function cleanup_expired_guest_sessions;
drop table bookings;
drop table guest_sessions;

-- Way back of platform/0001_create_platform_functions. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function append_entry;
drop function check_role;
drop function check_limit;
drop function check_span;
drop function check_object;
drop function check_text;
drop function touch_updated_at;
drop domain phone_number;

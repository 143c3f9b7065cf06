-- Way back of 0014_create_dramatiq_backends. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function get_rate_limiter;
drop function change_rate_limiter;
drop function add_rate_limiter;
drop function get_message_result;
drop function store_message_result;

-- Way back of 0010_create_rescue. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function cleanup_stale_message_locks;
drop function forget_dead_workers;
drop function promote_stranded_conversations;
drop function bury_unknown_types;
drop function recover_worker;
drop function rescue_expired_messages;
drop function return_crashed_messages;
drop function deregister_worker;
drop function beat_worker;
drop function register_worker;
drop function worker_problems;
drop function bounded_problems;

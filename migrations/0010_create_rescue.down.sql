-- Way back of 0010_create_rescue. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function cleanup_stale_message_locks;
drop function forget_dead_workers;
drop function promote_stranded_conversations;
drop trigger message_queue_deleted on message_queue;
drop function promote_after_delete;
drop function bury_unknown_types;
drop function complete_refused_messages;
drop function mark_completion_refused;
drop function recover_worker;
drop function rescue_expired_messages;
drop function return_lost_messages;
drop function return_lost_message;
drop function fail_overdue_message;
drop function send_exhausted;
drop function withdraw_crashes;
drop function deregister_worker;
drop function beat_worker;
drop function register_worker;
drop function worker_problems;
drop function bounded_problems;

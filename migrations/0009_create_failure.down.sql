-- Way back of 0009_create_failure. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function expire_messages;
drop function cancel_message;
drop function finish_cancelled;
drop function archive_cancelled;
drop function extend_message_lease;
drop function release_message;
drop function release_unknown_messages;
drop function release_messages;
drop function return_uncommitted_message;
drop function snooze_message;
drop function fail_message;
drop function bury_message;
drop function move_to_dead_letters;
drop function error_fingerprint;
drop function schedule_message_retry;
drop function failure_policy;
drop function json_milliseconds;
drop function history_tail;
drop function append_history;
drop function bounded_text;
drop function message_backoff;
drop function bounded_delay;

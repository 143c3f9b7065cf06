-- Way back of 0024_create_health_checks. Nothing is lost but the checks.

revoke execute on function count_queue_messages(timestamptz, integer), estimated_messages(text, text, timestamptz) from packhorse_reader;
drop function health_checks;
drop function health_system_summary;

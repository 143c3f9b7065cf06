-- Way back of 0021_create_health_checks. Nothing is lost but the checks.

revoke execute on function count_queue_messages(timestamptz, integer), estimated_messages(text, text, timestamptz) from packhorse_reader;
drop function health_checks;
drop function health_system_summary;
drop function health_dedup_effectiveness;
drop function health_stale_locks;
drop function health_circuit_breakers;
drop function health_agent_sessions;
drop function health_workflow_completion;
drop function health_top_errors;
drop function health_error_rate;
drop function health_processing_latency;
drop function health_conversation_state;
drop function health_agent_performance;
drop function health_dead_letters;
drop function health_queue_health;
drop function health_stuck_workflows;
drop function ends_by_hour;
drop function recent_ends;
drop function archive_reading;
drop function health_absent;
drop function has_platform_table;
drop function health_duration;
drop function health_count;
drop function health_worst;
drop function health_level;

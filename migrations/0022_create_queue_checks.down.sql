-- Way back of 0022_create_queue_checks. Nothing is lost but what it made.

drop function health_dedup_effectiveness;
drop function health_stale_locks;
drop function health_top_errors;
drop function health_error_rate;
drop function health_processing_latency;
drop function health_dead_letters;
drop function health_queue_health;

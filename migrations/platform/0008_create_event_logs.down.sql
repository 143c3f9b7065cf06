-- Way back of platform/0008_create_event_logs. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function cleanup_old_audit_events;
drop function cleanup_old_webhook_events;
drop function cleanup_old_platform_events;
drop function get_user_referral_credits;
drop function get_conversion_funnel;
drop function get_event_counts_by_type;
drop function check_period;
drop table audit_events;
drop function protect_audit_events;
drop table webhook_events;
drop table platform_events;

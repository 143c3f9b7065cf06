-- Way back of platform/0012_create_platform_views. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function get_database_stats;
drop view ai_agent_usage;
drop view workflow_health;

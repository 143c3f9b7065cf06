-- name: health_checks
-- All health checks in their order, or the one that is named; PH001 for a name that is none.
select check_name, status, summary, details from packhorse.health_checks(%s);

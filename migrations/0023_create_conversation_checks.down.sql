-- Way back of 0023_create_conversation_checks. Nothing is lost but what it made.

drop function health_circuit_breakers;
drop function health_agent_sessions;
drop function health_workflow_completion;
drop function health_conversation_state;
drop function health_agent_performance;
drop function health_stuck_workflows;

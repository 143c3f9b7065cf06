-- Way back of platform/0006_create_workflows. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function mark_timed_out_workflows;
drop function finish_workflow;
drop function advance_workflow;
drop function refuse_workflow;
drop function start_workflow;
drop table workflow_states;

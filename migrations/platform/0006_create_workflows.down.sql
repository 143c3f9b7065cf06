-- Way back of platform/0006_create_workflows. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.workflow_states;

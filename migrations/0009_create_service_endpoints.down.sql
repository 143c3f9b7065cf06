-- Way back of 0009_create_service_endpoints. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.service_endpoints;

-- Way back of 0007_create_fleet_statistics. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.fleet_statistics;

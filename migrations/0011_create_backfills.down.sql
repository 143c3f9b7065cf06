-- Way back of 0011_create_backfills. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table packhorse.backfill_copies;
drop table packhorse.backfills;

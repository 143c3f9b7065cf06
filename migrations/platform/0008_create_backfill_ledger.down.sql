-- Way back of platform/0008_create_backfill_ledger. Takes ACCESS EXCLUSIVE locks; what the objects held is
-- gone.
drop table platform.platform_backfill_rows;

-- Way back of 0008_create_settle. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function claim_messages;
drop function complete_and_claim_messages;
drop function claim_one_by_one;
drop function complete_messages;
drop function settle_done;
drop function archive_messages;
drop function ensure_message_archive_partitions;
drop function promote_conversations;

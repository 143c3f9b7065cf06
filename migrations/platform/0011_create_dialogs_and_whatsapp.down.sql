-- Way back of platform/0011_create_dialogs_and_whatsapp. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function get_whatsapp_auth_stats;
drop function cleanup_expired_whatsapp_keys;
drop function cleanup_expired_dialog_contexts;
drop table whatsapp_keys;
drop table whatsapp_auth;
drop table dialog_contexts;

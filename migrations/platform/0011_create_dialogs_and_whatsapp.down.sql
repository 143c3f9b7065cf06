-- Way back of platform/0011_create_dialogs_and_whatsapp. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop table platform.whatsapp_keys;
drop table platform.whatsapp_auth;
drop table platform.dialog_contexts;

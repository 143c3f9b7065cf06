-- Way back of platform/0001_create_platform_domains. Takes ACCESS EXCLUSIVE locks on adopted tables, which
-- lose the indexes on normal forms.
drop domain platform.phone_number;
drop function platform.normalize_phone(text) cascade;
drop table platform.platform_adopted_tables;

-- Way back of platform/0001_create_platform_domains. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop domain platform.phone_number;

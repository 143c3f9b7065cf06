-- Way back of 0001_create_roles. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

-- The roles stay: they belong to the whole server, and other databases may use them.
select 1;

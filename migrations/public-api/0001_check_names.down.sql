-- Way back of public-api/0001_check_names: it made nothing.
select 1;

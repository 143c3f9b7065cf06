-- name: repair_create_role
-- A role of the migrations is missing.
create role {role};

-- name: repair_create_login
-- A login of its own for workers.
create role my_worker login in role packhorse_worker;

-- name: repair_nobypassrls
-- Policies shall hold this role.
alter role {role} nobypassrls;

-- name: repair_see_statistics
-- How old the snapshots of others are, and what they run.
grant pg_read_all_stats to {role};

-- name: repair_join_worker
-- The rights of a worker.
grant packhorse_worker to {role};

-- name: repair_role_setting
-- A setting of this role's sessions.
alter role {role} set {name} = {value};

-- name: repair_server_setting
-- A setting of the whole server.
alter system set {name} = on; select pg_reload_conf();

-- name: repair_sequence
-- A sequence goes on behind the highest number that is taken.
select setval('{name}', greatest(nextval('{name}'), {highest}));

-- name: repair_row_security
-- Policies of a table shall count.
alter table {table} enable row level security;

-- name: repair_validate
-- Look at the rows that were there before the constraint.
alter table {table} validate constraint {part};

-- name: repair_rebuild_index
-- Make an invalid index again; beside the work that goes on.
drop index concurrently {name}; {definition};

-- name: repair_drop_index
-- The other definition goes first.
drop index {name};

-- name: repair_drop_constraint
-- The other definition goes first.
alter table {table} drop constraint {part};

-- name: repair_drop_policy
-- The other definition goes first.
drop policy {part} on {table};

-- name: repair_drop_trigger
-- The other definition goes first.
drop trigger {part} on {table};

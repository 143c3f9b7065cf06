-- name: prepare_session
-- What a session of ours is like, whatever its role's defaults are; see worker/db/connection.py. Then what a
-- handler may change and our statements depend on, as it is at the start.
select set_config('default_transaction_isolation', 'read committed', false),
  set_config('client_connection_check_interval', %s, false),
  current_setting('session_authorization'), current_setting('role'), current_setting('search_path'),
  current_setting('row_security');

-- name: home_of_role
-- The same four of a session behind a pooler, at any time: what they are when nobody has set them.
select session_user::text, 'none', (select reset_val from pg_catalog.pg_settings where name = 'search_path'),
  'on';

-- name: go_home
-- Inside a transaction: what the handler has made of these four, then ours until leave_home or the end of the
-- transaction. The role comes after session_authorization, which takes it back.
select pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role'),
  pg_catalog.current_setting('search_path'),
  pg_catalog.current_setting('row_security'),
  case when pg_catalog.current_setting('session_authorization') operator(pg_catalog.<>) %s
    then pg_catalog.set_config('session_authorization', %s, true) end,
  case when pg_catalog.current_setting('role') operator(pg_catalog.<>) %s
    then pg_catalog.set_config('role', %s, true) end,
  case when pg_catalog.current_setting('search_path') operator(pg_catalog.<>) %s
    then pg_catalog.set_config('search_path', %s, true) end,
  case when pg_catalog.current_setting('row_security') operator(pg_catalog.<>) %s
    then pg_catalog.set_config('row_security', %s, true) end;

-- name: leave_home
-- The handler's own again.
select pg_catalog.set_config('session_authorization', %s, true), pg_catalog.set_config('role', %s, true),
  pg_catalog.set_config('search_path', %s, true), pg_catalog.set_config('row_security', %s, true);

-- name: reset_session
-- What a handler may have left in its session, but for prepared statements: DISCARD ALL in parts, which go in
-- one round trip.
close all; unlisten *; reset session authorization; reset role;
  reset all; select pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences;

-- name: prepared_by_sql
-- Did anybody use PREPARE? The driver's own prepared statements do not count.
select exists (select from pg_catalog.pg_prepared_statements where from_sql);

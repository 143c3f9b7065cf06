-- name: settle_session
-- What a session of ours is like, whatever its role's defaults are; see worker/db/connection.py.
select set_config('default_transaction_isolation', 'read committed', false), set_config('client_connection_check_interval', %s, false);

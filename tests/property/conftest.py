"""The fixtures of tests/sql: one database per server, everything rolled back."""

from tests.sql.conftest import own_clients, shared_database, sql

__all__ = ["own_clients", "shared_database", "sql"]

"""What stands before the migrations: a database, a login for workers."""

from __future__ import annotations

from packhorse.worker.db.composed import SQL, Identifier
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.queries import sql


def ensure_database(connection: DeadlineConnection, name: str) -> None:
    """Create a database unless it is there. Raises StoreError."""
    _ensure(connection, "database_exists", "create_database", name)


def ensure_login_role(connection: DeadlineConnection, name: str) -> None:
    """Create a login in packhorse_worker unless the role is there. Raises StoreError."""
    _ensure(connection, "role_exists", "create_login_role", name)


def _ensure(connection: DeadlineConnection, exists: str, create: str, name: str) -> None:
    with translated():
        if connection.execute(sql(exists), (name,)).fetchone() == (False,):
            connection.execute(SQL(sql(create)).format(name=Identifier(name)), prepare=False)

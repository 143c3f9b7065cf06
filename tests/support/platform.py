"""A database with queue and platform, and a broker on it, for tests of the platform's library."""

from __future__ import annotations

from collections.abc import Iterator

from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.support.databases import lent
from tests.support.harness import quick_settings
from tests.support.postgres import Database, Server


def platform_database(server: Server) -> Iterator[Database]:
    """One with the schema of the platform, dropped at the end."""
    database = server.create_database()
    connection = connect(database.admin_url, deadline_seconds=120)
    migrate.up(connection, sets=["platform"])
    connection.close()
    yield from lent(database)


def broker_on(database: Database) -> PostgresBroker:
    """A broker for code that enqueues and asks; the caller closes it."""
    return PostgresBroker(settings=quick_settings(database))

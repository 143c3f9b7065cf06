"""The fixtures of tests/sql on a database that has the platform: `sql` is rolled back, `clients` commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql as composed

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.sql.client import Sql
from tests.sql.conftest import make_clients
from tests.support.databases import full_tables, restart_sequences
from tests.support.postgres import Database, Server

_templates: dict[str, Database] = {}
_shared: dict[str, Database] = {}
_emptied: dict[str, Database] = {}
# one per server: a fresh one would compile every function again
_connections: dict[str, psycopg.Connection] = {}
_idle: dict[str, list[psycopg.Connection]] = {}


def create_platform_database(server: Server) -> Database:
    """A fresh database with queue and platform, cloned from a template."""
    if server.name not in _templates:
        template = server.create_database()
        connection = connect(template.admin_url, deadline_seconds=120)
        migrate.up(connection, sets=["platform"])
        connection.close()
        _templates[server.name] = template
    return server.clone(_templates[server.name].name)


def seed(client: Sql) -> None:
    """A queue and a company with a service and somebody who does it, each with the id 1."""
    client.rows("select declare_queue('q')")
    client.rows("insert into companies (id, name) values (1, 'Salon')")
    client.rows("insert into services (id, company_id, title) values (1, 1, 'Cut')")
    client.rows("insert into staff (id, company_id, name) values (1, 1, 'Ann')")


@pytest.fixture
def shared_database(any_server: Server) -> Database:
    """One database per server for tests that leave nothing behind."""
    if any_server.name not in _shared:
        _shared[any_server.name] = create_platform_database(any_server)
    return _shared[any_server.name]


@pytest.fixture
def sql(shared_database: Database) -> Iterator[Sql]:
    """The unprivileged worker's view of the seeded schema; everything a test does is rolled back."""
    connection = _connections.get(shared_database.server.name)
    if connection is None or connection.closed:
        connection = _connections[shared_database.server.name] = shared_database.connect()
        connection.autocommit = False
    client = Sql(connection)
    seed(client)
    yield client
    connection.rollback()


@pytest.fixture
def clients(any_server: Server) -> Iterator[Callable[..., Sql]]:
    """Make clients with connections of their own that commit, on the seeded schema; the database is emptied
    afterwards.
    """
    if any_server.name not in _emptied:
        _emptied[any_server.name] = create_platform_database(any_server)
    database = _emptied[any_server.name]
    yield from make_clients(database, _idle.setdefault(any_server.name, []), seed)
    with database.session() as admin:
        admin.execute("set session_replication_role = replica")  # the audit log cannot be emptied otherwise
        for table in full_tables(admin):
            admin.execute(composed.SQL("delete from {}").format(table))
        restart_sequences(admin)


@pytest.fixture
def own_database(any_server: Server) -> Iterator[Database]:
    """A database of the test's own, which it may break."""
    database = create_platform_database(any_server)
    yield database
    database.drop()

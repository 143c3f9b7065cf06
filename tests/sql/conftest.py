"""`sql`: the SQL API in a transaction that is rolled back, on each PostgreSQL; the queue `q` exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.sql.client import Sql
from tests.sql.frozen import FrozenSql, with_a_clock
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until

_shared: dict[str, Database] = {}
_emptied: dict[str, Database] = {}
TABLES = [
    "message_queue",
    "message_archive",
    "dead_letters",
    "operator_actions",
    "message_dedup",
    "processed_messages",
    "conversation_locks",
    "message_results",
    "rate_limiters",
    "workers",
    "daemon_requests",
    "message_types",
    "queue_wakeups",
    "scopes",
    "claim_marks",
    "queue_turns",
    "key_rates",
    "forwarded_messages",
    "service_endpoints",
    "queues",
]
# one per server: a fresh one would compile every function again
_connections: dict[str, psycopg.Connection] = {}
_frozen: dict[str, psycopg.Connection] = {}


def old_enough_for_rescue(database: Database) -> None:
    """Rescue does nothing in the first five seconds of a server."""
    wait_until(
        lambda: database.value("select clock_timestamp() > pg_postmaster_start_time() + interval '5 seconds'")
    )


@pytest.fixture
def shared_database(any_server: Server) -> Database:
    """One database per server for tests that leave nothing behind."""
    if any_server.name not in _shared:
        _shared[any_server.name] = any_server.create_database()
        old_enough_for_rescue(_shared[any_server.name])
    return _shared[any_server.name]


@pytest.fixture
def sql(shared_database: Database) -> Iterator[Sql]:
    """The unprivileged worker's view of an empty schema; everything a test does is rolled back."""
    connection = _connections.get(shared_database.server.name)
    if connection is None or connection.closed:
        connection = _connections[shared_database.server.name] = shared_database.connect()
        connection.autocommit = False
    client = Sql(connection)
    client.rows("select declare_queue('q')")
    yield client
    connection.rollback()


@pytest.fixture
def frozen_sql(any_server: Server) -> Iterator[FrozenSql]:
    """The same as `sql` in a database whose clock stands; the test moves it (tests/sql/frozen.py)."""
    connection = _frozen.get(any_server.name)
    if connection is None or connection.closed:
        database = with_a_clock(any_server.create_database())
        old_enough_for_rescue(database)
        connection = _frozen[any_server.name] = database.connect()
        connection.autocommit = False
    client = FrozenSql(connection)
    client.rows("select declare_queue('q')")
    yield client
    connection.rollback()


@pytest.fixture
def clients(any_server: Server) -> Iterator[Callable[..., Sql]]:
    """Make clients with connections of their own that commit; the database is emptied afterwards. The queue
    `q` exists.
    """
    if any_server.name not in _emptied:
        _emptied[any_server.name] = any_server.create_database()
    database = _emptied[any_server.name]
    yield from make_clients(database)
    with database.connect(admin=True) as admin:
        for table in TABLES:
            admin.execute(f"delete from {table}")


@pytest.fixture
def own_clients(any_database: Database) -> Iterator[Callable[..., Sql]]:
    """The same on a database of the test's own, which it may break."""
    yield from make_clients(any_database)


def make_clients(database: Database) -> Iterator[Callable[..., Sql]]:
    """The function behind the fixtures above; connections are closed when the generator goes on."""
    made: list[Sql] = []

    def make(**options: Any) -> Sql:
        made.append(Sql(database.connect(**options)))
        return made[-1]

    old_enough_for_rescue(database)
    make().rows("select declare_queue('q')")
    yield make
    for client in made:
        client.connection.close()

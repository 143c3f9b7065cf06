"""`sql`: the SQL API in a transaction that is rolled back, on each PostgreSQL; the queue `q` exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

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
_idle: dict[str, list[psycopg.Connection]] = {}
#: `discard all` without plans and sequences.
AS_NEW = """close all; set session authorization default; reset all; deallocate all; unlisten *;
  select pg_advisory_unlock_all(); discard temp"""


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
    yield from make_clients(database, _idle.setdefault(any_server.name, []))
    with database.session() as admin:
        admin.execute(";".join(f"delete from {table}" for table in TABLES))


@pytest.fixture
def own_clients(any_database: Database) -> Iterator[Callable[..., Sql]]:
    """The same on a database of the test's own, which it may break; each with a new session."""
    yield from make_clients(any_database)


def declare_q(client: Sql) -> None:
    client.rows("select declare_queue('q')")


def make_clients(
    database: Database,
    idle: list[psycopg.Connection] | None = None,
    furnish: Callable[[Sql], None] = declare_q,
) -> Iterator[Callable[..., Sql]]:
    """The function behind the fixtures above; connections are closed when the generator goes on. idle: those
    that tests have left; this test takes from them, and leaves its own there. furnish: what each test finds.
    """
    made: list[tuple[Sql, bool]] = []

    def make(**options: Any) -> Sql:
        client = Sql(idle.pop() if idle and not options else database.connect(**options))
        made.append((client, idle is not None and not options))
        return client

    old_enough_for_rescue(database)
    furnish(make())
    yield make
    for client, is_kept in made:
        if is_kept and _as_new(client.connection):
            idle.append(client.connection)
        else:
            client.connection.close()


def _as_new(connection: psycopg.Connection) -> bool:
    """Make the session like a new one, but for the functions that it has compiled: that costs more than most
    tests. False: a test has left it in another state.
    """
    if not connection.autocommit or connection.isolation_level or connection.broken or connection.closed:
        return False
    if connection.info.transaction_status != TransactionStatus.IDLE:
        return False
    try:
        connection.execute(AS_NEW)
        list(connection.notifies(timeout=0))  # what it has heard and nobody has asked for
    except psycopg.OperationalError:  # cut by a test
        return False
    return True

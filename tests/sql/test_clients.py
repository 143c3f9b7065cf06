"""Sessions that a test leaves to the next one (the fixture `clients`), which meets nothing of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.sql.client import Sql
from tests.sql.conftest import make_clients
from tests.support.postgres import Database

pytestmark = pytest.mark.one_database

#: What a test does in its session, and what a new session answers.
TRACES = [
    ("set lock_timeout = '7s'", "show lock_timeout", "0"),
    ("select set_config('packhorse_queue.trace', 'x', false)", "show packhorse_queue.trace", ""),
    ("set role packhorse_worker", "select current_user::text", "packhorse_test"),
    ("listen packhorse_wake", "select count(*) from pg_listening_channels()", 0),
    (
        "select pg_advisory_lock(1)",
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        0,
    ),
    ("create temp table trace (n integer)", "select to_regclass('pg_temp.trace')", None),
    ("prepare trace as select 1", "select count(*) from pg_prepared_statements", 0),
    (
        "declare trace cursor with hold for select 1",
        "select count(*) from pg_cursors where name = 'trace'",
        0,
    ),
]


@pytest.fixture
def idle() -> Iterator[list[psycopg.Connection]]:
    left: list[psycopg.Connection] = []
    yield left
    for connection in left:
        connection.close()


def lent(database: Database, idle: list[psycopg.Connection]) -> Iterator[Sql]:
    """The first session of a test."""
    made: list[Sql] = []
    lending = make_clients(database, idle, made.append)
    next(lending)
    yield made[0]
    next(lending, None)


@pytest.mark.parametrize(("act", "look", "answer"), TRACES, ids=[trace[0][:24] for trace in TRACES])
def test_the_next_test_finds_a_session_as_new(
    database: Database, idle: list[psycopg.Connection], act: str, look: str, answer: object
) -> None:
    sessions = []
    for _ in range(2):
        for client in lent(database, idle):
            sessions.append(client.value("select pg_backend_pid()"))
            if len(sessions) == 1:
                client.rows(act)
                assert client.value(look) != answer
            else:
                assert client.value(look) == answer
    assert sessions[0] == sessions[1]


def test_the_next_test_hears_nothing_that_the_last_one_was_told(
    database: Database, idle: list[psycopg.Connection]
) -> None:
    for client in lent(database, idle):
        client.rows("listen packhorse_wake")
        client.rows("notify packhorse_wake, 'old'")
    for client in lent(database, idle):
        assert list(client.connection.notifies(timeout=0)) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda client: client.rows("begin"),
        lambda client: client.connection.set_autocommit(False),
        lambda client: client.connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
        lambda client: client.rows("select pg_terminate_backend(pg_backend_pid())"),
    ],
    ids=["busy", "transactions", "isolation", "cut"],
)
def test_one_in_another_state_is_left_to_nobody(
    database: Database, idle: list[psycopg.Connection], act: Callable[[Sql], object]
) -> None:
    for client in lent(database, idle):
        try:
            act(client)
        except psycopg.OperationalError:
            pass
    assert idle == [] and client.connection.closed

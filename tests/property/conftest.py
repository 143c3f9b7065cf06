"""The fixtures of tests/sql: one database per server, everything rolled back; and sessions that commit beside
each other while the clock stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.sql.client import Sql
from tests.sql.conftest import make_clients, own_clients, shared_database, sql
from tests.sql.frozen import FrozenSql, with_a_clock
from tests.support.databases import emptied
from tests.support.postgres import Database, Server

__all__ = ["own_clients", "shared_database", "sql"]

_frozen: dict[str, Database] = {}


@dataclass
class FrozenSessions:
    """make: a client with a connection of its own. database: theirs. clock: moves it for all of them."""

    make: Callable[..., Sql]
    database: Database
    clock: FrozenSql

    def later(self, seconds: float) -> None:
        self.clock.later(f"{seconds} seconds")


def stand_still(database: Database) -> Iterator[FrozenSessions]:
    """Sessions in a database that has a clock; they are closed when the generator goes on."""
    clients = make_clients(database)
    make = next(clients)
    clock = FrozenSql(database.connect())
    yield FrozenSessions(make, database, clock)
    clock.rows("delete from testing.clock_stands")
    clock.connection.close()
    next(clients, None)


@pytest.fixture
def sessions(any_server: Server) -> Iterator[FrozenSessions]:
    """Of an empty database, the same for all tests of a server."""
    if any_server.name not in _frozen:
        _frozen[any_server.name] = with_a_clock(any_server.create_database())
    yield from stand_still(emptied(_frozen[any_server.name]))


@pytest.fixture
def own_sessions(database: Database) -> Iterator[FrozenSessions]:
    """Of a database of the test's own, which it may break."""
    yield from stand_still(with_a_clock(database))

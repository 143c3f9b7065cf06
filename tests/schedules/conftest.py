"""One database per file, emptied before each test; connections as the worker has them and as the owner has
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from packhorse.schedules.timetable.scheduler import Scheduler
from packhorse.worker.db.connection import DeadlineConnection, connect
from tests.sql.conftest import own_clients, shared_database, sql
from tests.support.databases import emptied, one
from tests.support.postgres import Database, Server

__all__ = ["own_clients", "shared_database", "sql"]


@pytest.fixture(scope="module")
def one_database(server: Server) -> Iterator[Database]:
    yield from one(server)


@pytest.fixture
def database(one_database: Database) -> Iterator[Database]:
    """No rows, the queue `default`; tables that a test makes go into the schema `shop`, which is dropped."""
    yield emptied(one_database)
    one_database.query("drop schema if exists shop cascade")


@pytest.fixture
def open_connection(database: Database) -> Iterator[Callable[..., DeadlineConnection]]:
    """Open connections like the daemon's; closed at the end. role: worker or owner."""
    opened: list[DeadlineConnection] = []

    def open_one(role: str = "worker") -> DeadlineConnection:
        opened.append(connect(database.url if role == "worker" else database.admin_url, deadline_seconds=30))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def make_scheduler(open_connection: Callable[..., DeadlineConnection]) -> Iterator[Callable[..., Scheduler]]:
    """Schedulers whose turns the test takes itself: run_once()."""
    made: list[Scheduler] = []

    def make(declared: Any = None, **options: Any) -> Scheduler:
        made.append(Scheduler(open_connection, None if declared is None else lambda: declared, **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.on_stop()

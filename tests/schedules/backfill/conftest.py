"""A shop whose rows are moved, and an engine without rests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packhorse.schedules.backfill import declare, engine
from packhorse.schedules.backfill.base import Backfill
from packhorse.schedules.backfill.engine import BackfillRun, RunResult
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import DeadlineConnection

OPEN = Gates(None, None, None, None, None)


@pytest.fixture
def declared():
    """Backfills that a test declares are forgotten at its end."""
    before = dict(declare.declared)
    yield declare.declared
    declare.declared.clear()
    declare.declared.update(before)


@pytest.fixture
def run(open_connection: Callable[..., DeadlineConnection]):
    """run(backfill): to its end, as the owner."""

    def to_the_end(backfill: Backfill, gates: Gates = OPEN, **options) -> RunResult:
        return BackfillRun(lambda: open_connection("owner"), backfill, gates, **{"operator": "ada", **options}).run()

    return to_the_end


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of at most 50 rows, from the first one on."""
    monkeypatch.setattr(engine, "FIRST_BATCH", 50)
    monkeypatch.setattr(engine, "ONE_TRANSACTION_ROWS", 0)
    monkeypatch.setattr(engine, "next_size", lambda size, took, most, target: 50)


@pytest.fixture
def shop(database):
    """shop.users: 1000 people with capital letters in their addresses."""
    database.query("create schema shop")
    database.query("create table shop.users (id bigint primary key, email text not null, note text)")
    database.query("insert into shop.users select n, 'User' || n || '@Example.org' from generate_series(1, 1000) n")
    database.query("analyze shop.users")

"""A shop whose rows are moved, and an engine without rests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from packhorse.schedules.backfill import acts, declare, engine
from packhorse.schedules.backfill.base import Backfill, CheckFinding
from packhorse.schedules.backfill.engine import BackfillRun, RunResult
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.store import backfill_tables as tables
from tests.sql.platform.conftest import create_platform_database
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until

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
        return BackfillRun(
            lambda: open_connection("owner"), backfill, gates, **{"operator": "ada", **options}
        ).run()

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
    database.query(
        "insert into shop.users select n, 'User' || n || '@Example.org' from generate_series(1, 1000) n"
    )
    database.query("analyze shop.users")


class Mover:
    """An operator with the owner's connection to a database that has the platform."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.connection = connect(database.admin_url, deadline_seconds=60)

    def run(self, name: str, **options) -> RunResult:
        """To its end."""
        settings = options.pop("settings", None)
        return BackfillRun(
            lambda: connect(self.database.admin_url, deadline_seconds=60),
            declare.find(name, settings),
            OPEN,
            **{"operator": "ada", **options},
        ).run()

    def run_until_verified(self, name: str) -> None:
        """A run that goes on with a killed one walks on from its cursor: what came behind it is found by the
        comparison, and by one more run.
        """
        for _ in range(2):
            assert self.run(name, silent_after_seconds=0.01).state == "succeeded"
            if self.state(name) == "verified":
                return
        raise AssertionError(self.database.value("select findings from backfills where name = %s", name))

    def check(self, name: str, **settings: str) -> list[CheckFinding]:
        return acts.check(self.connection, declare.find(name, settings))

    def dry_run(self, name: str) -> acts.DryRun:
        return acts.dry_run(self.connection, declare.find(name))

    def verify(self, name: str, **settings: str) -> list[CheckFinding]:
        return acts.verify(self.connection, declare.find(name, settings), "ada")

    def finish(self, name: str, **options) -> None:
        settings = options.pop("settings", None)
        acts.finish(self.connection, declare.find(name, settings), "ada", "done", **options)

    def rollback(self, name: str, **settings: str) -> list[CheckFinding]:
        return acts.rollback(self.connection, declare.find(name, settings), "ada", "no")

    def wait_two_days(self, name: str, table: str, *columns: str) -> None:
        """As if nobody had written to the source for 49 hours, and somebody had looked then."""
        for column in columns:
            self.database.query(
                f"update {table} set {column} = now() - interval '49 hours' where {column} > now() - interval '49 hours'"
            )
        self.database.query("select pg_stat_force_next_flush()") if self.version() >= 150000 else None
        wait_until(lambda: self._has_settled(table))
        acts.look(self.connection, declare.find(name), tables.table(self.connection, table, ours=True))
        self.database.query(
            "update backfills set quiet_since = now() - interval '49 hours' where name = %s", name
        )

    def version(self) -> int:
        return int(self.database.value("select current_setting('server_version_num')"))

    def _has_settled(self, table: str) -> bool:
        """Have the counters of all that was written arrived?"""
        before = self.database.query(
            "select pg_stat_get_tuples_inserted(%s::regclass), pg_stat_get_tuples_updated(%s::regclass)",
            table,
            table,
        )
        time.sleep(1.1)  # a session sends its counters once a second, at the end of a transaction
        self.database.query(f"select count(*) from {table}")
        time.sleep(0.2)
        return before == self.database.query(
            "select pg_stat_get_tuples_inserted(%s::regclass), pg_stat_get_tuples_updated(%s::regclass)",
            table,
            table,
        )

    def ledger(self) -> list[tuple]:
        return self.database.query(
            "select source_id, outcome, reason from platform_backfill_rows order by source_id"
        )

    def state(self, name: str) -> str:
        return str(self.database.value("select state from backfills where name = %s", name))


@pytest.fixture
def mover(any_server: Server) -> Iterator[Mover]:
    """The platform on the oldest and the newest server (mark oldest_and_newest)."""
    database = create_platform_database(any_server)
    made = Mover(database)
    yield made
    made.connection.close()
    database.drop()

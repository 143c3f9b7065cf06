"""What the adapters on Postgres share: a fresh database, a load in one commit, and a cheap observer.

The observer asks one question every 5 ms, the same for all systems: the highest id that is left. While the
queue has a tail this is one index entry; it never walks the entries that finished messages leave behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row

from benchmarks.harness.payload import payload
from benchmarks.harness.postgres import Postgres
from benchmarks.harness.processes import Workers, python_child
from benchmarks.systems.base import (
    DRAIN_SECONDS,
    POLL_SECONDS,
    SETTLE_SECONDS,
    WARM_UP_MESSAGES,
    Missing,
    Producer,
    Stores,
)

SETTLE = "analyze"
"""Run at the end of a load, inside its transaction, for every system alike."""


class SqlProducer:
    """A producer that calls SQL through one autocommit psycopg connection."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)

    def one(self, message: dict[str, Any]) -> None:
        """Enqueue one message in a transaction of its own."""
        raise NotImplementedError

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Enqueue messages one after the other."""
        for message in messages:
            self.one(message)

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()


class Progress:
    """How far a queue with ascending ids has been worked off.

    Each question starts at the answer of the last one, so under a held snapshot it does not walk the dead
    entries of everything that was done before.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: sql.Identifier) -> None:
        self._query = sql.SQL("select min(id) from {} where id >= %s").format(table)
        self._cursor = connection.cursor(row_factory=scalar_row)
        self.lowest = 0

    def lowest_left(self) -> int | None:
        """The lowest id that is left; None when nothing is."""
        found = self._cursor.execute(self._query, (self.lowest,), prepare=True).fetchone()
        if found is not None:
            self.lowest = int(found)
        return found


class PostgresSystem:
    """Base of the adapters on Postgres; a subclass names its table and says how to fill it."""

    name: ClassVar[str]
    module: ClassVar[str]
    table: ClassVar[tuple[str, ...]]

    def __init__(self, stores: Stores) -> None:
        if stores.postgres is None:
            raise Missing(stores.notes.get("postgres", "no Postgres"))
        self.server: Postgres = stores.postgres
        self.database = ""
        self.observer: psycopg.Connection[Any] | None = None

    def open(self) -> None:
        """Make a fresh database with the system's schema."""
        self.database = self.server.create()
        self.install()
        self.observer = psycopg.connect(self.store_url(), autocommit=True)

    def install(self) -> None:
        """Create the system's schema in the fresh database."""
        raise NotImplementedError

    def fill(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Write `count` messages inside the connection's open transaction."""
        raise NotImplementedError

    def fill_one_conversation(
        self, connection: psycopg.Connection[Any], count: int, *, unseen: bool = False
    ) -> None:
        """Write `count` messages of one conversation inside the connection's open transaction.

        unseen: in the state they have before a claim has found out that they must wait.
        """
        raise NotImplementedError

    def fill_distinct_conversations(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Write `count` messages of as many conversations inside the connection's open transaction."""
        raise NotImplementedError

    def store_url(self) -> str:
        """Where producers connect to."""
        return self.server.uri(self.database)

    def environment(self) -> dict[str, str]:
        """Variables that tell a child where the store is."""
        return {"DATABASE_URL": self.store_url()}

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start one Python child per worker process and wait until each is connected."""
        variables = {**self.environment(), **(env or {})}
        children = [python_child(self.module, "worker", env=variables) for _ in range(processes)]
        workers = Workers(children, processes)
        try:
            for child in children:
                child.expect("ready")
        except BaseException:
            workers.stop()
            raise
        return workers

    def warm_up(self, workers: Workers) -> None:
        """Pass WARM_UP_MESSAGES twice, then leave the workers idle for SETTLE_SECONDS."""
        producer = self.producer()
        try:
            for _ in range(2):
                producer.many([payload(number) for number in range(WARM_UP_MESSAGES)])
                self.wait_drained(workers)
                time.sleep(SETTLE_SECONDS / 2)  # into idleness: the next messages meet workers that wait
        finally:
            producer.close()

    def producer(self) -> Producer:
        """A producer on the current database, in this process."""
        return self.make_producer(self.store_url())

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        raise NotImplementedError

    def load(self, workers: Workers, count: int) -> float:
        """Write `count` messages, finish them, then commit; returns the moment after the commit."""
        with psycopg.connect(self.store_url()) as connection:
            self.fill(connection, count)
            return self.commit_quietly(connection)

    def commit_quietly(self, connection: psycopg.Connection[Any]) -> float:
        """Commit a load that has been analyzed and written back, as it would have been some minutes later.

        Without this a plan that was cached on the empty table, and the checkpoint of the load, would be part
        of what is measured. Returns the moment after the commit.
        """
        connection.execute(SETTLE)
        self.server.admin.execute("checkpoint")
        connection.commit()
        return time.monotonic()

    def wait_drained(self, workers: Workers) -> float:
        """Wait until the table is empty."""
        return self.wait_drained_above(workers, 0)

    def wait_drained_above(self, workers: Workers, floor: int) -> float:
        """Wait until no id above `floor` is left; returns that moment. Raises TimeoutError."""
        query = sql.SQL("select max(id) from {} where id > %s").format(self.identifier())
        cursor = self.observing().cursor(row_factory=scalar_row)
        deadline = time.monotonic() + DRAIN_SECONDS
        while cursor.execute(query, (floor,), prepare=True).fetchone() is not None:
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"{self.name}: messages left after {DRAIN_SECONDS:.0f} s")
            workers.check()
            time.sleep(POLL_SECONDS)  # observed from outside, so that no system spends time on telling
        return time.monotonic()

    def progress(self) -> Progress:
        """A fresh view of how far the queue has been worked off."""
        return Progress(self.observing(), self.identifier())

    def highest_id(self, connection: psycopg.Connection[Any]) -> int:
        """The highest id that this connection sees; 0 on an empty table."""
        query = sql.SQL("select coalesce(max(id), 0) from {}").format(self.identifier())
        found = connection.cursor(row_factory=scalar_row).execute(query).fetchone()
        return int(found or 0)

    def lowest_id(self, connection: psycopg.Connection[Any], floor: int) -> int:
        """The lowest id from `floor` on that this connection sees. There must be one."""
        query = sql.SQL("select min(id) from {} where id >= %s").format(self.identifier())
        found = connection.cursor(row_factory=scalar_row).execute(query, (floor,)).fetchone()
        assert found is not None, "nothing was filled in"
        return int(found)

    def identifier(self) -> sql.Identifier:
        """The table of live messages."""
        return sql.Identifier(*self.table)

    def observing(self) -> psycopg.Connection[Any]:
        """The observer's connection."""
        assert self.observer is not None, "open() comes first"
        return self.observer

    def activity(self) -> tuple[int, str]:
        """Committed transactions of the database so far."""
        return self.server.transactions(self.database), "transactions"

    def close(self) -> None:
        """Drop the database."""
        if self.observer is not None:
            self.observer.close()
            self.observer = None
        if self.database:
            self.server.drop(self.database)
            self.database = ""

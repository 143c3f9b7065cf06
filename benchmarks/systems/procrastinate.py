"""Procrastinate, best settings of a short sweep: async task, concurrency 50, finished jobs deleted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

import procrastinate
import psycopg

from benchmarks.harness.handler import at_once, chosen_coroutine, chosen_handler
from benchmarks.harness.payload import NUMBER_MARK, SENT_MARK, TEMPLATE
from benchmarks.systems.base import NO_OP_SYNC, PEER_CASES, WAITING_CASES, Producer, Sizes
from benchmarks.systems.postgres_base import PostgresSystem

CONCURRENCY = 50
QUEUE = "bench"
TASK = "bench"
FILL = """
select procrastinate_defer_jobs_v1(array_agg(
  row(%s, %s, 0, null, null, replace(replace(%s, %s, number::text), %s, '0')::jsonb, null)
    ::procrastinate_job_to_defer_v1
))
from generate_series(1, %s) as number
"""


class ProcrastinateProducer:
    """Defers through the synchronous connector with one connection."""

    def __init__(self, url: str) -> None:
        connector = procrastinate.SyncPsycopgConnector(conninfo=url, min_size=1, max_size=1)
        self._app = procrastinate.App(connector=connector)
        self._app.open()
        self._task = self._app.configure_task(TASK, queue=QUEUE)

    def one(self, message: dict[str, Any]) -> None:
        """Defer one job."""
        self._task.defer(**message)

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Defer jobs one after the other."""
        for message in messages:
            self._task.defer(**message)

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Defer a batch in one call."""
        self._task.batch_defer(*messages)

    def close(self) -> None:
        """Disconnect."""
        self._app.close()


class Adapter(PostgresSystem):
    """Procrastinate as a system."""

    name: ClassVar[str] = "procrastinate"
    module: ClassVar[str] = "benchmarks.systems.procrastinate"
    table: ClassVar[tuple[str, ...]] = ("procrastinate_jobs",)
    sizes: ClassVar[Sizes] = Sizes(drain={1: 2_500, 2: 2_500}, single=2_500, bulk=30_000)
    cases: ClassVar[frozenset[str]] = PEER_CASES | WAITING_CASES | {NO_OP_SYNC}

    def install(self) -> None:
        """Apply its schema."""
        app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=self.store_url()))
        with app.open():
            app.schema_manager.apply_schema()

    def fill(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Call the function that a batch defer calls."""
        connection.execute(FILL, (QUEUE, TASK, TEMPLATE, NUMBER_MARK, SENT_MARK, count))

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        return ProcrastinateProducer(url)


async def work(url: str) -> None:
    """Run one worker until SIGTERM."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    handler = chosen_handler()

    async def bench(**message: Any) -> None:
        handler(**message)

    app.task(name=TASK, queue=QUEUE)(chosen_coroutine() or bench)

    async with app.open_async():
        print("ready", flush=True)
        await app.run_worker_async(concurrency=at_once(CONCURRENCY), delete_jobs="always")


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(work(os.environ["DATABASE_URL"]))

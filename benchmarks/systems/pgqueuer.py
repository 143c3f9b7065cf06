"""PgQueuer with its best settings of a short sweep: asyncpg, uvloop, batches of 500.

Where the number at once is given, it is max_concurrent_tasks, and a batch is at most a quarter of it:
PgQueuer wants room for two.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, ClassVar

import asyncpg
import uvloop
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from benchmarks.harness.handler import at_once, chosen_coroutine, chosen_handler
from benchmarks.harness.payload import payload_json
from benchmarks.harness.processes import Workers
from benchmarks.systems.base import PEER_CASES, WAITING_CASES, Producer, Sizes
from benchmarks.systems.postgres_base import SETTLE, PostgresSystem

BATCH = 500
ENTRYPOINT = "bench"


class PgqueuerProducer:
    """Enqueues through one asyncpg connection on a private event loop."""

    def __init__(self, url: str) -> None:
        self._loop = uvloop.new_event_loop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(url))
        self._queries = Queries.from_asyncpg_connection(self._connection)

    def one(self, message: dict[str, Any]) -> None:
        """Enqueue one job."""
        self._loop.run_until_complete(self._queries.enqueue(ENTRYPOINT, json.dumps(message).encode()))

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Enqueue jobs one after the other without leaving the event loop."""

        async def all_of_them() -> None:
            for message in messages:
                await self._queries.enqueue(ENTRYPOINT, json.dumps(message).encode())

        self._loop.run_until_complete(all_of_them())

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Enqueue a batch in one call."""
        bodies: list[bytes | None] = [json.dumps(message).encode() for message in messages]
        self._loop.run_until_complete(
            self._queries.enqueue([ENTRYPOINT] * len(bodies), bodies, [0] * len(bodies))
        )

    def close(self) -> None:
        """Disconnect."""
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()


class Adapter(PostgresSystem):
    """PgQueuer as a system."""

    name: ClassVar[str] = "pgqueuer"
    module: ClassVar[str] = "benchmarks.systems.pgqueuer"
    table: ClassVar[tuple[str, ...]] = ("pgqueuer",)
    sizes: ClassVar[Sizes] = Sizes(drain={1: 50_000, 2: 80_000}, single=6_000, bulk=100_000)
    cases: ClassVar[frozenset[str]] = PEER_CASES | WAITING_CASES

    def install(self) -> None:
        """Apply its schema."""

        async def apply() -> None:
            connection = await asyncpg.connect(self.store_url())
            await Queries.from_asyncpg_connection(connection).install()
            await connection.close()

        uvloop.run(apply())

    def load(self, workers: Workers, count: int) -> float:
        """Enqueue all jobs in one call inside a transaction; returns the moment after its commit."""

        async def enqueue() -> float:
            connection = await asyncpg.connect(self.store_url())
            bodies: list[bytes | None] = [payload_json(number).encode() for number in range(count)]
            transaction = connection.transaction()
            await transaction.start()
            queries = Queries.from_asyncpg_connection(connection)
            await queries.enqueue([ENTRYPOINT] * count, bodies, [0] * count)
            await connection.execute(SETTLE)
            self.server.admin.execute("checkpoint")
            await transaction.commit()
            committed = time.monotonic()
            await connection.close()
            return committed

        return uvloop.run(enqueue())

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        return PgqueuerProducer(url)


async def work(url: str) -> None:
    """Run one queue manager until SIGTERM."""
    connection = await asyncpg.connect(url)
    manager = QueueManager(Queries.from_asyncpg_connection(connection))
    handler, coroutine = chosen_handler(), chosen_coroutine()

    async def bench(job: Job) -> None:
        handler(**json.loads(job.payload or b"{}"))

    async def waiting(job: Job) -> None:
        assert coroutine is not None
        await coroutine(**json.loads(job.payload or b"{}"))

    manager.entrypoint(ENTRYPOINT)(waiting if coroutine else bench)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
    print("ready", flush=True)
    most = at_once(0)
    await manager.run(batch_size=min(BATCH, most // 4) if most else BATCH, max_concurrent_tasks=most)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    uvloop.run(work(os.environ["DATABASE_URL"]))

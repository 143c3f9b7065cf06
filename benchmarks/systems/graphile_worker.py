"""graphile-worker (Node) with its best settings: local queue of 500, batched completion, concurrency 24.

Where the number at once is given, it is the concurrency, and the local queue holds one more, as its
documentation advises. Jobs are added by its SQL functions, which are public; so the producers need no Node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from psycopg.types.json import Json

from benchmarks.harness import node
from benchmarks.harness.payload import NUMBER_MARK, SENT_MARK, TEMPLATE
from benchmarks.harness.processes import Child, Workers
from benchmarks.systems.base import PEER_CASES, WAITING_CASES, Missing, Producer, Sizes, Stores
from benchmarks.systems.postgres_base import PostgresSystem, SqlProducer

PACKAGES = {"graphile-worker": "0.18.0"}
SCRIPT = Path(__file__).with_suffix(".mjs")
INSTALL_SECONDS = 60
ADD_JOB = "select from graphile_worker.add_job('bench', %s)"
ADD_JOBS = """
select count(*) from graphile_worker.add_jobs(array(
  select row('bench', payload, null, null, null, null, null, null)::graphile_worker.job_spec
  from unnest(%s::json[]) as payload
))
"""
FILL = """
select count(*) from graphile_worker.add_jobs(array(
  select row(
    'bench', replace(replace(%s, %s, number::text), %s, '0')::json, null, null, null, null, null, null
  )::graphile_worker.job_spec
  from generate_series(1, %s) as number
))
"""


class GraphileProducer(SqlProducer):
    """Calls add_job and add_jobs."""

    def one(self, message: dict[str, Any]) -> None:
        """Add one job."""
        self.connection.execute(ADD_JOB, (Json(message),), prepare=True)

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Add a batch in one statement."""
        self.connection.execute(ADD_JOBS, ([Json(message) for message in messages],), prepare=True)


class Adapter(PostgresSystem):
    """graphile-worker as a system."""

    name: ClassVar[str] = "graphile-worker"
    module: ClassVar[str] = "benchmarks.systems.graphile_worker"
    table: ClassVar[tuple[str, ...]] = ("graphile_worker", "_private_jobs")
    sizes: ClassVar[Sizes] = Sizes(
        drain={1: 150_000, 2: 200_000}, single=8_000, bulk=100_000, bulk_call=20_000
    )
    cases: ClassVar[frozenset[str]] = PEER_CASES | WAITING_CASES

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores)
        try:
            self._node = node.ensure(PACKAGES)
        except node.NoNode as error:
            raise Missing(str(error)) from error

    def environment(self) -> dict[str, str]:
        """libpq's variables, which the Node client reads as well."""
        parameters = psycopg.conninfo.conninfo_to_dict(self.store_url())
        return {
            "PGHOST": str(parameters["host"]),
            "PGUSER": str(parameters["user"]),
            "PGDATABASE": str(parameters["dbname"]),
            "DATABASE_URL": "",
            "BENCH_NODE_HOME": str(node.FOLDER),
            "NO_LOG_SUCCESS": "1",
        }

    def install(self) -> None:
        """Run its migrations."""
        child = self._child("migrate", {})
        try:
            child.expect("migrated", INSTALL_SECONDS)
        finally:
            child.stop()

    def fill(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Add all jobs in one statement."""
        connection.execute(FILL, (TEMPLATE, NUMBER_MARK, SENT_MARK, count))

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start one Node process per worker."""
        workers = Workers([self._child("worker", env or {}) for _ in range(processes)], processes)
        try:
            for child in workers.children:
                child.expect("ready")
        except BaseException:
            workers.stop()
            raise
        return workers

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        return GraphileProducer(url)

    def _child(self, word: str, env: Mapping[str, str]) -> Child:
        return Child([self._node, str(SCRIPT), word], {**self.environment(), **env})

"""Packhorse as its users run it: `packhorse migrate up`, `packhorse worker`, dramatiq actors on its broker.

Drains are loaded as a SQL producer may do it, by inserting rows and calling `wake_queue`, in one commit, so
that a million messages do not take minutes; what is measured as enqueue goes through the actors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import dramatiq
import psycopg
from psycopg.rows import scalar_row

from benchmarks.harness.config import HOME
from benchmarks.harness.handler import AT_ONCE, noop
from benchmarks.harness.payload import NUMBER_MARK, SENT_MARK, TEMPLATE
from benchmarks.harness.processes import Child, Workers
from benchmarks.systems.base import NO_OP_SYNC, PEER_CASES, THREADS, WAITING_CASES, Producer, Sizes
from benchmarks.systems.postgres_base import PostgresSystem
from packhorse import PostgresBroker, enqueue_payloads

ACTORS = "benchmarks.systems.packhorse_actors"
MORE_ACTORS: Mapping[str, tuple[str, ...]] = {
    "waiting": ("benchmarks.systems.waiting_actors",),
    "outage": ("benchmarks.systems.outage_actors",),
}
"""Beside ACTORS in a variant."""
QUEUE = "bench"
ACTOR = "bench"
START_SECONDS = 60.0
UNINSTALLED = "import sys; from packhorse.worker.cli.program import main; sys.exit(main())"
"""The command in a source tree that is not installed."""
SERVED, SERVED_PORT = "served", 19191
"""A variant that serves metrics and has been asked for them once: with its exporter, as it runs in
production.
"""
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "polling": {"PACKHORSE_WAKEUPS": "poll"},
    "two-workers-ten-queues": {"BENCH_QUEUES": "10"},
    SERVED: {"PACKHORSE_METRICS_PORT": str(SERVED_PORT)},
}
"""What a variant sets in the environment of the workers."""
FILL = """
insert into packhorse.message_queue (queue, message_type, payload, conversation_key, state)
select %(queue)s, %(actor)s,
  replace(replace(%(template)s, %(number_mark)s, number::text), %(sent_mark)s, '0')::jsonb,
  %(prefix)s::text || case when %(distinct)s then number::text else '' end,
  case when %(blocked)s and number > 1 then 'blocked' else 'pending' end
from generate_series(1, %(count)s) as number
"""


def command(*arguments: str) -> list[str]:
    """The `packhorse` command beside this interpreter, else on the path, else the function behind it."""
    beside = Path(sys.executable).with_name("packhorse")
    found = str(beside) if beside.exists() else shutil.which("packhorse")
    return [found, *arguments] if found else [sys.executable, "-c", UNINSTALLED, *arguments]


class PackhorseProducer:
    """An actor on a broker of its own."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._broker = PostgresBroker(dsn=url)
        self._actor = dramatiq.actor(actor_name=ACTOR, queue_name=QUEUE, broker=self._broker)(noop)

    def one(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self._actor.send(**message)

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Send messages one after the other."""
        for message in messages:
            self._actor.send(**message)

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Enqueue a batch of payloads in one transaction."""
        with self._connection.transaction():
            enqueue_payloads(self._connection, ACTOR, messages, queue=QUEUE)

    def many_messages(self, messages: list[dict[str, Any]]) -> None:
        """Enqueue a batch of dramatiq messages in one transaction: each has an id and options of its own."""
        self._broker.enqueue_many([self._actor.message(**message) for message in messages])

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
        self._broker.close()


class Adapter(PostgresSystem):
    """Packhorse as a system."""

    name: ClassVar[str] = "packhorse"
    module: ClassVar[str] = ACTORS
    table: ClassVar[tuple[str, ...]] = ("packhorse", "message_queue")
    sizes: ClassVar[Sizes] = Sizes(drain={1: 100_000, 2: 150_000}, bulk=200_000)
    cases: ClassVar[frozenset[str]] = (
        PEER_CASES
        | WAITING_CASES
        | {
            "enqueue/bulk-messages",
            "enqueue/producers16",
            "pickup/polling",
            "pickup/pooled",
            "pickup/pooled-redis",
            "producers/rate",
            "producers/trickle",
            "backlog/without",
            "backlog/with",
            "backlog/distinct-keys",
            "backlog/one-conversation",
            "backlog/one-conversation-unseen",
            "snapshot",
            "memory/idle",
            "maintenance/pickup",
            "maintenance/drain",
            "maintenance/delete",
            "maintenance/partition",
            "maintenance/idle",
            "observability/scrape",
            "observability/drain",
            "observability/switched",
            "idle/two-workers-ten-queues",
            "recovery",
            "http/enqueue",
            "push/rate",
            "relay/rate",
            "relay/consume",
            "web/pages",
            NO_OP_SYNC,
            "waiting/pickup",
            "waiting/conversations",
            "waiting/killed",
            "waiting/steps",
            "waiting/calls",
            "outage",
            "fairness/claims",
            "fairness/worker",
            "platform/calls",
            "platform/at-once",
            "platform/sample",
            "backfill/sessions",
            "backfill/pickup",
            "backfill/session-ids",
            "bursts/enqueue",
            "bursts/window",
        }
    )

    def environment(self) -> dict[str, str]:
        """The database, a quiet log, and where the actors are."""
        path = os.pathsep.join(filter(None, [str(HOME.parent), os.environ.get("PYTHONPATH")]))
        return {"DATABASE_URL": self.store_url(), "PACKHORSE_LOG_LEVEL": "warning", "PYTHONPATH": path}

    def install(self) -> None:
        """Migrate and declare the queue."""
        self._migrate()
        with psycopg.connect(self.store_url()) as connection:
            connection.execute("select packhorse.declare_queue(%s)", (QUEUE,))

    def add_platform(self) -> None:
        """The tables of the conversation platform, too."""
        self._migrate("--with", "platform")

    def _migrate(self, *options: str) -> None:
        env = {**os.environ, **self.environment()}
        done = subprocess.run(
            command("migrate", "up", *options), env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"packhorse migrate up: status {done.returncode}\n{done.stdout}{done.stderr}")

    def fill(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Insert `count` messages without a conversation."""
        self._insert(connection, count)

    def fill_one_conversation(
        self, connection: psycopg.Connection[Any], count: int, *, unseen: bool = False
    ) -> None:
        """Insert messages of one conversation, blocked behind the first, as a bulk enqueue leaves them.

        unseen: all pending, as single enqueues leave them until a claim has seen that they wait.
        """
        self._insert(connection, count, prefix="long", blocked=not unseen)

    def fill_distinct_conversations(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Insert `count` messages of as many conversations."""
        self._insert(connection, count, prefix="short-", distinct=True)

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start one daemon with `processes` worker processes and wait until all have registered."""
        variables = {**self.environment(), **VARIANTS.get(variant, {}), **(env or {})}
        if AT_ONCE in variables:
            variables["PACKHORSE_COROUTINES"] = variables[AT_ONCE]
        modules = [ACTORS, *MORE_ACTORS.get(variant, ())]
        arguments = ("worker", "--processes", str(processes), "--threads", str(THREADS), *modules)
        workers = Workers([Child(command(*arguments), variables)], processes)
        try:
            self._wait_registered(workers, processes)
            if variant == SERVED:
                self._wait_scraped(workers)
        except BaseException:
            workers.stop()
            raise
        return workers

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        return PackhorseProducer(url)

    def _wait_registered(self, workers: Workers, processes: int) -> None:
        """Return when the table `workers` lists all processes."""
        cursor = self.observing().cursor(row_factory=scalar_row)
        deadline = time.monotonic() + START_SECONDS
        while (cursor.execute("select count(*) from packhorse.workers").fetchone() or 0) < processes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{processes} worker processes did not register in {START_SECONDS:.0f} s")
            workers.check()
            time.sleep(0.05)  # registration is seen in the table only

    def _wait_scraped(self, workers: Workers) -> None:
        """Return when the exporter has answered with the numbers of the queue."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{SERVED_PORT}/metrics", timeout=5) as answer:
                    if b"packhorse_queue_messages" in answer.read():
                        return
            except OSError:
                pass  # not bound yet
            if time.monotonic() > deadline:
                raise TimeoutError(f"no metrics at port {SERVED_PORT} in {START_SECONDS:.0f} s")
            workers.check()
            time.sleep(0.2)  # nothing tells when it has counted

    def _insert(
        self,
        connection: psycopg.Connection[Any],
        count: int,
        *,
        prefix: str | None = None,
        distinct: bool = False,
        blocked: bool = False,
    ) -> None:
        """Insert messages and wake sleeping workers. prefix: of the conversation keys, if any."""
        parameters = {
            "queue": QUEUE,
            "actor": ACTOR,
            "template": TEMPLATE,
            "number_mark": NUMBER_MARK,
            "sent_mark": SENT_MARK,
            "prefix": prefix,
            "distinct": distinct,
            "blocked": blocked,
            "count": count,
        }
        connection.execute(FILL, parameters)
        connection.execute("select packhorse.wake_queue(%s)", (QUEUE,))

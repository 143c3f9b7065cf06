"""One scenario, three houses: dramatiq's Worker on StubBroker, dramatiq's Worker on our broker, our runtime.

A house is a broker plus whatever runs its actors in threads of this process. Declare actors on
`house.broker`, start, send, `house.drained()`.
"""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends.stub import StubBackend as StubLimiters
from dramatiq.results import Results
from dramatiq.results.backends.stub import StubBackend as StubResults

from packhorse.worker.broker.backends import rate_limiter_backend, result_backend
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from tests.support.postgres import Database
from tests.support.waiting import wait_until

HOUSES = ["stub", "dramatiq-worker", "runtime"]
#: The two on our broker, as parameters. The fast ring asks our runtime.
WAYS = [pytest.param("dramatiq-worker", marks=pytest.mark.slow), "runtime"]
QUICK: dict[str, Any] = {
    "heartbeat_seconds": 0.5,
    "lease_seconds": 6,
    "rescue_seconds": 0.3,
    "call_deadline_seconds": 3,
    "poll_seconds": 0.1,
    "drain_seconds": 5,
    "threads": 4,
}


def quick_settings(database: Database, **changes: Any) -> Settings:
    """Settings with short intervals, from nothing but these arguments."""
    return load_settings({}, database_url=database.url, **{**QUICK, **changes})


class House:
    """`name` is one of HOUSES. with_results: results, group callbacks and async actors as middleware."""

    def __init__(self, name: str, database: Any, monkeypatch: Any, **settings: Any) -> None:
        self.name = name
        self.database = database  # None for "stub"
        self.settings = (
            load_settings({}, **{**QUICK, **settings})
            if database is None
            else quick_settings(database, **settings)
        )
        self._monkeypatch = monkeypatch
        self._worker: Any = None
        self._thread: threading.Thread | None = None
        self.exit_code: int | None = None
        self.broker: Any
        if name == "stub":
            self.broker = StubBroker()
            self.results: Any = StubResults()
            self.limiters: Any = StubLimiters()
        else:
            self.broker = PostgresBroker(settings=self.settings)
            self.results = result_backend(self.broker)
            self.limiters = rate_limiter_backend(self.broker)
        monkeypatch.setattr("dramatiq.broker.global_broker", self.broker)

    def with_results(self) -> House:
        self.broker.add_middleware(AsyncIO())
        self.broker.add_middleware(GroupCallbacks(self.limiters))
        self.broker.add_middleware(Results(backend=self.results))
        return self

    def start(self) -> House:
        if self.name == "runtime":
            self._monkeypatch.setattr(
                "packhorse.worker.runtime.process.load_broker", lambda settings: self.broker
            )
            self._worker = WorkerProcess(self.settings, RunningIds.of(self.settings), uuid4())
            self._thread = threading.Thread(target=self._run, name="house")
            self._thread.start()
        else:
            self._worker = dramatiq.Worker(
                self.broker, worker_timeout=50, worker_threads=self.settings.threads
            )
            self._worker.start()
        return self

    def _run(self) -> None:
        self.exit_code = self._worker.run()

    def stop(self) -> None:
        if self._thread is not None:
            self._worker.stop()
            self._thread.join(20)
            assert not self._thread.is_alive(), "the runtime did not drain"
            self._thread = None
        elif self._worker is not None:
            self._worker.stop()
        self._worker = None
        self.broker.close()

    def drained(self, timeout_seconds: float = 15.0) -> None:
        """Wait until no message of any queue lives: waiting, delayed or running."""
        if self.name == "stub":
            for queue in [q for q in self.broker.queues if not q.endswith(".DQ")]:
                self.broker.join(queue, timeout=int(timeout_seconds * 1000), fail_fast=False)
            self._worker.join()
        else:
            with self.database.connect(admin=True) as connection:
                wait_until(
                    lambda: not connection.execute("select exists (select from message_queue)").fetchone()[0],
                    timeout_seconds,
                    "no live message",
                )

    def dead(self) -> list[str]:
        """Actor names of the dead letters, in no order."""
        if self.name == "stub":
            return sorted(message.actor_name for message in self.broker.dead_letters)
        return sorted(row[0] for row in self.database.query("select message_type from dead_letters"))

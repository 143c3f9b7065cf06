"""What the metrics ask of a queue system, and what every adapter promises.

The life of an adapter in one measurement: `open` (fresh store) → `start` (workers) → `warm_up` → `load` →
`wait_drained` → `close`. Moments are seconds of the host's monotonic clock, which all processes share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from benchmarks.harness.postgres import Postgres
from benchmarks.harness.processes import Workers
from benchmarks.harness.redis import Redis

WARM_UP_MESSAGES = 200
SETTLE_SECONDS = 1.0
"""After a warm-up: no peer tells when its last acknowledgement and its idle poll are through."""
DRAIN_SECONDS = 120.0
POLL_SECONDS = 0.005
"""Between two looks at a store from outside: 0.2 % of a drain of 2.5 s, and too seldom to cost the system its
processor.
"""
THREADS = 8
PEER_CASES = frozenset({"work", "enqueue/single", "enqueue/bulk", "pickup/listen", "idle/one-worker"})
"""What every system with a store takes part in."""
WAITING_CASES = frozenset({"waiting/second", "waiting/short", "waiting/no-op"})
"""What every system takes part in whose handlers can await."""
NO_OP_SYNC = "waiting/no-op, sync"
"""Among its cases: the system has synchronous handlers, too. `waiting/no-op` compares both kinds."""


class Missing(RuntimeError):
    """A system cannot run here; the message is the note that the run prints."""


@dataclass(frozen=True)
class Stores:
    """The servers of a run; one that could not be started is absent and its reason is in `notes`."""

    postgres: Postgres | None = None
    redis: Redis | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How many messages make a run of 2 to 6 seconds on two cores.

    drain: by worker processes. single: one message per transaction. bulk: in calls of `bulk_call`.
    producers16: of all sixteen together.
    """

    drain: Mapping[int, int]
    single: int = 10_000
    bulk: int = 100_000
    bulk_call: int = 1_000
    producers16: int = 20_000


class Producer(Protocol):
    """One connection that enqueues messages, each a dict of JSON values."""

    def one(self, message: dict[str, Any]) -> None:
        """Enqueue one message in a transaction of its own."""

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Enqueue messages one after the other, each in a transaction of its own."""

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Enqueue messages by the fastest documented way; one at a time where there is none."""

    def close(self) -> None:
        """Disconnect."""


class System(Protocol):
    """One queue system on fresh stores.

    cases: the keys of the cases it takes part in, for example `work` or `enqueue/single`.
    """

    name: ClassVar[str]
    sizes: ClassVar[Sizes]
    cases: ClassVar[frozenset[str]]

    def __init__(self, stores: Stores) -> None:
        """Raises Missing when it cannot run on these stores or on this machine."""

    def open(self) -> None:
        """Make a fresh, empty store with the system's schema."""

    def store_url(self) -> str:
        """Where producers connect to."""

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start workers and return when they are connected.

        hold: begin to take messages only at `load`, where the system needs that to make a load invisible.
        env: extra variables for the workers, such as BENCH_LATENCY_FILE.
        """

    def warm_up(self, workers: Workers) -> None:
        """Pass some messages through the workers, then leave them idle for SETTLE_SECONDS."""

    def load(self, workers: Workers, count: int) -> float:
        """Make `count` messages visible to the workers at one moment; returns that moment."""

    def wait_drained(self, workers: Workers) -> float:
        """Wait until every message is completed in the store; returns that moment. Raises TimeoutError."""

    def activity(self) -> tuple[int, str]:
        """Commands the store has run so far and their unit: `transactions` or `commands`."""

    def close(self) -> None:
        """Remove the store. Workers must have ended."""

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""

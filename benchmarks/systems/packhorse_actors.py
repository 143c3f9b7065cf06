"""The module of actors that `packhorse worker` is given: one actor, or one on each of ten queues.

BENCH_QUEUES is the number of queues (1). BENCH_CLAIM_FILE times every claim statement of the process; it is
set only where claim times are asked for, so the other runs are not instrumented. BENCH_BLIND takes away what counts and
logs outcomes: the worker to which one that does both is compared.
"""

from __future__ import annotations

import os
import time
from typing import Any

import dramatiq
import psycopg

from benchmarks.harness.claim_log import CLAIM_FILE, ClaimLog
from benchmarks.harness.handler import chosen_handler

QUEUE = "bench"
ACTOR = "bench"
QUEUES_VARIABLE = "BENCH_QUEUES"
BLIND = "BENCH_BLIND"
CLAIM = "claim_messages"
"""Part of the name of every SQL function that claims."""


def declare_actors(count: int) -> None:
    """Declare `count` actors on as many queues of the global broker; the first is ACTOR on QUEUE."""
    handler = chosen_handler()

    def bench(**message: Any) -> None:
        handler(**message)

    for number in range(count):
        suffix = f"_{number}" if number else ""
        dramatiq.actor(actor_name=ACTOR + suffix, queue_name=QUEUE + suffix)(bench)


def time_claims(log: ClaimLog) -> None:
    """Note the duration of every statement that calls a claim function, as its cursor sees it."""
    execute = psycopg.Cursor.execute

    def timed(self: psycopg.Cursor[Any], query: Any, *args: Any, **kwargs: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        started = time.perf_counter()
        try:
            return execute(self, query, *args, **kwargs)
        finally:
            if CLAIM in text:
                log.add(time.perf_counter() - started)

    psycopg.Cursor.execute = timed  # type: ignore[method-assign]


def blind() -> None:
    """No counting for metrics, no look at the log level per outcome."""
    from worker.runtime.meter import Meter
    from worker.runtime.outcomes import OutcomeLog

    def nothing(*_: Any) -> None:
        pass

    def forget(meter: Any) -> None:
        for slot in meter._slots:
            slot.begun.clear()  # what nobody collects would keep every message of the run in memory

    for kind, names in ((Meter, ("done", "finished", "claimed", "publish")), (OutcomeLog, ("done", "ended"))):
        for name in names:
            if not callable(getattr(kind, name)):
                raise TypeError(f"{kind.__name__}.{name} is gone: nothing would be compared")
            setattr(kind, name, forget if name == "publish" else nothing)


if os.environ.get(BLIND):
    blind()
if os.environ.get(CLAIM_FILE):
    time_claims(ClaimLog.from_env())
declare_actors(int(os.environ.get(QUEUES_VARIABLE) or 1))

"""The module of actors that `packhorse worker` is given: one actor, or one on each of ten queues.

An ordinary function, or a coroutine when BENCH_AWAIT_SECONDS is set. BENCH_QUEUES is the number of queues
(1). BENCH_CLAIM_FILE times every claim statement of the process; it is set only where claim times are asked
for, so the other runs are not instrumented. BENCH_BLIND takes away what counts and logs outcomes: the worker
to which one that does both is compared. BENCH_SWITCH names a file: the same in turns, in one process.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import dramatiq
import psycopg

from benchmarks.harness.claim_log import CLAIM_FILE, ClaimLog
from benchmarks.harness.handler import chosen_coroutine, chosen_handler

QUEUE = "bench"
ACTOR = "bench"
QUEUES_VARIABLE = "BENCH_QUEUES"
BLIND = "BENCH_BLIND"
SWITCH = "BENCH_SWITCH"
SWITCH_SECONDS = 0.4
CLAIM = "claim_messages"
"""Part of the name of every SQL function that claims."""


def declare_actors(count: int) -> None:
    """Declare `count` actors on as many queues of the global broker; the first is ACTOR on QUEUE."""
    handler, coroutine = chosen_handler(), chosen_coroutine()

    def bench(**message: Any) -> None:
        handler(**message)

    for number in range(count):
        suffix = f"_{number}" if number else ""
        dramatiq.actor(actor_name=ACTOR + suffix, queue_name=QUEUE + suffix)(coroutine or bench)


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


def blind() -> list[tuple[type, str, Any]]:
    """No counting for metrics, no look at the log level per outcome; returns (class, name, method) of what
    was taken away.
    """
    from packhorse.worker.runtime.meter import Meter
    from packhorse.worker.runtime.outcome_log import OutcomeLog

    taken = []

    def nothing(*_: Any) -> None:
        pass

    for kind, names in ((Meter, ("done", "finished", "claimed", "publish")), (OutcomeLog, ("done", "ended"))):
        for name in names:
            if not callable(getattr(kind, name)):
                raise TypeError(f"{kind.__name__}.{name} is gone: nothing would be compared")
            taken.append((kind, name, getattr(kind, name)))
            setattr(kind, name, nothing)
    return taken


def switch(path: str) -> None:
    """Take counting away and give it back, again and again; a line per phase: watched, seconds, CPU seconds,
    messages.
    """

    def phases() -> None:
        broker: Any = dramatiq.get_broker()
        watched, taken = True, list[tuple[type, str, Any]]()
        with open(path, "a", buffering=1) as file:
            while True:
                held = broker.runtime.fetcher.in_flight if broker.runtime is not None else None
                began, cpu, done = (
                    time.monotonic(),
                    time.process_time(),
                    held.counts.get("done", 0) if held is not None else 0,
                )
                time.sleep(SWITCH_SECONDS)  # the phase itself
                if held is not None:
                    done = held.counts.get("done", 0) - done
                    file.write(
                        f"{int(watched)} {time.monotonic() - began} {time.process_time() - cpu} {done}\n"
                    )
                watched = not watched
                if watched:
                    for kind, name, method in taken:
                        setattr(kind, name, method)
                else:
                    taken = blind()

    threading.Thread(target=phases, name="switch", daemon=True).start()


class Switching(dramatiq.Middleware):
    """Begins in the worker process: threads do not outlive a fork."""

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        """Start switching."""
        switch(os.environ[SWITCH])


if os.environ.get(BLIND):
    blind()
if os.environ.get(SWITCH):
    dramatiq.get_broker().add_middleware(Switching())
if os.environ.get(CLAIM_FILE):
    time_claims(ClaimLog.from_env())
declare_actors(int(os.environ.get(QUEUES_VARIABLE) or 1))

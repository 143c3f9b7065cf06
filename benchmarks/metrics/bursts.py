"""What does a debounced enqueue cost beside a plain one, and how late does its window end?

`enqueue`: one connection, one transaction per call, plain and in bursts of five, turn about; the cost of
a debounced enqueue as a multiple of a plain one. `window`: an idle worker that listens; from the end of a
window to the claim of its message, by the clock of the database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import ACTOR, QUEUE

CASES = [Case("bursts/enqueue"), Case("bursts/window")]
TURNS, CALLS, BURST = 9, 500, 5
WINDOW_SECONDS = 0.5
PAUSE_SECONDS = 0.02
LAST_SECONDS = 30.0
PLAIN = "select message_id from packhorse.enqueue_message(%s, %s, %s::jsonb, p_conversation_key => %s)"
DEBOUNCED = PLAIN[:-1] + ", p_debounce => interval '1 hour')"
WINDOW = PLAIN[:-1] + f", p_debounce => interval '{WINDOW_SECONDS} seconds')"
LATE = f"""
select extract(epoch from claimed_at - created_at)::float8 * 1000 - {WINDOW_SECONDS * 1000}
from packhorse.message_archive where conversation_key like 'window %%' and state = 'done'
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """On a queue of its own content: nothing else is enqueued meanwhile."""
    with psycopg.connect(system.store_url(), autocommit=True) as connection:
        if case.key == "bursts/enqueue":
            yield from _enqueue(connection)
        else:
            yield from _window(system, connection, settings.samples)


def _calls(connection: psycopg.Connection, statement: str, turn: int) -> float:
    """Seconds per call."""
    began = time.perf_counter()
    for number in range(CALLS):
        connection.execute(
            statement, (QUEUE, ACTOR, '{"text": "hello"}', f"{statement[-9:]} {turn} {number // BURST}")
        )
    return (time.perf_counter() - began) / CALLS


def _enqueue(connection: psycopg.Connection) -> Iterator[Number]:
    plain, debounced = [], []
    for turn in range(TURNS):
        plain.append(_calls(connection, PLAIN, turn))
        debounced.append(_calls(connection, DEBOUNCED, turn))
    yield Number("bursts", "plain", 1, 1 / median(plain), "calls/s")
    yield Number("bursts", "debounced, bursts of five", 1, 1 / median(debounced), "calls/s")
    ratio = median(late / early for early, late in zip(plain, debounced, strict=True))
    yield Number("bursts", "cost of debounced, plain = 1", 1, ratio, "x")


def _window(system: System, connection: psycopg.Connection, samples: int) -> Iterator[Number]:
    workers = system.start(1, variant="listen")
    try:
        system.warm_up(workers)
        for number in range(samples):
            connection.execute(WINDOW, (QUEUE, ACTOR, "{}", f"window {number}"))
            time.sleep(PAUSE_SECONDS)  # the pace of the producers
        deadline = time.monotonic() + LAST_SECONDS
        while len(late := [row[0] for row in connection.execute(LATE)]) < samples:
            workers.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(late)} of {samples} windows ended within {LAST_SECONDS:.0f} s")
            time.sleep(0.1)  # seldom, to leave the worker alone
    finally:
        workers.stop()
    for share in (0.50, 0.95, 0.99):
        yield Number("bursts", f"late after the window p{share * 100:.0f}", 1, percentile(late, share), "ms")

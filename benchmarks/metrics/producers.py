"""What does a worker that keeps up cost those who enqueue? And how late do its handlers start at a steady
trickle?

A worker that sleeps between messages has every enqueue send a NOTIFY, and a commit with a NOTIFY holds a lock
of the whole database cluster. So the same sixteen producers run beside a worker that listens and beside one
that only polls, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import LATENCY_FILE
from benchmarks.harness.processes import Child, python_child
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.enqueue import run_together
from benchmarks.metrics.pickup import collect
from benchmarks.systems.base import System

CASES = [Case("producers/rate"), Case("producers/trickle")]
PRODUCERS = 16
TURNS = ("polling", "listen", "listen", "polling")
"""Neighbours in time are compared; what the machine does more slowly from turn to turn cancels out."""
RATES = (10, 100, 1000)
"""Messages per second of a trickle."""
TRICKLE_SECONDS = 10
PER_PRODUCER = 250
"""Messages per second that one producer of a trickle sends at most."""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """The rate of all producers with and without LISTEN, and the ratio; or p50 and p99 of the pickup at each
    rate.
    """
    if case.key == "producers/rate":
        yield from rates(system, settings)
    else:
        for rate in RATES:
            yield from trickle(system, rate)


def rates(system: System, settings: Settings) -> Iterator[Number]:
    """Messages per second until the last enqueue has committed; one worker process runs them meanwhile."""
    share = max(1, settings.size(system.sizes.producers16) // PRODUCERS)
    found: dict[str, list[float]] = {name: [] for name in TURNS}
    for name in TURNS:
        workers = system.start(1, variant=name)
        try:
            system.warm_up(workers)
            seconds = together(system, "single", share, PRODUCERS, {})
            system.wait_drained(workers)
        finally:
            workers.stop()
        found[name].append(share * PRODUCERS / seconds)
    for name, values in found.items():
        yield Number("producers", name, 1, median(values), "messages/s")
    yield Number("producers", "listen / polling", 1, median(found["listen"]) / median(found["polling"]), "")


def trickle(system: System, rate: int) -> Iterator[Number]:
    """Milliseconds from just before the enqueue call until the handler starts."""
    producers = -(-rate // PER_PRODUCER)
    share = rate * TRICKLE_SECONDS // producers
    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as home:
        path = Path(home) / "latencies"
        workers = system.start(1, variant="listen", env={LATENCY_FILE: str(path)})
        try:
            system.warm_up(workers)
            before = system.activity()[0]
            together(system, "paced", share, producers, {"BENCH_PER_SECOND": str(rate // producers)})
            samples = collect(workers, path, share * producers)
            transactions = system.activity()[0] - before
        finally:
            workers.stop()
    for part in (0.50, 0.99):
        yield Number(
            "producers", f"trickle of {rate}/s p{part * 100:.0f}", 1, percentile(samples, part), "ms"
        )
    yield Number(
        "producers",
        f"trickle of {rate}/s transactions per message",
        1,
        transactions / (share * producers),
        "",
    )


def together(system: System, mode: str, share: int, producers: int, env: dict[str, str]) -> float:
    """Run so many producer processes of `share` messages each; seconds from the first start to the last
    end.
    """
    children: list[Child] = []
    try:
        for _ in range(producers):
            arguments = (system.name, mode, str(share), "1")
            children.append(
                python_child(
                    "benchmarks.harness.producer", *arguments, env={"STORE_URL": system.store_url(), **env}
                )
            )
        return run_together(children)
    finally:
        for child in children:
            child.stop()

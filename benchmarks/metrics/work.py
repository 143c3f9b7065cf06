"""How fast do workers finish no-op messages, completion in the store included, and how big are they then?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.config import Settings
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System

CASES = [Case("work", processes=1), Case("work", processes=2)]


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """From the moment warmed, idle workers can see all messages until the last one is completed."""
    count = settings.size(system.sizes.drain[case.processes])
    workers = system.start(case.processes, hold=True)
    try:
        system.warm_up(workers)
        started = system.load(workers, count)
        ended = system.wait_drained(workers)
        memory, largest = workers.memory_mib(), workers.largest_mib()
    finally:
        workers.stop()
    if "work" in settings.metrics:
        yield Number("work", "drain", case.processes, count / (ended - started), "messages/s")
    if "memory" in settings.metrics:
        yield Number("memory", "after drain, tree", case.processes, memory, "MiB/process")
        yield Number("memory", "after drain, largest", case.processes, largest, "MiB")

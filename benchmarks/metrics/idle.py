"""What does a worker cost that has nothing to do?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.harness.config import Settings
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System

CASES = [Case("idle/one-worker"), Case("idle/two-workers-ten-queues", processes=2)]
QUIET_SECONDS = 12.0
"""Left to the worker after its warm-up. An idle Postgres backend reports its statistics up to 10 s late."""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Transactions (or commands) per second in the store, CPU % of one core, and resident memory."""
    variant = case.key.removeprefix("idle/")
    workers = system.start(case.processes, variant=variant)
    try:
        system.warm_up(workers)
        time.sleep(QUIET_SECONDS)  # nothing happens that could be waited for
        started, cpu, (before, unit) = time.monotonic(), workers.cpu_seconds(), system.activity()
        time.sleep(settings.idle_seconds)  # the measured window
        workers.check()
        ended, cpu_after, (after, _unit) = time.monotonic(), workers.cpu_seconds(), system.activity()
        memory = workers.memory_mib()
    finally:
        workers.stop()
    seconds = ended - started
    yield Number("idle", f"{variant} {unit}", case.processes, (after - before) / seconds, f"{unit}/s")
    yield Number("idle", f"{variant} cpu", case.processes, 100 * (cpu_after - cpu) / seconds, "% of a core")
    yield Number("idle", f"{variant} memory", case.processes, memory, "MiB/process")

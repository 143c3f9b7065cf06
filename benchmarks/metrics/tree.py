"""How much memory do all processes of one worker take that has nothing to do? Whoever serves its metrics is
one of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.harness.config import Settings
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System

CASES = [Case("memory/idle"), Case("memory/idle", processes=2)]
QUIET_SECONDS = 5.0
"""After the start: the first heartbeats."""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Proportional set size of the tree, and of each process of it, the oldest first."""
    workers = system.start(case.processes, variant="served")
    try:
        time.sleep(QUIET_SECONDS)  # nothing happens that could be waited for
        workers.check()
        sizes = workers.sizes_mib("pss")
    finally:
        workers.stop()
    yield Number("memory", "idle, tree", case.processes, sum(sizes), "MiB")
    for number, size in enumerate(sizes, 1):
        yield Number("memory", f"idle, process {number}", case.processes, size, "MiB")

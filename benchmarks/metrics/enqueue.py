"""How fast do producers enqueue when nobody works?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.config import Settings
from benchmarks.harness.processes import Child, python_child
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System

CASES = [
    Case("enqueue/single"),
    Case("enqueue/bulk"),
    Case("enqueue/bulk-messages"),
    Case("enqueue/producers16", processes=4),
]
MODES = {
    "single": ("single", 1),
    "bulk": ("bulk", 1),
    "bulk-messages": ("bulk", 1),
    "producers16": ("producers16", 4),
}
"""Whose size a case has, and how many threads each producer process."""
TIMEOUT_SECONDS = 300.0


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """From the first producer's start to the last one's end; connections are open and warm."""
    variant = case.key.removeprefix("enqueue/")
    size, threads = MODES[variant]
    usual: int = getattr(system.sizes, size)
    producers = case.processes * threads
    share = max(1, settings.size(usual) // producers) * threads
    mode = variant if size == "bulk" else "single"
    children: list[Child] = []
    try:
        for _ in range(case.processes):
            arguments = (system.name, mode, str(share), str(threads))
            env = {"STORE_URL": system.store_url()}
            children.append(python_child("benchmarks.harness.producer", *arguments, env=env))
        seconds = run_together(children)
    finally:
        for child in children:
            child.stop()
    yield Number("enqueue", variant, case.processes, share * case.processes / seconds, "messages/s")


def run_together(children: list[Child]) -> float:
    """Start connected producers at once; returns the seconds from the first start to the last end."""
    for child in children:
        child.expect("ready")
    for child in children:
        child.tell("go")
    spans = [tuple(map(float, child.expect("done", TIMEOUT_SECONDS).split())) for child in children]
    return max(end for _, end in spans) - min(start for start, _ in spans)

"""The parent's record of its processes: one place each, when the next one may start in it, and what an end
means (SPEC W7).
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from packhorse.worker.exits import EXIT_LEASE_LOST, EXIT_OK, EXIT_RECYCLED, EXIT_REPLACED
from packhorse.worker.runtime.running_ids import RunningIds

MAX_BACKOFF_SECONDS = 30.0
#: A child that lived for this long is replaced at once; one that did not waits, longer each time.
STABLE_SECONDS = 10.0


@dataclass(slots=True)
class Child:
    """One place for a process. `id` is fresh for every process started in it."""

    running: RunningIds
    pid: int = 0
    id: UUID = field(default_factory=uuid4)
    started_at: float = 0.0
    start_after: float = 0.0
    failures: int = 0
    retiring: bool = False
    drains_since: float = 0.0  # told to end, or seen to end by itself; 0: neither
    hung: bool = False
    isolation: bool = False  # it runs messages that were there at two crashes, and is started for them only
    alone: bool = False  # of these: one by one

    def ended(self, lived_seconds: float, expected: bool) -> None:
        """Its process is gone: when may the next one start?"""
        self.failures = 0 if expected or lived_seconds >= STABLE_SECONDS else self.failures + 1
        backoff = min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** (self.failures - 1)) if self.failures else 0.0
        self.start_after = time.monotonic() + backoff


def share_memory(processes: int) -> None:
    """In the parent, before it forks: load what several of its children need, so that they share it, and keep
    the collector from copying it.

    processes: of workers. The driver is shared by worker and exporter. What only workers need is loaded here
    when there are several.
    """
    importlib.import_module("packhorse.worker.db.sessions")
    if processes > 1:
        importlib.import_module("packhorse.worker.runtime.process")
    gc.collect()
    gc.freeze()


def kill(pid: int, number: int) -> None:
    """Send a signal; pid 0 is nobody."""
    try:
        if pid:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def flush_output() -> None:
    """What handlers printed. A full disk or a reader that is gone must not end the parent, nor a child in any
    other way than by its code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            pass


def described(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"


def replaced_why(child: Child, code: int, ordered: bool) -> str:
    """Why a child is replaced, as the metric says it."""
    if child.hung:
        return "hung"
    if not ordered:
        return "crashed"
    known = {
        EXIT_OK: "reload",
        EXIT_REPLACED: "replaced",
        EXIT_RECYCLED: "recycled",
        EXIT_LEASE_LOST: "fenced",
    }
    return known.get(code, "failed")

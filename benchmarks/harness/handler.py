"""The handler that every Python worker runs: nothing at all, or noting how late it started.

The kind is chosen by BENCH_LATENCY_FILE, so that the no-op handler of the throughput runs contains no test.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LATENCY_FILE = "BENCH_LATENCY_FILE"


def noop(**message: object) -> None:
    """Do nothing."""


def latency_recorder(path: str) -> Callable[..., None]:
    """A handler that appends the nanoseconds since `sent_ns` to `path`, one line per message."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(*, sent_ns: int, **message: object) -> None:
        late = time.time_ns() - sent_ns
        if sent_ns:
            os.write(descriptor, b"%d\n" % late)

    return record


def chosen_handler() -> Callable[..., None]:
    """The recorder when BENCH_LATENCY_FILE is set, else the no-op."""
    path = os.environ.get(LATENCY_FILE)
    return latency_recorder(path) if path else noop


def read_latencies_ms(path: Path) -> list[float]:
    """All complete samples written so far, in milliseconds; empty when there is no file yet."""
    if not path.exists():
        return []
    return [int(line) / 1e6 for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

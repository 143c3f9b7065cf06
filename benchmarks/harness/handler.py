"""The handler that every Python worker runs: nothing at all, noting how late it started, or awaiting some
time.

The kind is chosen by BENCH_LATENCY_FILE and BENCH_AWAIT_SECONDS, so that the no-op handlers of the throughput
runs contain no test. BENCH_AWAIT_SECONDS asks for a coroutine: 0 for one that does nothing. BENCH_AT_ONCE:
how many of them may run at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

LATENCY_FILE = "BENCH_LATENCY_FILE"
AWAIT_SECONDS = "BENCH_AWAIT_SECONDS"
AT_ONCE = "BENCH_AT_ONCE"


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


def chosen_coroutine() -> Callable[..., Awaitable[None]] | None:
    """What BENCH_AWAIT_SECONDS asks for; None when it is not set: the handler is an ordinary function."""
    text = os.environ.get(AWAIT_SECONDS)
    if not text:
        return None
    seconds = float(text)

    async def nothing(**message: object) -> None:
        pass

    async def wait(**message: object) -> None:
        await asyncio.sleep(seconds)

    return wait if seconds else nothing


def at_once(usual: int) -> int:
    """The number that BENCH_AT_ONCE asks for, else `usual`."""
    return int(os.environ.get(AT_ONCE) or usual)


def read_latencies_ms(path: Path) -> list[float]:
    """All complete samples written so far, in milliseconds; empty when there is no file yet."""
    if not path.exists():
        return []
    return [int(line) / 1e6 for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

"""Asking a process to stop, from a signal handler or from any thread; and what middleware does then.

threading.Event is not safe in a signal handler: the handler runs in the main thread, which may hold the
event's own lock while it waits. A flag and a byte on a pipe are.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import weakref
from collections.abc import Callable
from typing import Any

from packhorse.worker import forks

logger = logging.getLogger("packhorse.process")

#: What middleware wants to do before and after the drain may take so long.
HOOKS_SECONDS = 5.0


class StopRequest:
    """`ask` once or often; the main thread waits for it with `wait`."""

    def __init__(self) -> None:
        self.asked = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # not select(), which knows no descriptor from 1024 on: coroutines have thousands
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        weakref.finalize(self, _close, self._read, self._write)

    def ask(self) -> None:
        """Safe in a signal handler and in every thread."""
        self.asked = True
        try:
            os.write(self._write, b".")
        except BlockingIOError:
            pass  # the pipe is full of requests already

    def wait(self, seconds: float) -> bool:
        """Wait until asked, at most `seconds`; True when so. Main thread only."""
        if not self.asked and self._poll.poll(max(0.0, seconds) * 1000):
            os.read(self._read, 512)
        return self.asked


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def shutdown_hooks(emit: Callable[..., None], worker: Any) -> None:
    """worker_shutdown of the middleware, for HOOKS_SECONDS: a hook may wait for what never ends, as that of
    dramatiq's AsyncIO does for a coroutine that blocks.
    """
    thread = threading.Thread(
        target=forks.contain,
        args=(emit, "worker_shutdown", worker),
        name="packhorse-shutdown-hooks",
        daemon=True,
    )
    thread.start()
    thread.join(HOOKS_SECONDS)
    if thread.is_alive():
        logger.warning("shutdown_hooks_left worker_id=%s seconds=%.0f", worker.id, HOOKS_SECONDS)

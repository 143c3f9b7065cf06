"""Asking a process to stop, from a signal handler or from any thread.

threading.Event is not safe in a signal handler: the handler runs in the main thread, which may hold the
event's own lock while it waits. A counter and a byte on a pipe are.
"""

from __future__ import annotations

import os
import select


class StopRequest:
    """`ask` counts; the main thread waits for the first one with `wait`."""

    def __init__(self) -> None:
        self.asked = 0  # how often; from the second time on, do not wait for handlers
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def ask(self) -> None:
        """Once more; safe in a signal handler and in every thread."""
        self.asked += 1
        try:
            os.write(self._write, b".")
        except BlockingIOError:
            pass  # the pipe is full of requests already

    def wait(self, seconds: float, times: int = 1) -> bool:
        """Wait until asked `times` times, at most `seconds`; True when so. Main thread only."""
        if self.asked < times and select.select([self._read], [], [], max(0.0, seconds))[0]:
            os.read(self._read, 512)
        return self.asked >= times

"""Asking a process to stop, from a signal handler or from any thread.

threading.Event is not safe in a signal handler: the handler runs in the main thread, which may hold the
event's own lock while it waits. A flag and a byte on a pipe are.
"""

from __future__ import annotations

import os
import select


class StopRequest:
    """`ask` once or often; the main thread waits for it with `wait`."""

    def __init__(self) -> None:
        self.asked = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def ask(self) -> None:
        """Safe in a signal handler and in every thread."""
        self.asked = True
        try:
            os.write(self._write, b".")
        except BlockingIOError:
            pass  # the pipe is full of requests already

    def wait(self, seconds: float) -> bool:
        """Wait until asked, at most `seconds`; True when so. Main thread only."""
        if not self.asked and select.select([self._read], [], [], max(0.0, seconds))[0]:
            os.read(self._read, 512)
        return self.asked

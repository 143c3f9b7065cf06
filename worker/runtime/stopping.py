"""Asking a process to stop, from a signal handler or from any thread.

threading.Event is not safe in a signal handler: the handler runs in the main thread, which may hold the
event's own lock while it waits. A flag and a byte on a pipe are.
"""

from __future__ import annotations

import os
import select
import weakref


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

"""Where log lines go: a descriptor that others share, that may be full, broken, or a pipe that nobody reads (SPEC P8).

A plain write to a pipe that nobody reads never ends, and with it whoever logs: the pump, the timekeeper before it fences,
the parent that should pass a stop on. So a line waits PATIENCE_SECONDS for room, once; from then on lines are left out,
without waiting, until there is room again.
"""

from __future__ import annotations

import os
import select
import time
from typing import TextIO

PATIENCE_SECONDS = 0.5


class Outlet:
    """`write` puts one text; the caller holds the handler's lock. `lost`: texts left out since the caller last set it to 0."""

    def __init__(self) -> None:
        self.lost = 0
        self._full = False
        self._torn = False  # a part of a text went out without its end

    def write(self, stream: TextIO, text: str) -> bool:
        """True when all of it went out. Raises OSError when the other end is gone, or a disk full."""
        try:
            descriptor = stream.fileno()
        except (OSError, AttributeError):  # a buffer in memory never makes anybody wait
            stream.write(text)
            stream.flush()
            return True
        encoded = text.encode(stream.encoding or "utf-8", "backslashreplace")
        rest = memoryview(b"\n" + encoded if self._torn else encoded)
        whole = len(rest)
        deadline = time.monotonic() + (0.0 if self._full else PATIENCE_SECONDS)
        while rest and select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))[1]:
            # so many bytes fit when there is room at all: unless another process takes it in between
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
        self._full = bool(rest)
        self._torn = self._full and (self._torn or len(rest) < whole)
        self.lost += self._full
        return not self._full

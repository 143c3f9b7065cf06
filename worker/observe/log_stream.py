"""Where log lines go: a descriptor that others share, that may be full, broken, or a pipe that nobody reads
(SPEC P8).

A plain write to a pipe that nobody reads never ends, and with it whoever logs: the fetcher, the timekeeper
before it fences, the parent that should pass a stop on. So a line waits PATIENCE_SECONDS for room, once; from
then on lines are left out, without waiting, until there is room again.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
import time
from typing import TextIO

PATIENCE_SECONDS = 0.5
AT_ONCE = 65536


class LogStream:
    """`write` puts one text; the caller holds the handler's lock. `lost`: texts left out since the caller
    last set it to 0.
    """

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
            rest = rest[os.write(descriptor, rest[: _room(descriptor)]) :]
        self._full = bool(rest)
        self._torn = self._full and (self._torn or len(rest) < whole)
        self.lost += self._full
        return not self._full


def _room(descriptor: int) -> int:
    """So many bytes go without waiting once select calls it writable, unless another process takes the room
    in between.

    As many as possible: what others write comes between two writes of ours, in the middle of a line. A file
    takes everything, a socket is not writable before it has room for AT_ONCE.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return AT_ONCE
    if not hasattr(fcntl, "F_GETPIPE_SZ"):
        return select.PIPE_BUF
    unread = int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
    # two pages less: the first and the last one that are in use may be nearly empty
    return max(
        select.PIPE_BUF, int(fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)) - unread - 2 * select.PIPE_BUF
    )

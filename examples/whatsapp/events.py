"""The last things that happened, for the view."""

from __future__ import annotations

import threading
import time
from collections import deque


class Events:
    """Lines with the seconds since the start. Added by any thread; `take` hands out what is new, `last` what
    is shown.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._last: deque[str] = deque(maxlen=12)
        self._fresh: deque[str] = deque(maxlen=200)

    def add(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:6.1f} s  {text}"
        with self._lock:
            self._last.append(line)
            self._fresh.append(line)

    def last(self) -> list[str]:
        with self._lock:
            return list(self._last)

    def take(self) -> list[str]:
        with self._lock:
            fresh = list(self._fresh)
            self._fresh.clear()
            return fresh

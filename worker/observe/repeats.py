"""The same event again and again is not news: at most MOST lines of it in WINDOW_SECONDS (FAILURES 77).

What was left out is counted, and said in one line (`repeats_suppressed`) when the window is over and
something is logged, or at the end. Per logger and template, so a million failing messages are one event,
whatever its level: a broken middleware is a critical line per message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from packhorse.worker import forks

MOST = 50
WINDOW_SECONDS = 10.0
#: Templates that are told apart; those beyond share one counter.
TEMPLATES = 1000

logger = logging.getLogger("packhorse.logging")


class Repeats(logging.Filter):
    """A filter of a handler; any thread. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.RLock()  # a finalizer that fails in here logs, too
        self._next_look = 0.0
        # (logger, template) -> [began, lines, left out]
        self._windows: dict[tuple[str, str], list[float]] = {}
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: whoever held the lock is not here, and what was left out is the parent's to
        say.
        """
        self._lock = threading.RLock()
        self._windows = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == logger.name and str(record.msg).startswith("repeats_suppressed "):
            return True
        key = (record.name, str(record.msg)[:200])
        now = self._clock()
        with self._lock:
            over = self._over(now)
            if key not in self._windows and len(self._windows) >= TEMPLATES:
                key = ("", "")
            window = self._windows.setdefault(key, [now, 0, 0])
            window[1] += 1
            passes = window[1] <= MOST
            window[2] += not passes
        self._say(over)
        return passes

    def flush(self) -> None:
        """Say what was left out so far."""
        with self._lock:
            over = self._over(float("inf"))
        self._say(over)

    def _over(self, now: float) -> list[tuple[tuple[str, str], int]]:
        """Windows that have ended are forgotten; those in which lines were left out are returned."""
        if now < self._next_look:
            return []
        self._next_look = now + 1.0 if now != float("inf") else 0.0
        ended = [key for key, window in self._windows.copy().items() if now - window[0] >= WINDOW_SECONDS]
        return [(key, int(window[2])) for key in ended if (window := self._windows.pop(key))[2]]

    def _say(self, over: list[tuple[tuple[str, str], int]]) -> None:
        for (name, template), count in over:
            logger.warning(
                "repeats_suppressed of=%s by=%s count=%d",
                template.split(" ")[0].rstrip(":")[:60],
                name,
                count,
            )

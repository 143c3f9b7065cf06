"""When the pump asks to be told of new messages, and when it asks not to be (SPEC Q9: NOTIFY only for sleepers)."""

from __future__ import annotations

import time

from worker.db.pool import Link
from worker.store import messages as store

WAKE_SECONDS = 30.0  # how long a request for NOTIFY stands
BUSY_REPEAT_SECONDS = 1.0


class Wakeups:
    """Used by the pump's thread."""

    def __init__(self, link: Link, queues: list[str]) -> None:
        self._link = link
        self._queues = queues
        self._asleep_until = 0.0  # we asked for NOTIFY until then (monotonic)
        self._asleep_at = 0.0
        self._woken = False
        self._busy_at = 0.0

    def asleep(self) -> bool:
        """Does our request stand for long enough? A wake-up may mean that a busy worker has withdrawn it."""
        now = time.monotonic()
        if self._woken and now - self._asleep_at > BUSY_REPEAT_SECONDS:
            return False
        return now + WAKE_SECONDS / 2 <= self._asleep_until

    def woken(self) -> None:
        """A NOTIFY came. Called by the listener's thread."""
        self._woken = True

    def announce_sleep(self) -> None:
        """Producers shall notify from now on; look once more afterwards: one may have committed before it saw this."""
        now = time.monotonic()
        self._woken = False
        with self._link.connection() as connection:
            store.announce_sleep(connection, self._queues, WAKE_SECONDS)
        self._asleep_until, self._asleep_at = now + WAKE_SECONDS, now
        self._busy_at = 0.0

    def announce_busy(self) -> None:
        """Producers need not notify: we look all the time. At most once a second."""
        now = time.monotonic()
        if now - self._busy_at <= BUSY_REPEAT_SECONDS:
            return
        with self._link.connection() as connection:
            store.announce_busy(connection, self._queues)
        self._busy_at = now
        self._asleep_until = 0.0

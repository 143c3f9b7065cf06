"""How much a process holds and how large its statements are (SPEC W2): follows from how fast messages
finish.
"""

from __future__ import annotations

import time

HOLD_AHEAD_SECONDS = 0.05
# no statement should take longer: it holds row locks, and others wait for the processor
STATEMENT_SECONDS = 0.004
MAX_BATCH = 1000
MIN_BATCH = 100  # below this the cost of a statement shows
BUSY_RATE = 500  # messages per second from which batches are worth waiting for
MEASURE_SECONDS = 0.02


class Pace:
    """Used by the fetcher's thread. rate: messages finished per second, smoothed; quick to rise, slow to
    fall.

    batch: how many messages one statement completes, and claims, at most. most: of messages held.
    """

    def __init__(self, threads: int, most: int) -> None:
        self._threads = threads
        self._most = most
        self.rate = 0.0
        self.batch = 200
        self._since = time.monotonic()
        self._finished = 0

    def finished(self) -> None:
        """One message was handed back by its thread."""
        self._finished += 1

    def capacity(self) -> int:
        """How many messages can start within HOLD_AHEAD_SECONDS; at least one per thread, at most `most`."""
        return min(self._most, self._threads + int(self.rate * HOLD_AHEAD_SECONDS))

    def measure(self) -> None:
        """Take the rate anew, when enough time has passed."""
        now = time.monotonic()
        if now - self._since >= MEASURE_SECONDS:
            rate = self._finished / (now - self._since)
            self.rate = rate if rate > self.rate else 0.7 * self.rate + 0.3 * rate
            self._since, self._finished = now, 0

    @property
    def busy(self) -> bool:
        return self.rate > BUSY_RATE

    def threshold(self) -> int:
        """With a backlog: so many completions make a statement."""
        return max(1, min(self.capacity() // 3, self.batch))

    def exchanged(self, count: int, took_seconds: float) -> None:
        """A statement completed and claimed `count` messages together; small ones say little."""
        if count >= MIN_BATCH:
            fitting = STATEMENT_SECONDS / took_seconds * count / 2  # it completes as many as it claims
            self.batch = int(min(MAX_BATCH, max(MIN_BATCH, 0.8 * self.batch + 0.2 * fitting)))

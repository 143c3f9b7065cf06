"""Where the next claim starts to look (migrations/0007): per queue and priority, the last run_at claimed.

Under an old snapshot every claimed row leaves a dead entry at the left end of the claim index; a claim
that starts at its cursor never walks them. What appears behind the cursor (late commits, released
messages) is found by a look from the start: when a claim comes back short, and now and then. Such a
look may cost its walk, so it is not repeated before FULL_LOOK_FACTOR times its own duration.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

PRIORITIES = 10
FULL_LOOK_SECONDS = 1.0
FULL_LOOK_FACTOR = 100.0


class ClaimCursor:
    """Used by the pump thread only."""

    def __init__(self, queues: Iterable[str]) -> None:
        self._since: dict[str, list[str | None]] = {queue: [None] * PRIORITIES for queue in queues}
        self._next_full = 0.0
        self.short = True  # the last claim came back short: nothing more is due

    def full_due(self) -> bool:
        """Should the next claim look from the start?"""
        return time.monotonic() >= self._next_full

    def values(self, queues: list[str]) -> list[str | None]:
        """The SQL argument for these queues, in this order."""
        return [since for queue in queues for since in self._since[queue]]

    def looked_from_start(self, took_seconds: float) -> None:
        self._next_full = time.monotonic() + max(FULL_LOOK_SECONDS, took_seconds * FULL_LOOK_FACTOR)

    def look_again_soon(self) -> None:
        """A short claim: the next look starts at the left, but not in a tight loop."""
        now = time.monotonic()
        if self._next_full - now <= FULL_LOOK_SECONDS:  # else the last look was expensive: keep its distance
            self._next_full = min(self._next_full, now + 0.02)

    @property
    def next_full(self) -> float:
        """Monotonic time of the next look from the start."""
        return self._next_full

    def advance(self, queue: str, priority: int, run_at: str, full: bool) -> None:
        """A message with this run_at (text of the database, one time zone) was claimed. Backwards only by a look
        from the start: the next message of a conversation, claimed by its id, is older than where we are."""
        since = self._since[queue]
        before = since[priority - 1]
        if full or before is None or run_at > before:
            since[priority - 1] = run_at

"""Local time is for durations only and always monotonic; points in time come from the database (SPEC P6)."""

from __future__ import annotations

import time

monotonic = time.monotonic

#: A service that waits still ticks this often.
TICK_SECONDS = 2.0


class Deadline:
    """A moment on the monotonic clock."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at


def skew(before: float, theirs: float, after: float) -> float:
    """Seconds by which this host's clock is ahead of another one (behind: negative), as far as it is certain.

    theirs: what the other clock said between `before` and `after` on ours; anything in between may be
    agreement: 0.
    """
    return before - theirs if theirs < before else after - theirs if theirs > after else 0.0

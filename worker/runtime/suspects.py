"""Messages that were running when a process died are run alone (SPEC P5): when it is their turn here."""

from __future__ import annotations

import time

REPEAT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0  # they wait for an empty process so long; then it takes nothing else until it is empty


class SuspectTurn:
    """Used by the pump's thread. running: a suspect runs here, alone."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._not_before = 0.0
        self.running = False

    @property
    def known(self) -> bool:
        """Does one wait, as far as we know?"""
        return self._since is not None

    def seen(self) -> None:
        """A claim says that a suspect could start."""
        now = time.monotonic()
        if self._since is None and now >= self._not_before:
            self._since = now

    def due(self, empty: bool) -> bool:
        """Is it their turn? empty: the process holds nothing."""
        return self._since is not None and (empty or time.monotonic() - self._since > PATIENCE_SECONDS)

    def claimed(self, count: int) -> None:
        """Suspects were asked for, and `count` came."""
        self.running = count > 0
        self._since = None
        if not count:  # paused, limited or behind its conversation: do not ask again at once
            self._not_before = time.monotonic() + REPEAT_SECONDS

"""Messages that were running when a process died are run alone (SPEC P5): when it is their turn here.

A suspect waits for a process that happens to be empty. After PATIENCE_SECONDS some process claims it all the
same, keeps it unstarted and takes nothing else until it is empty: then the other processes know of no suspect
and go on working. Without that claim the whole fleet would drain for one message.
"""

from __future__ import annotations

import random
import time

from worker.messages import ClaimedMessage

REPEAT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0


class SuspectTurn:
    """Used by the pump's thread. running: a suspect runs here, alone. reserved: claimed, waits until the process is empty."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._not_before = 0.0
        self._patience = PATIENCE_SECONDS
        self.running = False
        self.reserved: ClaimedMessage | None = None

    @property
    def known(self) -> bool:
        """Does one wait, as far as we know?"""
        return self._since is not None

    def seen(self) -> None:
        """A claim says that a suspect could start."""
        now = time.monotonic()
        if self._since is None and now >= self._not_before:
            self._since = now
            self._patience = PATIENCE_SECONDS * random.uniform(1.0, 1.4)  # not all processes at once

    def due(self, empty: bool) -> bool:
        """Is it their turn? empty: the process holds nothing."""
        return self._since is not None and (empty or time.monotonic() - self._since > self._patience)

    def claimed(self, count: int) -> None:
        """Suspects were asked for, and `count` came."""
        self.running = count > 0 and self.reserved is None
        self._since = None
        if not count:  # paused, limited or behind its conversation: do not ask again at once
            self._not_before = time.monotonic() + REPEAT_SECONDS

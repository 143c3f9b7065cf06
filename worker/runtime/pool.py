"""What the fetcher, the timekeeper and the drain know of a pool of handlers: threads.py and coroutines.py are
two of them.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.runtime.slots import Slot


class HandlerPool(Protocol):
    """Runs messages. ready: claimed and not begun, in order; the fetcher takes back what is handed back.
    size: most at once. patient: many handlers end in the same moment, and their completions wait for each
    other."""

    ready: deque[ClaimedMessage]
    size: int
    patient: bool

    @property
    def running(self) -> int:
        """How many have begun and not ended."""

    def running_slots(self) -> list[Slot]:
        """Where they run; for any thread."""

    def slot_of(self, message: ClaimedMessage) -> Slot | None:
        """Where this attempt runs; None when it does not."""

    def put(self, messages: list[ClaimedMessage]) -> None:
        """Give claimed messages to the pool."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Begin no further message; running ones go on."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for its threads, but for those whose handlers still run; True when the others have ended."""

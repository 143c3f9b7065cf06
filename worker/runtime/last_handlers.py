"""The handlers that still run when their process is to end: who is waited for, and how they are interrupted
(SPEC W6).
"""

from __future__ import annotations

import time

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import DrainInterrupt
from packhorse.worker.runtime.coroutines import CoroutinePool
from packhorse.worker.runtime.drive import CoroutineSlot
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.threads import ThreadPool
from packhorse.worker.runtime.timekeeper import Timekeeper

#: What is interrupted may tidy up for so long.
INTERRUPTED_SECONDS = 2.0


class LastHandlers:
    """Asked by the main thread. stuck: lease tokens of messages past their hard limit; the timekeeper adds to
    it.
    """

    def __init__(self, pool: ThreadPool, coroutines: CoroutinePool, timekeeper: Timekeeper) -> None:
        self.stuck: set[int] = set()
        self._pool = pool
        self._coroutines = coroutines
        self._timekeeper = timekeeper

    def left(self) -> list[tuple[Slot, ClaimedMessage]]:
        """Those that run, but for the ones past their hard limit, and those that cannot go on because of one:
        nobody waits for them, and the parent ends their attempts."""
        slots = [
            *self._pool.running_slots(),
            *([] if self._loop_is_lost() else self._coroutines.running_slots()),
        ]
        running = [(slot, slot.message) for slot in slots]
        return [
            (slot, message)
            for slot, message in running
            if message is not None and message.lease_token not in self.stuck
        ]

    def interrupt(self) -> int:
        """The drain limit, or a second signal: interrupt, wait a little, leave what will not end to the
        parent; how many those are.

        Such a one runs until this process is gone: whoever got its message before would run it at the same
        time (SPEC P2). A coroutine that will not end is not driven any more.
        """
        for slot, message in self.left():
            slot.interrupt(message, DrainInterrupt)
        self._wait(INTERRUPTED_SECONDS)
        for slot, message in self.left():
            if isinstance(slot, CoroutineSlot):
                slot.abandon(message)
        self._wait(0.5)
        return sum(message.stage is AttemptStage.RUNNING for _, message in self.left())

    def _loop_is_lost(self) -> bool:
        """Does a coroutine block the event loop past its hard limit?"""
        stuck = (slot.message for slot in self._coroutines.running_slots())
        return self._timekeeper.blocked and any(
            message is not None and message.lease_token in self.stuck for message in stuck
        )

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.02)  # a handler's end tells nobody but the fetcher, which may be what hangs

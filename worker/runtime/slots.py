"""What runs now, one slot per handler, and how a handler thread is interrupted without hitting anything else.

The ids of running messages stand in memory shared with the parent (running_ids.py).

An exception raised into a thread arrives at some later bytecode. A thread's slot has a lock, so that none is
raised once the thread has left the handler, and `leave` takes back one that was raised but has not
arrived (FAILURES 18). Coroutines are interrupted in their event loop (coroutines.py).
"""

from __future__ import annotations

import ctypes
import threading
from array import array

from dramatiq.middleware.threading import Interrupt, raise_thread_exception

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt, LeaseInterrupt
from packhorse.worker.runtime.running_ids import RunningIds

#: Ours, as they are raised: dramatiq's Interrupt too, for which its AsyncIO cancels the coroutine that the
#: handler waits for.
_RAISED: dict[type[BaseException], type[BaseException]] = {
    kind: type(kind.__name__, (kind, Interrupt), {"__doc__": kind.__doc__})
    for kind in (CancelInterrupt, DrainInterrupt, LeaseInterrupt)
}


class Slot:
    """One handler's place. `message` is written by the thread that runs the handler; others read it."""

    __slots__ = (
        "_ended",
        "_overdue_tokens",
        "_view",
        "index",
        "interrupted",
        "message",
        "started_at",
        "starts",
    )

    def __init__(self, index: int, running: RunningIds) -> None:
        self.index = index
        self.message: ClaimedMessage | None = None
        self.started_at = 0.0
        self.starts = 0  # messages begun; written where they run
        self.interrupted: type[BaseException] | None = None
        self._view = running.view
        self._overdue_tokens = running.overdue_tokens
        self._ended = running.ended

    def enter(self, message: ClaimedMessage, now: float) -> None:
        """The handler's thread begins with a message."""
        self.starts += 1
        self.interrupted = None
        self.started_at = now
        self._overdue_tokens[self.index] = 0
        self._view[self.index] = message.id
        message.started_at = now
        message.move(AttemptStage.RUNNING)
        self.message = message

    def leave(self) -> None:
        """The handler is over: from here on no interrupt can arrive."""
        self.message = None

    def forget(self, message: ClaimedMessage) -> None:
        """The outcome was handed over, and is to be written. Past the hard limit it may have come too late
        for that, so it stays for the parent, whose answer is refused if it was written."""
        if not self._overdue_tokens[self.index]:
            if message.started_at and message.place >= 0:
                self._ended[message.place] = message.id
            self._view[self.index] = 0

    def give_up(self, message: ClaimedMessage) -> bool:
        """Mark `message` as overdue if the slot still runs it. What its handler still brings about counts,
        until the process ends.
        """
        if self.message is message:
            self._overdue_tokens[self.index] = message.lease_token
        return self.message is message

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        """Raise `exception` inside the handler if the slot still runs `message`; once per message. False: not
        now, or not again.
        """
        raise NotImplementedError


class ThreadSlot(Slot):
    """The place of one handler thread."""

    __slots__ = ("_lock", "thread_id")

    def __init__(self, index: int, running: RunningIds) -> None:
        super().__init__(index, running)
        self.thread_id = 0
        self._lock = threading.Lock()

    def start_over(self, private: array[int]) -> None:
        """In a forked child: what it does stands in memory of its own, a number per slot. Whoever held the
        lock may not be here.
        """
        self._lock = threading.Lock()
        self._view = self._overdue_tokens = memoryview(private)

    def leave(self) -> None:
        with self._lock:
            self.message = None
        if self.interrupted is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_long(self.thread_id), None)

    def give_up(self, message: ClaimedMessage) -> bool:
        with self._lock:
            return super().give_up(message)

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        with self._lock:
            if self.message is not message or self.interrupted is not None:
                return False
            self.interrupted = exception
            raise_thread_exception(self.thread_id, _RAISED.get(exception, exception))
            return True

"""What each handler thread runs now, and how to interrupt it without hitting anything else.

An exception raised into a thread arrives at some later bytecode. A slot's lock makes sure that none is
raised once the thread has left the handler, and `leave` takes back one that was raised but has not
arrived (FAILURES 18). The ids of running messages also stand in memory shared with the parent, which
so knows what ran in a child that died (SPEC P5), and which attempts it has to fail because nothing ends their
handlers but the end of the process (SPEC W4).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from array import array

from dramatiq.middleware.threading import Interrupt, raise_thread_exception

from worker.errors import CancelInterrupt, DrainInterrupt, LeaseInterrupt
from worker.messages import ClaimedMessage

_ID = struct.Struct("q")

#: Ours, as they are raised: dramatiq's Interrupt too, for which its AsyncIO cancels the coroutine that the handler waits for.
_RAISED: dict[type[BaseException], type[BaseException]] = {
    kind: type(kind.__name__, (kind, Interrupt), {"__doc__": kind.__doc__}) for kind in (CancelInterrupt, DrainInterrupt, LeaseInterrupt)
}


class RunningIds:
    """Two 8-byte numbers per slot in shared memory; 0 = nothing. Made by the parent before the fork.

    view: the ids of running messages. overdue_tokens: the lease tokens of those past their hard limit.
    """

    def __init__(self, slots: int) -> None:
        self._map = mmap.mmap(-1, max(1, slots) * 2 * _ID.size)
        self._slots = slots
        cells = memoryview(self._map).cast("q")
        self.view, self.overdue_tokens = cells[: max(1, slots)], cells[max(1, slots) :]

    def read(self) -> list[int]:
        """Ids that stand there now."""
        return [value for value in self.view[: self._slots] if value]

    def overdue(self) -> list[tuple[int, int]]:
        """(id, lease token) of messages past their hard limit."""
        return [(self.view[index], token) for index, token in enumerate(self.overdue_tokens) if token]

    def busy(self) -> int:
        """How many slots run a message now."""
        return len(self.read())

    def clear(self) -> None:
        for index in range(self._slots):
            self.view[index] = self.overdue_tokens[index] = 0


class Slot:
    """One handler thread's place. `message` is written by that thread only; others read it."""

    __slots__ = ("_lock", "_overdue_tokens", "_view", "index", "interrupted", "message", "started_at", "starts", "thread_id")

    def __init__(self, index: int, running: RunningIds) -> None:
        self.index = index
        self.message: ClaimedMessage | None = None
        self.started_at = 0.0
        self.starts = 0  # messages begun; written by the slot's thread only
        self.thread_id = 0
        self.interrupted: type[BaseException] | None = None
        self._lock = threading.Lock()
        self._view = running.view
        self._overdue_tokens = running.overdue_tokens

    def start_over(self, private: array[int]) -> None:
        """In a forked child: what it does stands in memory of its own, a number per slot. Whoever held the lock may not be here."""
        self._lock = threading.Lock()
        self._view = self._overdue_tokens = memoryview(private)

    def enter(self, message: ClaimedMessage, now: float) -> None:
        """The thread begins with a message."""
        self.interrupted = None
        self.started_at = now
        self._overdue_tokens[self.index] = 0
        self._view[self.index] = message.id
        message.started = True
        self.starts += 1
        self.message = message

    def leave(self) -> None:
        """The thread is out of the handler: from here on no interrupt can arrive."""
        with self._lock:
            self.message = None
        if self.interrupted is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_long(self.thread_id), None)

    def forget(self) -> None:
        """The outcome was handed over: a crash from here on is not this message's fault. Past the hard limit it may have come too late
        to be written, so it stays for the parent, whose answer is refused if it was written."""
        if not self._overdue_tokens[self.index]:
            self._view[self.index] = 0

    def give_up(self, message: ClaimedMessage) -> bool:
        """Mark `message` as overdue if the slot still runs it. What its handler still brings about counts, until the process ends."""
        with self._lock:
            if self.message is message:
                self._overdue_tokens[self.index] = message.lease_token
            return self.message is message

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        """Raise `exception` inside the handler if the slot still runs `message`; once per message."""
        with self._lock:
            if self.message is not message or self.interrupted is not None:
                return False
            self.interrupted = exception
            raise_thread_exception(self.thread_id, _RAISED.get(exception, exception))
            return True

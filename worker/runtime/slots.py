"""What runs now, one slot per handler, and how a handler thread is interrupted without hitting anything else.

The ids of running messages stand in memory shared with the parent, which so knows what ran in a child that died (SPEC P5),
and which attempts it has to fail because nothing ends their handlers but the end of the process (SPEC W4).

An exception raised into a thread arrives at some later bytecode. A thread's slot has a lock, so that none is
raised once the thread has left the handler, and `leave` takes back one that was raised but has not
arrived (FAILURES 18). Coroutines are interrupted in their event loop (coroutines.py).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from array import array

from dramatiq.middleware.threading import Interrupt, raise_thread_exception

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt, LeaseInterrupt

_ID = struct.Struct("q")

#: Ours, as they are raised: dramatiq's Interrupt too, for which its AsyncIO cancels the coroutine that the handler waits for.
_RAISED: dict[type[BaseException], type[BaseException]] = {
    kind: type(kind.__name__, (kind, Interrupt), {"__doc__": kind.__doc__}) for kind in (CancelInterrupt, DrainInterrupt, LeaseInterrupt)
}


class RunningIds:
    """8-byte numbers in shared memory, 0 = nothing, made by the parent before the fork: what a process was at when it ended.

    Slots are those of threads, then those of coroutines. view: per slot, the id of the message that runs. overdue_tokens: per slot,
    its lease token once it is past its hard limit.
    ended: per place of a held message, the id of one whose handler has ended and whose outcome is not written; negative when
    the database refuses to write it.
    """

    def __init__(self, threads: int, places: int = 0, coroutines: int = 0) -> None:
        self._threads, self._slots = threads, threads + coroutines
        slots = max(1, self._slots)
        self._map = mmap.mmap(-1, (2 * slots + max(1, places)) * _ID.size)
        cells = memoryview(self._map).cast("q")
        self.view, self.overdue_tokens, self.ended = cells[:slots], cells[slots : 2 * slots], cells[2 * slots :]
        self.places = places

    @classmethod
    def of(cls, settings: Settings, *, threads: int | None = None) -> RunningIds:
        """For a process with these settings; threads: the most handlers of each kind, when there are to be few."""
        handlers = (settings.threads, settings.coroutines) if threads is None else (threads, threads)
        return cls(handlers[0], max(settings.batch_size, handlers[1]) + sum(handlers), handlers[1])

    def read(self) -> list[int]:
        """Ids of the messages that run now."""
        return [value for value in self.view[: self._slots] if value]

    def started(self) -> list[int]:
        """Ids of the messages whose handlers have begun and whose outcomes are not written."""
        return self.read() + [value for value in self.ended.tolist() if value > 0]

    def refused(self) -> list[int]:
        """Ids of the messages whose handlers are done and whose completion the database refuses."""
        return [-value for value in self.ended.tolist() if value < 0]

    def overdue(self) -> list[tuple[int, int]]:
        """(id, lease token) of messages past their hard limit."""
        return [(self.view[index], token) for index, token in enumerate(self.overdue_tokens) if token]

    def busy(self) -> int:
        """How many threads run a message now."""
        return sum(1 for value in self.view[: self._threads] if value)

    def awaiting(self) -> int:
        """How many coroutines do."""
        return sum(1 for value in self.view[self._threads : self._slots] if value)

    def clear(self) -> None:
        for cells in (self.view, self.overdue_tokens, self.ended):
            cells[:] = memoryview(bytes(cells.nbytes)).cast("q")


class Slot:
    """One handler's place. `message` is written by the thread that runs the handler; others read it."""

    __slots__ = ("_ended", "_overdue_tokens", "_view", "index", "interrupted", "message", "started_at")

    def __init__(self, index: int, running: RunningIds) -> None:
        self.index = index
        self.message: ClaimedMessage | None = None
        self.started_at = 0.0
        self.interrupted: type[BaseException] | None = None
        self._view = running.view
        self._overdue_tokens = running.overdue_tokens
        self._ended = running.ended

    def enter(self, message: ClaimedMessage, now: float) -> None:
        """The handler's thread begins with a message."""
        self.interrupted = None
        self.started_at = now
        self._overdue_tokens[self.index] = 0
        self._view[self.index] = message.id
        message.started = True
        self.message = message

    def leave(self) -> None:
        """The handler is over: from here on no interrupt can arrive."""
        self.message = None

    def forget(self, message: ClaimedMessage) -> None:
        """The outcome was handed over, and is to be written. Past the hard limit it may have come too late for that, so it stays for
        the parent, whose answer is refused if it was written."""
        if not self._overdue_tokens[self.index]:
            if message.started and message.place >= 0:
                self._ended[message.place] = message.id
            self._view[self.index] = 0

    def give_up(self, message: ClaimedMessage) -> bool:
        """Mark `message` as overdue if the slot still runs it. What its handler still brings about counts, until the process ends."""
        if self.message is message:
            self._overdue_tokens[self.index] = message.lease_token
        return self.message is message

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        """Raise `exception` inside the handler if the slot still runs `message`; once per message. False: not now, or not again."""
        raise NotImplementedError


class ThreadSlot(Slot):
    """The place of one handler thread."""

    __slots__ = ("_lock", "starts", "thread_id")

    def __init__(self, index: int, running: RunningIds) -> None:
        super().__init__(index, running)
        self.starts = 0  # messages begun; written by the slot's thread only
        self.thread_id = 0
        self._lock = threading.Lock()

    def start_over(self, private: array[int]) -> None:
        """In a forked child: what it does stands in memory of its own, a number per slot. Whoever held the lock may not be here."""
        self._lock = threading.Lock()
        self._view = self._overdue_tokens = memoryview(private)

    def enter(self, message: ClaimedMessage, now: float) -> None:
        self.starts += 1
        super().enter(message, now)

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

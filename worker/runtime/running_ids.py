"""What a worker process is at, in memory shared with its parent, which so knows what ran in a child that died
(SPEC P5), and which attempts it has to fail because nothing ends their handlers but the end of the process
(SPEC W4).

Nothing of dramatiq is needed here: the parent imports it.
"""

from __future__ import annotations

import mmap
import struct

from packhorse.worker.config import Settings

_ID = struct.Struct("q")


class RunningIds:
    """8-byte numbers in shared memory, 0 = nothing, made by the parent before the fork: what a process was at
    when it ended.

    Slots are those of threads, then those of coroutines. view: per slot, the id of the message that runs.
    overdue_tokens: per slot, its lease token once it is past its hard limit. ended: per place of a held
    message, the id of one whose handler has ended and whose outcome is not written; negative when the
    database refuses to write it.
    """

    def __init__(self, threads: int, places: int = 0, coroutines: int = 0) -> None:
        self._threads, self._slots = threads, threads + coroutines
        slots = max(1, self._slots)
        self._map = mmap.mmap(-1, (2 * slots + max(1, places)) * _ID.size)
        cells = memoryview(self._map).cast("q")
        self.view, self.overdue_tokens, self.ended = (
            cells[:slots],
            cells[slots : 2 * slots],
            cells[2 * slots :],
        )
        self.places = places

    @classmethod
    def of(cls, settings: Settings, *, threads: int | None = None) -> RunningIds:
        """For a process with these settings; threads: the most handlers of each kind, when there are to be
        few.
        """
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

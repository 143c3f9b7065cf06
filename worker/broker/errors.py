"""Errors of ours that are dramatiq's as well, for applications that catch those."""

from __future__ import annotations

from dramatiq.errors import QueueNotFound

from packhorse.worker.errors import UnknownQueue


class UndeclaredQueue(UnknownQueue, QueueNotFound):
    """A message was sent to a queue that does not exist."""

    @classmethod
    def of(cls, error: UnknownQueue) -> UndeclaredQueue:
        """The same error."""
        found = cls(str(error), field=error.field)
        found.hint, found.sqlstate = error.hint, error.sqlstate
        return found


#: What logs and dead letters call it.
UndeclaredQueue.__name__ = UndeclaredQueue.__qualname__ = UnknownQueue.__name__

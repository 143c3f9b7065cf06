"""What a handler can ask about itself: its message, its transaction (SPEC P3)."""

from __future__ import annotations

import threading
from typing import Any

from worker.db.connection import DeadlineConnection
from worker.errors import WorkerError
from worker.messages import ClaimedMessage


class _Current(threading.local):
    message: ClaimedMessage | None = None
    connection: DeadlineConnection | None = None


current = _Current()


def current_message() -> ClaimedMessage | None:
    """The message that this thread's handler works on; None outside a handler."""
    return current.message


def current_connection() -> DeadlineConnection:
    """The connection of a transactional handler (`@dramatiq.actor(transactional=True)`).

    What the handler writes on it, what it sends, and the completion of its message commit together, or
    not at all: exactly once for effects in this database (SPEC P3). Raises WorkerError elsewhere.
    """
    if current.connection is None:
        raise WorkerError("no transaction here: declare the actor with transactional=True, and call this in its own thread")
    return current.connection


def correlation_id() -> Any:
    """The correlation id of the running message, or None."""
    return current.message.correlation_id if current.message else None

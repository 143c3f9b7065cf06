"""What a handler can ask about itself: its message, its transaction (SPEC P3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.db.async_connection import AsyncDeadlineConnection, current_async, in_thread
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import WorkerError
from packhorse.worker.observe import correlation

_message: ContextVar[ClaimedMessage | None] = ContextVar("packhorse_message", default=None)
#: That of the error boundary around the caller (worker/calls/boundary.py).
boundary_correlation_id: ContextVar[str | None] = ContextVar("packhorse_correlation_id", default=None)


class _CurrentMessage(threading.local):
    """What this thread works on. The message follows into coroutines that the handler starts, the connection
    does not: it belongs to one thread."""

    connection: DeadlineConnection | None = None
    place: tuple[str, str] | None = None  # of that connection: URL, schema

    @property
    def message(self) -> ClaimedMessage | None:
        return _message.get()

    @message.setter
    def message(self, message: ClaimedMessage | None) -> None:
        _message.set(message)


current = _CurrentMessage()


def current_message() -> ClaimedMessage | None:
    """The message that this handler works on, also in coroutines it runs; None outside a handler."""
    return current.message


def current_connection() -> DeadlineConnection:
    """The connection of a transactional handler (`@dramatiq.actor(transactional=True)`).

    What the handler writes on it, what it sends, and the completion of its message commit together, or
    not at all: exactly once for effects in this database (SPEC P3). Raises WorkerError elsewhere.
    """
    if current.connection is None:
        if current_async.get() is not None:
            raise WorkerError(
                "the transaction of a coroutine has an asynchronous connection: call current_async_connection()"
            )
        raise WorkerError(
            "no transaction here: declare the actor with transactional=True, and call this in its own thread"
        )
    return current.connection.in_hands()


def superseded() -> bool:
    """Is there a later live message of this handler's conversation or, without one, of its pending key?

    Ask before you send: what came in the meantime makes the answer wrong, and that message has its turn next.
    Reads the committed state on a connection of its own, also in a transactional handler; the next moment may
    answer otherwise. False outside a handler, and in tests without a database. Raises StoreUnavailable.
    """
    message = current.message
    return message is not None and message.superseded()


async def superseded_async() -> bool:
    """superseded() for coroutines: the event loop goes on meanwhile."""
    message = current.message
    return message is not None and await in_thread(message.superseded)


def correlation_id() -> str | None:
    """The correlation id of the running message, else of the error boundary around the caller, else None."""
    message = current.message
    own: str | None = message.correlation_id if message is not None else None
    return own or boundary_correlation_id.get()


correlation.current = correlation_id  # for packhorse.enqueue(): its room knows nothing of this one


def current_async_connection() -> AsyncDeadlineConnection:
    """The connection of a transactional coroutine (an `async def` actor with `transactional=True`): a psycopg
    AsyncConnection.

    As current_connection(), but what it sends it sends with `await actor.send_async(…)`. Raises WorkerError
    elsewhere.
    """
    found = current_async.get()
    if found is None:
        raise WorkerError("no transaction here: declare the `async def` actor with transactional=True")
    return found[0]


@contextmanager
def sending_on(connection: DeadlineConnection, place: tuple[str, str]) -> Iterator[None]:
    """What this thread sends meanwhile goes into that connection's transaction. place: where it leads, URL
    and schema.
    """
    current.connection, current.place = connection, place
    try:
        yield
    finally:
        current.connection = current.place = None

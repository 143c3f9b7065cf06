"""One encoded message becomes a row."""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.enqueue.encoding import Encoded
from packhorse.worker.store import messages as store
from packhorse.worker.store.wakes import Wake


def insert(connection: DeadlineConnection, encoded: Encoded, wakes: set[Wake] | None) -> int:
    """Enqueue it in the connection's transaction; the id. wakes: as for store.enqueue(). Raises
    InvalidArgument, UnknownQueue.
    """
    columns = (encoded.queue, encoded.message_type, encoded.payload, encoded.options)
    if not encoded.extra:
        return store.enqueue_plain(connection, *columns, encoded.priority, wakes=wakes)
    given = {"priority": encoded.priority, **encoded.extra}
    return store.enqueue(connection, *columns, wakes=wakes, **given).id

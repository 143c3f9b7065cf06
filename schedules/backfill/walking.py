"""What the shipped backfills share beside the engine: a walk of their own for the way back, what the server
can do.
"""

from __future__ import annotations

from collections.abc import Callable

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store import maintenance
from packhorse.worker.store.backfill_tables import Batch, SourceTable

BATCH_ROWS = 2000
SECURITY_INVOKER_VERSION = 150000


def each_batch(connection: DeadlineConnection, source: SourceTable, act: Callable[[Batch], object]) -> None:
    """Call `act` with batch after batch of a table, each in a transaction of its own; killed, it is to be
    repeated from the beginning.
    """
    after: list[str] | None = None
    while True:
        with connection.transaction():
            batch = tables.next_batch(connection, source, after, BATCH_ROWS)
            if batch is None:
                return
            maintenance.by_key(connection)
            act(batch)
        after = batch.through


def security_invoker(connection: DeadlineConnection) -> bool:
    """Does the server know views that show each reader the rows of his own?"""
    return store.server_version(connection) >= SECURITY_INVOKER_VERSION

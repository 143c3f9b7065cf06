"""What the page asks (worker/db/sql/web.sql, top.sql); bounded on tables of any size.

Each takes a connection first and works in its transaction, which the page has made read-only. Errors come out
as psycopg errors inside `translated()`.
"""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows


def queues(connection: DeadlineConnection) -> list[Row]:
    """One row per queue, those with most due messages first: counts by state (bounded, then estimates), age
    of the oldest due one in seconds.
    """
    return rows(connection, "top_queues")

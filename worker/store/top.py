"""One look at everything that `packhorse top` shows (top.sql); bounded on tables of any size."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows

#: Messages that are counted of one queue, and of all together; beyond that the planner estimates.
MOST_COUNTED, MOST_COUNTED_TOGETHER = 20_000, 200_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What was there at one instant."""

    queues: list[Row]
    workers: list[Row]
    oldest: list[Row]
    conversations: Row
    dead: Row
    maintenance: list[Row]


def look(connection: DeadlineConnection) -> Sample:
    """Everything, now. Raises psycopg errors; run it inside `translated()`."""
    return Sample(
        rows(connection, "top_queues", {"limit": MOST_COUNTED, "total": MOST_COUNTED_TOGETHER}),
        rows(connection, "top_workers"),
        rows(connection, "top_oldest"),
        rows(connection, "top_conversations")[0],
        rows(connection, "top_dead")[0],
        rows(connection, "top_maintenance"),
    )

"""Is this database a copy of another one? migrations/functions/installation.sql (SPEC O11)."""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value


def status(connection: DeadlineConnection) -> Row:
    """copy (nothing starts here until somebody accepts it), and what would start: waiting, running,
    schedules, newest_at.
    """
    return {"copy": bool(value(connection, "is_copy")), **rows(connection, "copied_work")[0]}


def accept(connection: DeadlineConnection, operator: str, reason: str | None, *, paused: bool) -> bool:
    """Let a copy start messages and schedules; False when it is none. paused: each queue and schedule waits
    to be resumed. One transaction.
    """
    return bool(value(connection, "accept_copy", (paused, operator, reason)))


def mark(connection: DeadlineConnection, operator: str, reason: str | None) -> bool:
    """Start nothing more in this database until somebody accepts it; False when it was so already. One
    transaction.
    """
    return bool(value(connection, "mark_copy", (operator, reason)))

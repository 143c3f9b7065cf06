"""What tests of an application ask of its queue (worker/db/sql/testing.sql; SPEC W12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.store import wakes


@dataclass(frozen=True, slots=True)
class MessageState:
    """A message, wherever it is. state: as in worker/states.py. traceback: of a dead letter."""

    id: int
    queue: str
    message_type: str
    state: str
    reason: str | None
    attempt: int
    error_class: str | None
    error_message: str | None
    traceback: str | None


def empty(connection: DeadlineConnection) -> None:
    """Remove every message, schedule, setting and record of the queue; its schema stays. By the owner of the
    tables.
    """
    connection.execute(sql("empty_queue_tables"), prepare=False)


def commit_without_waiting(connection: DeadlineConnection) -> None:
    """New sessions on this database do not wait for the disk. By its owner."""
    connection.execute(sql("commit_without_waiting"), prepare=False)


def make_due(connection: DeadlineConnection, queues: Sequence[str], types: Sequence[str]) -> int:
    """Whatever waits for its time is due, and parked scopes are lifted; how many there were of both."""
    count, known = connection.execute(
        sql("make_due"), {"queues": list(queues), "types": list(types)}
    ).fetchone()  # type: ignore[misc]
    if count:
        wakes.wake_queues(connection, known)
    return int(count)


def outcomes(connection: DeadlineConnection) -> list[MessageState]:
    """Every known message, by id."""
    return [MessageState(*row) for row in connection.execute(sql("outcomes")).fetchall()]


def ended(connection: DeadlineConnection) -> set[int]:
    """Ids of the messages that are done, cancelled or dead."""
    return set(connection.execute(sql("ended_messages")).fetchone()[0])  # type: ignore[index]


def waiting(
    connection: DeadlineConnection, queues: Sequence[str], types: Sequence[str], limit: int
) -> list[tuple[int, str, str, str, int, str, str]]:
    """(id, queue, type, state, attempt, class and text of the last error) of live messages, oldest first."""
    return connection.execute(
        sql("waiting_messages"), {"queues": list(queues), "types": list(types), "limit": limit}
    ).fetchall()

"""What a burst asks the database: is there work left, and how did it go? (worker/db/sql/bursts.sql)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql


def has_work(connection: DeadlineConnection, workers: Sequence[UUID]) -> bool | None:
    """Do these processes hold a message, or could one of their queues and types start now, or as soon as a
    rate limit allows it? None before one of them has registered."""
    row = connection.execute(sql("look_for_work"), {"workers": list(workers)}).fetchone()
    return None if row is None else bool(row[0] or row[1])


@dataclass(frozen=True, slots=True)
class WorkLeft:
    """Of the queues and types of some processes. remaining: live messages. failed: those whose last attempt
    failed. dead: dead letters.
    """

    remaining: int
    failed: int
    dead: int


def work_left(connection: DeadlineConnection, workers: Sequence[UUID], since: datetime) -> WorkLeft:
    """What these processes leave; failed, dead: since then."""
    row = connection.execute(sql("what_is_left"), {"workers": list(workers), "since": since}).fetchone()
    return WorkLeft(0, 0, 0) if row is None else WorkLeft(*row)

"""The timetable in the database: one function = one statement (schedules.sql,
migrations/functions/schedules.sql).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import StoreError
from packhorse.worker.records import Row
from packhorse.worker.store.json_text import dumps
from packhorse.worker.store.rows import rows, value


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule that has something to decide: its trigger, the newest planned time that was decided, the
    database's now.
    """

    name: str
    cron: str | None
    every_seconds: float | None
    time_zone: str
    missed: str
    missed_limit: int
    last_planned_at: datetime
    problem: str | None
    now: datetime


def set_schedule(connection: DeadlineConnection, values: dict[str, Any]) -> str:
    """Make or change a schedule; "created", "changed" or "unchanged". values: fields of schedules.Schedule,
    and `origin`, the packages of who declares it.

    Raises InvalidArgument, UnknownQueue. Source: migrations/functions/schedules.sql
    """
    return str(value(connection, "set_schedule", values | {"payload": dumps(values["payload"])}))


def remove_undeclared(
    connection: DeadlineConnection, sources: Sequence[str], origin: Sequence[str], names: Sequence[str]
) -> dict[str, bool]:
    """Remove schedules of these sources that are not among the names and whose declarer had no other packages
    than `origin`; returns which, and whether each is removed (False: its row is locked)."""
    values = {"sources": list(sources), "origin": list(origin), "names": list(names)}
    return dict(connection.execute(sql("remove_undeclared_schedules"), values).fetchall())


def due(
    connection: DeadlineConnection, *, unusable: bool = False, deferred: Sequence[str] = ()
) -> tuple[list[Due], float | None, bool]:
    """What has to be decided now, the seconds until the next planned time (None: nothing is planned), and
    whether runs are open.

    unusable: with the schedules that a scheduler could not compute. deferred: without these, in either
    answer.
    """
    found = connection.execute(
        sql("due_schedules"), {"unusable": unusable, "deferred": list(deferred)}
    ).fetchall()
    return [Due(*row[:-2]) for row in found if row[0] is not None], found[0][-2], found[0][-1]


def fire(
    connection: DeadlineConnection,
    name: str,
    planned_at: datetime,
    next_at: datetime | None,
    *,
    missed_count: int = 0,
    missed: bool = False,
    jitter: float = 0.0,
) -> str:
    """Decide one planned time: enqueued, overlapped, missed, taken, paused or gone. One transaction."""
    return str(value(connection, "fire_schedule", (name, planned_at, next_at, missed_count, missed, jitter)))


def fail(
    connection: DeadlineConnection, name: str, planned_at: datetime, next_at: datetime | None, error: str
) -> bool:
    """Record a planned time that could not be enqueued; False when somebody decided it."""
    return bool(value(connection, "fail_schedule_run", (name, planned_at, next_at, error)))


def plan(
    connection: DeadlineConnection,
    name: str,
    last: datetime,
    next_at: datetime | None,
    problem: str | None = None,
) -> None:
    """Store what comes next, or why it cannot be said."""
    connection.execute(sql("plan_schedule"), (name, last, next_at, problem))


def finish_runs(connection: DeadlineConnection, limit: int = 200) -> int:
    """Write the ends of finished runs into the history; how many."""
    return int(value(connection, "finish_schedule_runs", (limit,)))


def list_schedules(connection: DeadlineConnection) -> list[Row]:
    """One row per schedule, by name."""
    return rows(connection, "schedule_list")


def show(connection: DeadlineConnection, name: str) -> Row:
    """One schedule, whole. Raises InvalidArgument with a near miss."""
    connection.execute(sql("require_schedule"), (name,))
    found = rows(connection, "schedule_show", (name,))
    if not found:  # removed between the two statements
        raise StoreError(f"the schedule {name} is gone")
    return found[0]


def history(connection: DeadlineConnection, name: str | None, limit: int) -> list[Row]:
    """Runs of one schedule, or of all, newest first."""
    if name is not None:
        connection.execute(sql("require_schedule"), (name,))
    return rows(connection, "schedule_history", {"name": name, "limit": limit})


def pause(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> bool:
    """Stop a schedule; False when it was paused already."""
    return bool(value(connection, "pause_schedule", (name, operator, reason)))


def resume(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> bool:
    """Let a paused schedule go on, from now; False when it was not paused."""
    return bool(value(connection, "resume_schedule", (name, operator, reason)))


def run_now(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> int:
    """Enqueue a run at once; the id of its message."""
    return int(value(connection, "run_schedule_now", (name, operator, reason)))

"""Maintenance in the demo: four tasks of the timetable are asked for now, and what became of them is
shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.db.queries import Statement
from packhorse.worker.store import schedules

TASKS = (
    "job.due_reminders",
    "job.stale_message_locks",
    "retention.processed_messages",
    "partitions.message_archive.make",
)
LIMIT_SECONDS = 15.0
KNOWN = Statement("select count(*) from packhorse.schedules where name = any (%s)")
ENDED = Statement("""
select r.task, r.state, r.rows_done from packhorse.maintenance_runs r join packhorse.schedule_runs s on s.message_id = r.message_id
where s.message_id = any (%s) and r.ended_at is not null order by r.task
""")


class Upkeep:
    """Used by the main thread. lines: for people, problems: why the demo is no success."""

    def __init__(self, open_connection: Callable[[], DeadlineConnection]) -> None:
        self._link = Link(open_connection)
        self.lines: list[str] = []

    def run(self) -> list[str]:
        """Ask for the tasks, wait for their ends; problems, [] when there are none. Raises StoreError."""
        deadline = time.monotonic() + LIMIT_SECONDS
        with self._link.connection() as connection:
            while connection.execute(KNOWN, (list(TASKS),)).fetchone()[0] < len(TASKS):  # type: ignore[index]
                if time.monotonic() > deadline:
                    return ["maintenance: no scheduler has written the timetable"]
                time.sleep(0.1)  # the scheduler inside the workers is just starting
            asked = [schedules.run_now(connection, task, "demo", "to be seen") for task in TASKS]
            ended: list[tuple[str, str, int]] = []
            while len(ended) < len(TASKS) and time.monotonic() < deadline:
                time.sleep(0.1)  # a rhythm; each look is one statement
                ended = connection.execute(ENDED, (asked,)).fetchall()
        self.lines = [f"maintenance: {task} {state}, {rows} rows" for task, state, rows in ended]
        if len(ended) < len(TASKS):
            return [f"maintenance: {len(TASKS) - len(ended)} of {len(TASKS)} tasks did not end"]
        return [f"maintenance: {task} {state}" for task, state, _ in ended if state != "succeeded"]

    def close(self) -> None:
        self._link.close()

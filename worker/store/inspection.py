"""What an operator looks at besides messages: queues, workers, schedules, maintenance, partitions, the server
(inspection.sql).

Each function is one statement, bounded, without locks; it may run as packhorse_reader.
"""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.browse import Count
from packhorse.worker.store.rows import rows

#: Dead letters that are counted of one queue, and of all together; beyond that the planner estimates. A row
#: of theirs has a traceback, so that each that is not known to be visible is a page of the table.
MOST_DEAD, MOST_DEAD_TOGETHER = 5_000, 20_000
#: The same for live messages.
MOST_LIVE, MOST_LIVE_TOGETHER = 5_000, 50_000


def dead_by_queue(connection: DeadlineConnection) -> dict[str, Count]:
    """Dead letters by queue. Queues without any are left out."""
    bounds = {"limit": MOST_DEAD, "total": MOST_DEAD_TOGETHER}
    return {
        row["queue"]: Count(int(row["messages"]), row["estimated"])
        for row in rows(connection, "inspect_dead_by_queue", bounds)
    }


def depths(connection: DeadlineConnection) -> list[Row]:
    """Live messages of each queue by state, as `packhorse top` shows them; `declared` is false for queues
    that only rows name; `estimates`: the states whose number is the planner's.
    """
    return rows(connection, "top_queues", {"limit": MOST_LIVE, "total": MOST_LIVE_TOGETHER})


def queues(connection: DeadlineConnection) -> list[Row]:
    """Settings of all queues, by name, at most 1000."""
    return rows(connection, "inspect_queues")


def queue(connection: DeadlineConnection, name: str) -> Row | None:
    """All settings of one queue; None when nobody has declared it."""
    found = rows(connection, "queue_settings", (name,))
    return found[0] if found else None


def types_of(connection: DeadlineConnection, queue: str) -> list[Row]:
    """Types that workers register on a queue, by name, at most 500."""
    return rows(connection, "inspect_types", (queue,))


def oldest_of(connection: DeadlineConnection, queue: str) -> list[Row]:
    """The due messages of a queue that the next claims take, at most 10."""
    return rows(connection, "inspect_oldest", {"queue": queue})


def workers(connection: DeadlineConnection, limit: int) -> list[Row]:
    """Worker processes, silent ones first."""
    return rows(connection, "inspect_workers", {"limit": limit})


def running(connection: DeadlineConnection, limit: int) -> list[Row]:
    """Messages that run, longest first."""
    return rows(connection, "inspect_running", {"limit": limit})


def schedules(connection: DeadlineConnection) -> list[Row]:
    """All schedules by name, at most 1000."""
    return rows(connection, "inspect_schedules")


def schedule(connection: DeadlineConnection, name: str) -> Row | None:
    """One schedule, whole; None when there is none."""
    found = rows(connection, "schedule_show", (name,))
    return found[0] if found else None


def next_runs(connection: DeadlineConnection, name: str | None, limit: int) -> list[Row]:
    """The next planned times, soonest first. only_first: a cron expression, of which the database knows no
    more than the next time.
    """
    return rows(connection, "inspect_next_runs", {"name": name, "limit": limit})


def schedule_runs(connection: DeadlineConnection, name: str | None, limit: int) -> list[Row]:
    """Runs of one schedule, or of all, newest first."""
    return rows(connection, "schedule_history", {"name": name, "limit": limit})


def missed(connection: DeadlineConnection, limit: int) -> list[Row]:
    """Planned times of the last week that did not become a message, newest first."""
    return rows(connection, "inspect_missed", {"limit": limit})


def maintenance(connection: DeadlineConnection) -> list[Row]:
    """Maintenance tasks that a scheduler has planned, that configuration has declared, or that ran, by name:
    next time, last run, rows per second of that.
    """
    return rows(connection, "inspect_maintenance")


def partitions(connection: DeadlineConnection) -> list[Row]:
    """Partitioned tables with a row per partition, oldest first; `partition` is null for a table without
    one.
    """
    return rows(connection, "inspect_partitioned")


def runways(connection: DeadlineConnection) -> list[Row]:
    """Until when inserts find a partition, by table, soonest first. A table whose end is not finite has the
    text 'infinity'.
    """
    return rows(connection, "inspect_runways")


def server(connection: DeadlineConnection) -> Row:
    """Version, size, connections of the server, in one row."""
    return rows(connection, "inspect_server")[0]


def connections(connection: DeadlineConnection) -> list[Row]:
    """Client connections of this database by program, login and state, most first."""
    return rows(connection, "inspect_connections")

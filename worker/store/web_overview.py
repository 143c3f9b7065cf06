"""What the overview asks besides the health checks (worker/db/sql/web_overview.sql); bounded on tables of any
size.

Each takes a connection first and works in its transaction, which the page has made read-only. Errors come out
as psycopg errors inside `translated()`.
"""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows

#: Checks of the overview, in its order.
CHECKS = (
    "queue_health",
    "dead_letters",
    "conversation_state",
    "system_summary",
    "circuit_breakers",
    "error_rate",
    "processing_latency",
    "stale_locks",
)
#: Counts of a queue are exact up to there, of all queues together up to MOST_COUNTED_TOGETHER (see
#: count_bound()); of a day of the archive so many blocks are read, of 20 messages
#: or so.
MOST_COUNTED, MOST_COUNTED_TOGETHER, MOST_BLOCKS, MOST_BLOCKS_OF_CHECKS = 2000, 20_000, 500, 250


def recent_ends(connection: DeadlineConnection) -> list[Row]:
    """What was done in the last hour: one row for all (queue None), which comes first, and one per queue.

    done; seconds: over which; whole: or only the newest of them; wait, run: p50, p95, p99 in seconds;
    done_lately in lately_seconds, at most five minutes; minutes: of all, [minutes ago, done].
    """
    return rows(connection, "web_recent_ends", {"blocks": MOST_BLOCKS})


def check(connection: DeadlineConnection, name: str) -> Row:
    """One of CHECKS: status (ok, warn, fail, absent), summary, details; with smaller bounds than
    `packhorse health` has, so that the overview costs little.
    """
    bounds = {"limit": MOST_COUNTED, "total": MOST_COUNTED_TOGETHER, "blocks": MOST_BLOCKS_OF_CHECKS}
    return rows(connection, f"web_check_{name}", bounds)[0]


def worker_starts(connection: DeadlineConnection) -> list[Row]:
    """Starts of live processes within the last hour: minutes_ago, version, processes."""
    return rows(connection, "web_worker_starts")

"""Results and rate limiters of dramatiq: one function = one statement (migrations/functions/results.sql,
rate_limiters.sql).

Durations are seconds on the database clock. Errors come out as in store/messages.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql


def store_result(connection: DeadlineConnection, key: str, result: str, ttl_seconds: float) -> None:
    """Keep a result (JSON text) for ttl_seconds; replaces an older one of the same key."""
    connection.execute(sql("store_result"), (key, result, ttl_seconds))


def get_result(connection: DeadlineConnection, key: str) -> str | None:
    """The stored JSON text; None when there is none, or its time is over. A stored null is the text
    "null".
    """
    row = connection.execute(sql("get_result"), (key,)).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def add_rate_limiter(connection: DeadlineConnection, key: str, value: int, ttl_seconds: float) -> bool:
    """Set a counter unless it exists; True when it was set."""
    row = connection.execute(sql("add_rate_limiter"), (key, value, ttl_seconds)).fetchone()
    return bool(row and row[0])


def change_rate_limiter(
    connection: DeadlineConnection,
    key: str,
    amount: int,
    minimum: int | None,
    maximum: int | None,
    ttl_seconds: float,
    keys: Sequence[str] | None = None,
) -> bool:
    """Add amount (may be negative) unless the counter would leave minimum..maximum, or the sum over keys
    would exceed maximum.

    One caller at a time per keys[0] (per key without keys). False when nothing was changed.
    """
    row = connection.execute(
        sql("change_rate_limiter"),
        (key, amount, minimum, maximum, ttl_seconds, None if keys is None else list(keys)),
    ).fetchone()
    return bool(row and row[0])


def get_rate_limiter(connection: DeadlineConnection, key: str) -> int | None:
    """The value of a counter; None when it is not there or its time is over."""
    row = connection.execute(sql("get_rate_limiter"), (key,)).fetchone()
    return None if row is None or row[0] is None else int(row[0])

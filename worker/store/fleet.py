"""Numbers of the whole fleet, counted once for everybody (migrations/functions/fleet_statistics.sql)."""

from __future__ import annotations

import json
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql


def refresh(connection: DeadlineConnection, max_age_seconds: float) -> bool:
    """Count anew if the numbers are older than this; False when there was no need, or somebody else is at
    it.
    """
    return bool(connection.execute(sql("refresh_fleet_statistics"), (max_age_seconds,)).fetchone()[0])  # type: ignore[index]


def statistics(connection: DeadlineConnection) -> tuple[dict[str, Any], float] | None:
    """What was counted last and its age in seconds; None before the first count."""
    row = connection.execute(sql("fleet_statistics")).fetchone()
    return (json.loads(row[0]), float(row[1])) if row else None


def clock(connection: DeadlineConnection) -> float:
    """The database's clock, in seconds since 1970."""
    return float(connection.execute(sql("database_clock")).fetchone()[0])  # type: ignore[index]


def read_only(connection: DeadlineConnection) -> str | None:
    """Why nothing could be written here; None when it can."""
    reason = connection.execute(sql("read_only")).fetchone()[0]  # type: ignore[index]
    return None if reason is None else f"the database is read-only: {reason}"

"""The health checks (health.sql, migrations/functions/health*.sql, SPEC O1)."""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows


def checks(connection: DeadlineConnection, check: str | None = None) -> list[Row]:
    """The fourteen checks in their order, or one: check_name, status (ok, warn, fail, absent), summary,
    details.

    Reads only, bounded on tables of any size. Raises InvalidArgument for a name that is none.
    """
    return rows(connection, "health_checks", (check,))

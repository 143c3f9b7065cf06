"""Parked scopes; one function = one statement (scopes.sql).

Each takes a connection first and works in its transaction. Errors come out as psycopg errors inside
`translated()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value


def list_scopes(connection: DeadlineConnection) -> list[Row]:
    """What is parked or probing, with its types and how many messages wait (a bounded count); longest
    first.
    """
    return rows(connection, "list_scopes")


def known_scopes(connection: DeadlineConnection) -> list[str]:
    """Names that a person could mean, at most 10000."""
    return [str(row["name"]) for row in rows(connection, "known_scopes")]


def park(
    connection: DeadlineConnection,
    scope: str,
    seconds: float,
    reason: str | None,
    types: Sequence[str] | None,
    probing: bool,
    operator: str,
) -> datetime:
    """No message of the scope starts until then; as a person says it: it may shorten a park. Raises
    InvalidArgument.
    """
    given = {
        "scope": scope,
        "seconds": seconds,
        "reason": reason,
        "types": None if types is None else list(types),
    }
    found: datetime = value(connection, "park_scope", {**given, "probing": probing, "operator": operator})
    return found


def lift(connection: DeadlineConnection, scope: str, operator: str, reason: str | None) -> bool:
    """The messages of the scope may start; False when it was not parked."""
    return bool(value(connection, "lift_scope", (scope, operator, reason)))

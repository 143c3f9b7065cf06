"""Circuit breakers and health of services that handlers call; one function = one statement (services.sql).

Each takes a connection first and works in its transaction. Errors come out as psycopg errors inside
`translated()`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value


class EndpointState(NamedTuple):
    """What the database says of one endpoint. retry_in: seconds until its breaker may be probed; None while
    it is closed.
    """

    service: str
    endpoint: str
    state: str
    forced: str | None
    epoch: int
    retry_in: float | None
    probing: bool
    failures_in_row: int
    healthy: bool | None
    changed: bool


class DueCheck(NamedTuple):
    """A health check that the caller has taken."""

    service: str
    endpoint: str
    health_url: str


def declare(connection: DeadlineConnection, service: str, endpoints: Sequence[dict[str, Any]]) -> int:
    """Make endpoints known; how many rows were new or different. Raises InvalidArgument."""
    return int(value(connection, "declare_service", (service, json.dumps(endpoints))))


def report_calls(
    connection: DeadlineConnection, reports: Sequence[dict[str, Any]], services: Iterable[str]
) -> list[EndpointState]:
    """Add counts of calls; the state of all endpoints of these services. Raises StoreConflict when a row is
    locked for long.
    """
    return [
        EndpointState(*row)
        for row in connection.execute(sql("report_calls"), (json.dumps(reports), list(services))).fetchall()
    ]


def begin_probe(connection: DeadlineConnection, service: str, endpoint: str) -> int | None:
    """The token of the one probe of a breaker; None when it is not to be probed now, 0 when it is closed."""
    token = value(connection, "begin_probe", (service, endpoint))
    return None if token is None else int(token)


def end_probe(
    connection: DeadlineConnection, service: str, endpoint: str, token: int, succeeded: bool | None
) -> str | None:
    """The state of the breaker afterwards; None when the probe was over before. succeeded None: it says
    nothing.
    """
    state = value(connection, "end_probe", (service, endpoint, token, succeeded))
    return None if state is None else str(state)


def due_checks(connection: DeadlineConnection, services: Iterable[str], limit: int) -> list[DueCheck]:
    """Health checks that this process has taken and is to make; limit 1..100000."""
    return [
        DueCheck(*row)
        for row in connection.execute(sql("due_health_checks"), (list(services), limit)).fetchall()
    ]


def record_health(
    connection: DeadlineConnection, service: str, endpoint: str, error: str | None
) -> tuple[bool | None, bool | None]:
    """(healthy before, healthy now); error None: the check went well."""
    row = connection.execute(sql("record_health"), (service, endpoint, error)).fetchone()
    return (row[0], row[1]) if row else (None, None)


def list_endpoints(connection: DeadlineConnection, service: str | None = None) -> list[Row]:
    """Every endpoint that was declared within a day. Raises InvalidArgument for a service that nobody has
    declared.
    """
    if service is not None:
        connection.execute(sql("check_service"), (service,))
    return rows(connection, "list_services", {"service": service})


def force(
    connection: DeadlineConnection,
    service: str,
    state: str,
    endpoint: str | None,
    operator: str,
    reason: str | None,
) -> int:
    """Hold breakers "open" or "closed", or let them be "automatic"; how many were changed. Raises
    InvalidArgument.
    """
    found = value(
        connection,
        "force_service",
        {"service": service, "state": state, "endpoint": endpoint, "operator": operator, "reason": reason},
    )
    return int(found)

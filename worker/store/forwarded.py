"""What Postgres knows of messages that are handled from RabbitMQ; one function = one statement
(db/sql/forwarded.sql).

Each takes a connection first and works in its transaction. Errors come out as psycopg errors inside
`translated()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows


@dataclass(frozen=True, slots=True)
class ForwardedNote:
    """What is known of a message that comes again. attempt: attempts spent. crashes: processes that died with
    it. is_over: it is done, or a dead letter. wait_seconds: until its next attempt. history: JSON text.
    """

    id: int
    attempt: int = 0
    crashes: int = 0
    is_over: bool = False
    wait_seconds: float = 0.0
    history: str | None = None


def note_attempt(
    connection: DeadlineConnection, message_id: int, attempt: int, delay_seconds: float, history: str | None
) -> None:
    """So many attempts are spent; it waits for the next one. history: JSON text, all there is."""
    connection.execute(sql("note_forwarded_attempt"), (message_id, attempt, delay_seconds, history))


def note_done(connection: DeadlineConnection, ids: Sequence[int]) -> None:
    """Their handlers are done, and RabbitMQ has not heard of it."""
    connection.execute(sql("note_forwarded_done"), (list(ids),))


def note_crashes(connection: DeadlineConnection, ids: Sequence[int], detail: str) -> int:
    """A process died while these ran; how many."""
    row = connection.execute(sql("note_forwarded_crashes"), (list(ids), detail)).fetchone()
    return int(row[0])  # type: ignore[index]


def note_overdue(connection: DeadlineConnection, message_id: int, attempt: int) -> None:
    """This attempt ignored its time limit until its process was replaced."""
    connection.execute(sql("note_forwarded_overdue"), (message_id, attempt))


def notes(connection: DeadlineConnection, ids: Sequence[int]) -> dict[int, ForwardedNote]:
    """What is known of these, by id; none of those of which nothing is."""
    found = connection.execute(sql("forwarded_notes"), (list(ids),)).fetchall()
    return {row[0]: ForwardedNote(*row) for row in found}


def bury(
    connection: DeadlineConnection,
    message_id: int | None,
    message: str,
    reason: str,
    error: tuple[str | None, str | None, str | None, str | None],
    details: str | None,
    holder: UUID,
) -> bool:
    """Make a dead letter of a relayed message; False when it is one already. message: its columns, as a JSON
    object. error: class, message, traceback, own frame. details: JSON text. Raises StoreError.
    """
    given = (message_id, message, reason, *error, details, holder)
    return bool(connection.execute(sql("bury_forwarded"), given).fetchone()[0])  # type: ignore[index]


@dataclass(frozen=True, slots=True)
class RestingScope:
    """A scope that rests for so many seconds; probing: after them one message at a time may start. breaker:
    a failure breaker has parked it, and a success lifts it.
    """

    name: str
    queue: str | None
    types: list[str]
    seconds: float
    probing: bool
    breaker: bool


def park(
    connection: DeadlineConnection,
    message_id: int,
    message_type: str,
    seconds: float,
    scope: str | None,
    reason: str | None,
) -> str | None:
    """What a message calls asked for a pause; the scope when this has parked it. scope None: the only service
    that its actor names. Raises InvalidArgument.
    """
    given = (message_id, message_type, seconds, scope, reason)
    row = connection.execute(sql("park_forwarded_scope"), given).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def resting(connection: DeadlineConnection) -> list[RestingScope]:
    """What is parked or probing."""
    return [RestingScope(*row) for row in connection.execute(sql("forwarded_resting")).fetchall()]


def counting(connection: DeadlineConnection) -> tuple[frozenset[str], bool]:
    """Scopes of which a breaker counts failures, and whether one has failed within the last minute."""
    found = connection.execute(sql("forwarded_counting")).fetchall()
    return frozenset(row[0] for row in found), any(row[1] for row in found)


def count_failure(
    connection: DeadlineConnection,
    message_id: int,
    message_type: str,
    queue: str,
    error: tuple[str, str, str | None],
    probes: Sequence[str],
) -> tuple[str, float] | None:
    """A failure of a message whose actor or queue has a failure breaker. None: it fails as usual; else
    `parked` or `snooze`, and the seconds that it waits, no attempt spent. error: class, message, own frame.
    probes: scopes of which it was the probe.
    """
    given = (message_id, message_type, queue, *error, list(probes))
    outcome, seconds = connection.execute(sql("count_forwarded_failure"), given).fetchone()  # type: ignore[misc]
    return None if outcome is None else (outcome, seconds)


def note_success(connection: DeadlineConnection, scopes: Sequence[str]) -> None:
    """A message of these scopes is done: their failures are counted from none."""
    connection.execute(sql("note_forwarded_success"), (list(scopes),))


def lift(connection: DeadlineConnection, scope: str) -> None:
    """A message of it has succeeded whose failure breaker had parked it."""
    connection.execute(sql("lift_forwarded_scope"), (scope,))


def policies(connection: DeadlineConnection, queues: Sequence[str]) -> list[Row]:
    """What these queues say of retries (seconds), and where they are forwarded to."""
    return rows(connection, "forwarded_policies", (list(queues),))

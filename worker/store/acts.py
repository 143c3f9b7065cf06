"""What an operator does with many messages at once: count, walk, act (worker/db/sql/filters.sql,
migrations/functions/edit.sql).

Each takes a connection first and works in its transaction. Raises StoreError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.filters import KNOWN, LIVE, Term, condition, filled
from packhorse.worker.store.rows import rows, rows_of, value
from packhorse.worker.store.tallies import Tally, tally

#: A look at a table of any size ends after this.
LOOK_SECONDS = 30


def moment(connection: DeadlineConnection) -> tuple[datetime, int]:
    """The database's time, in UTC, and the id of its newest live message."""
    row: Any = connection.execute(sql("filter_moment")).fetchone()
    return row[0].astimezone(UTC), int(row[1])


def count(
    connection: DeadlineConnection,
    terms: Sequence[Term],
    now: datetime,
    last: int,
    *,
    running: bool,
    exact_seconds: float | None = None,
) -> Tally:
    """Live messages up to the id `last`. Ages are those at `now`. running: those that run are counted, too.
    exact_seconds: as tally() has it.
    """
    found, parameters = condition(terms, LIVE)
    values = {**parameters, "now": now, "last": last, "running": running}
    return tally(connection, "live", terms, found, values, exact_seconds)


def page(
    connection: DeadlineConnection,
    terms: Sequence[Term],
    now: datetime,
    after: int,
    last: int,
    limit: int,
    *,
    running: bool,
) -> list[int]:
    """The next ids of the selection after `after`, ascending. running: with those that run."""
    statement, parameters = filled("page_of_filtered", terms, LIVE)
    with connection.transaction():
        value(connection, "bound_statement", (f"{LOOK_SECONDS}s",))
        found = connection.execute(
            statement,
            {**parameters, "now": now, "after": after, "last": last, "limit": limit, "running": running},
        ).fetchall()
    return [row[0] for row in found]


def lock(
    connection: DeadlineConnection, terms: Sequence[Term], now: datetime, ids: list[int], *, running: bool
) -> list[int]:
    """Those of these messages that are selected still and that nobody has locked; locked until the
    transaction ends. running: also those that run.
    """
    statement, parameters = filled("lock_filtered", terms, LIVE)
    return [
        row[0]
        for row in connection.execute(
            statement, {**parameters, "now": now, "ids": ids, "running": running}
        ).fetchall()
    ]


def act(
    connection: DeadlineConnection, verb: str, ids: list[int], parameters: dict[str, Any]
) -> dict[int, str]:
    """Do it with each of these messages, in this order; the answer of each. verb: cancel, retry, reschedule,
    move, priority, bury.

    parameters: operator, reason and those of the verb. Raises InvalidArgument, UnknownQueue, StoreConflict;
    then nothing is done.
    """
    return {
        row[0]: row[1]
        for row in connection.execute(sql(f"act_{verb}"), {**parameters, "ids": ids}).fetchall()
    }


def clone(
    connection: DeadlineConnection, message_id: int, delay_seconds: float, operator: str, reason: str | None
) -> tuple[str, int | None]:
    """A new message like this one: "cloned" and its id; else "running" or "gone"."""
    row: Any = connection.execute(
        sql("clone_message"), (message_id, delay_seconds, operator, reason)
    ).fetchone()
    return row[0], row[1]


@dataclass(frozen=True, slots=True)
class Editable:
    """What can be edited of one message, wherever it is: payload as JSON text, names of its steps, and while
    it lives its limits.
    """

    state: str
    payload: str
    steps: list[str]
    max_attempts: int | None
    expires_at: datetime | None


def editable(connection: DeadlineConnection, message_id: int) -> Editable | None:
    """None when nothing has this id."""
    row: Any = connection.execute(sql("message_payload"), (message_id,)).fetchone()
    return None if row is None else Editable(row[0], str(row[1]), list(row[2]), row[3], row[4])


def reveal(connection: DeadlineConnection, message_id: int, operator: str, reason: str | None) -> Row | None:
    """state, payload, options, error_details, steps, error_message, traceback, history of one message,
    wherever it is; recorded. None when nothing has this id.
    """
    found = rows(connection, "reveal_message", (message_id, operator, reason))
    return found[0] if found else None


def edit(
    connection: DeadlineConnection,
    message_id: int,
    payload: str,
    before: str,
    operator: str,
    reason: str | None,
    *,
    fresh: bool = False,
) -> str:
    """Replace the payload (JSON object text), which was `before` when it was read: "edited", else the state
    that forbids it.

    Raises InvalidArgument, and StoreRejected with the SQLSTATE PH005 when somebody else has changed it since.
    """
    return str(value(connection, "edit_message", (message_id, payload, operator, reason, before, fresh)))


def set_limits(
    connection: DeadlineConnection,
    message_id: int,
    max_attempts: int | None,
    expires_at: datetime | str | None,
    operator: str,
    reason: str | None,
) -> str:
    """How often a message that waits is tried, and until when ("infinity": for ever); None leaves it.

    "changed", "unchanged", else the state that forbids it. Raises InvalidArgument.
    """
    return str(
        value(connection, "set_message_limits", (message_id, max_attempts, expires_at, operator, reason))
    )


def list_messages(
    connection: DeadlineConnection, terms: Sequence[Term], parameters: dict[str, Any]
) -> list[Row]:
    """Messages by filter, newest first; parameters of the statement `list_filtered`, `now` for ages."""
    statement, more = filled("list_filtered", terms, KNOWN)
    return rows_of(connection, statement, {**more, **parameters})

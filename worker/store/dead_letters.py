"""Dead letters: look, edit, redrive, purge, export (SPEC Q4; migrations/functions/dead_letters.sql).

A Selection says which; `pages` walks it once, oldest message first, over what was dead when the walk
began: a letter that dies again on the way is not redriven a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.errors import NotDead, NotFound
from packhorse.worker.records import Row
from packhorse.worker.store import browse, filters
from packhorse.worker.store.browse import Groups
from packhorse.worker.store.filters import Term
from packhorse.worker.store.rows import rows, rows_of, value
from packhorse.worker.store.tallies import Tally, tally


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: all given fields must match; none given means all. older_than in seconds; where:
    terms over filters.DEAD.
    """

    ids: list[int] | None = None
    fingerprint: str | None = None
    queue: str | None = None
    older_than: float | None = None
    code: str | None = None
    where: tuple[Term, ...] = ()

    def filled(self, statement: str) -> tuple[Statement, dict[str, Any]]:
        """A named statement with the terms of `where`, and its parameters, but for those that are no part of
        a selection; `now` for ages.
        """
        found, more = filters.filled(statement, self.where, filters.DEAD)
        return found, {**self._given, **more}

    @property
    def condition(self) -> tuple[Statement, dict[str, Any]]:
        """That a letter is selected, and the parameters; `dead_by` and `now` are not among them."""
        return self.filled("selected_dead_letters")

    @property
    def _given(self) -> dict[str, Any]:
        return {
            "ids": self.ids,
            "fingerprint": self.fingerprint,
            "queue": self.queue,
            "older_than": self.older_than,
            "code": self.code,
        }


def groups(connection: DeadlineConnection, *, queue: str | None = None, limit: int = 50) -> Groups:
    """Dead letters by cause (fingerprint), most frequent first; bounded on a table of any size. Raises
    UnknownQueue.
    """
    terms = () if queue is None else (Term("queue", "=", (queue,)),)
    with connection.transaction():  # what it sets for its statements ends with it
        found = browse.groups(connection, terms, limit)
    if not found.rows:  # dead letters of a queue that nobody has declared are the more to be seen
        _require_queue(connection, queue)
    return found


def list_letters(
    connection: DeadlineConnection,
    *,
    queue: str | None = None,
    message_type: str | None = None,
    fingerprint: str | None = None,
    code: str | None = None,
    where: tuple[Term, ...] = (),
    limit: int = 50,
) -> list[Row]:
    """Dead letters that match all given filters, newest first. Raises UnknownQueue."""
    statement, parameters = Selection(None, fingerprint, queue, None, code, where).filled("list_dead_letters")
    found = rows_of(
        connection,
        statement,
        {**parameters, "message_type": message_type, "limit": limit, "now": _now(connection)},
    )
    if not found:
        _require_queue(connection, queue)
    return found


def show(connection: DeadlineConnection, message_id: int, step_characters: int = 0) -> Row:
    """One dead letter, whole; of its steps name, attempt, time, size, and so many characters of each value.
    Raises NotFound, NotDead.
    """
    found = rows(connection, "show_dead_letter", {"id": message_id, "characters": step_characters})
    if not found:
        raise _no_letter(connection, message_id)
    return found[0]


def count(
    connection: DeadlineConnection,
    selection: Selection,
    dead_by: datetime | None = None,
    exact_seconds: float | None = None,
) -> tuple[Tally, datetime]:
    """How many are selected, and the database's time of the count. dead_by: of those that were dead then, and
    ages are those at that time. exact_seconds: as tally() has it. Raises UnknownQueue.
    """
    at = dead_by or _now(connection)
    condition, values = selection.condition
    values = {**values, "now": at, "dead_by": at, "running": False}
    found = tally(connection, "dead", selection.where, condition, values, exact_seconds)
    if not found.total:
        _require_queue(connection, selection.queue)
    return found, at


def pages(
    connection: DeadlineConnection, selection: Selection, dead_by: datetime, size: int
) -> Iterator[list[int]]:
    """Ids of the selection that were dead at dead_by, ascending, at most `size` at a time; a walk by key."""
    after = -(2**63)
    condition, values = selection.condition
    statement = sql("page_of_dead_letters").format(filter=condition)
    while True:
        found = rows_of(
            connection,
            statement,
            {**values, "after": after, "dead_by": dead_by, "now": dead_by, "limit": size},
        )
        if not found:
            return
        page = [row["id"] for row in found]
        after = page[-1]
        yield page


def redrive(
    connection: DeadlineConnection, ids: list[int], operator: str, reason: str | None, *, fresh: bool = False
) -> list[int]:
    """Enqueue these again with their own ids and fresh attempts; the ids that were. Recorded. One whose id a
    live message has stays.

    fresh: without their steps; everything is done again.
    """
    return list(value(connection, "redrive", (ids, len(ids), operator, reason, fresh)))


def dead_again(connection: DeadlineConnection, ids: list[int]) -> int:
    """How many of these redriven ids died again."""
    return int(value(connection, "dead_again", (ids,)))


def payload(connection: DeadlineConnection, message_id: int) -> str:
    """The payload of one dead letter as the database has it (JSON text). Raises NotFound, NotDead."""
    found = value(connection, "dead_letter_payload", (message_id,))
    if found is None:
        raise _no_letter(connection, message_id)
    return str(found)


def step_names(connection: DeadlineConnection, message_id: int) -> list[str]:
    """The names of the steps of one dead letter; empty when it has none."""
    return list(value(connection, "dead_letter_steps", (message_id,)))


def edit(
    connection: DeadlineConnection,
    message_id: int,
    payload: str,
    before: str,
    operator: str,
    reason: str | None,
) -> None:
    """Replace the payload (JSON object text), which was `before` when it was read; the old one is recorded.

    Raises NotFound, NotDead, InvalidArgument, and StoreRejected with the SQLSTATE PH005 when somebody else
    has changed it since.
    """
    if not value(connection, "edit_dead_letter", (message_id, payload, operator, reason, before)):
        raise _no_letter(connection, message_id)


def purge(connection: DeadlineConnection, ids: list[int], operator: str, reason: str | None) -> list[int]:
    """Delete these for good; the ids that were. Recorded; blocked conversations go on."""
    return list(value(connection, "purge", (ids, len(ids), operator, reason)))


def export(connection: DeadlineConnection, ids: list[int]) -> list[Row]:
    """These dead letters, every column, by id."""
    return rows(connection, "export_dead_letters", (ids,))


def _now(connection: DeadlineConnection) -> datetime:
    """The database's time, from which ages count."""
    found: datetime = value(connection, "database_time")
    return found


def _no_letter(connection: DeadlineConnection, message_id: int) -> NotFound:
    """Why there is no dead letter with this id: nothing has it, or what has it is not dead."""
    state = value(connection, "message_state", (message_id,))
    return NotFound("dead letter", message_id) if state is None else NotDead(message_id, str(state))


def _require_queue(connection: DeadlineConnection, queue: str | None) -> None:
    if queue is not None:
        connection.execute(sql("require_queue"), (queue,))

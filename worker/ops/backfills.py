"""What an operator does with backfills that needs no engine: list, show, start, pause, resume, cancel (SPEC
M8).

What walks a table, compares it or drops it is in schedules/backfill.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, NotFound
from packhorse.worker.records import Row
from packhorse.worker.store import backfills as store
from packhorse.worker.suggest import did_you_mean

#: How each answer of pause, resume and cancel reads, and whether anything was changed.
ANSWERS = {
    "requested": "it ends after its step",
    "paused": "it rests until resume",
    "enqueued": "workers go on with it",
    "resumed": "the next `packhorse backfill run` goes on",
    "cancelled": "its run is cancelled; what was copied stays",
    "nothing": "there was nothing to do",
}


class UnknownBackfill(NotFound):
    """Nobody has begun such a backfill."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        InvalidArgument.__init__(
            self,
            f"name: nobody has begun the backfill {name[:100]!r}",
            field="name",
            hint=did_you_mean(name, known, "packhorse backfill list names them all"),
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """One backfill as people want to see it. row: of the view backfill_progress; ledger: outcome, reason,
    rows.
    """

    row: Row
    ledger: list[Row]


def list_all(connection: DeadlineConnection, titles: Mapping[str, str]) -> list[Row]:
    """Every backfill that is known or was begun: those of `titles` first, in their order; state `new` for one
    that nobody has begun.
    """
    begun = {str(row["name"]): row for row in store.progress(connection)}
    empty: dict[str, Any] = dict.fromkeys(
        next(
            iter(begun.values()),
            {"rows_done": None, "rows_total": None, "rows_per_second": None, "eta_seconds": None},
        )
    )
    found = [
        {**empty, "state": "new", **begun.get(name, {}), "name": name, "title": title}
        for name, title in titles.items()
    ]
    return found + [{**row, "title": None} for name, row in begun.items() if name not in titles]


def show(connection: DeadlineConnection, name: str, *, with_ledger: bool = True) -> Progress:
    """Progress, findings, and what was not copied as it was. Raises UnknownBackfill."""
    begun = store.progress(connection, name)
    if not begun:
        raise UnknownBackfill(name, [str(row["name"]) for row in store.progress(connection)])
    return Progress(
        begun[0], store.ledger(connection, name) if with_ledger and store.has_ledger(connection) else []
    )


def start(
    connection: DeadlineConnection,
    name: str,
    source: str,
    settings: Mapping[str, str],
    operator: str,
    reason: str | None,
) -> int:
    """Let workers carry it; the id of the message. Raises StoreRejected for a finished one and for other
    settings than it was begun with.
    """
    return store.start(connection, name, source, settings, operator, reason)


def pause(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """requested, paused or nothing. Raises UnknownBackfill."""
    show(connection, name, with_ledger=False)
    return store.pause(connection, name, operator, reason)


def resume(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """enqueued, resumed or nothing. Raises UnknownBackfill."""
    show(connection, name, with_ledger=False)
    return store.resume(connection, name, operator, reason)


def cancel(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """requested, cancelled or nothing. Raises UnknownBackfill."""
    show(connection, name, with_ledger=False)
    return store.cancel(connection, name, operator, reason)


def confirm_rows(name: str, rows: int, said: int | None) -> None:
    """The second confirmation of a drop that copies nothing: an operator who knows how many rows go. Raises
    InvalidArgument.
    """
    if rows and said != rows:
        what = "nobody has said how many" if said is None else f"not {said}"
        raise InvalidArgument(
            f"rows: the table of {name} has {rows} rows, {what}",
            field="rows",
            hint=f"They are lost with the drop. Say --rows {rows}",
        )

"""How many an act would touch, of a table of any size (worker/db/sql/filters.sql).

A selection that the planner finds cheap is counted whole. Another one is counted along the ids, oldest first,
in steps of rows whatever the filter says: until MOST_COUNTED match, or for about MOST_SECONDS. Then the
planner says how many there may be in all. Nothing here writes or locks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.records import Row
from packhorse.worker.store.filters import Term
from packhorse.worker.store.rows import decoded, rows_of

MOST_COUNTED, MOST_SECONDS = 50_000, 0.1
#: Counted whole when the planner expects no more than MOST_COUNTED at no higher price (its own unit: a page
#: read in order is 1).
MOST_COST = 10_000.0
#: The first step of a walk; its time says how long the next ones may be.
FIRST_STEP = 5_000
#: SQLSTATE of a statement that the server has ended.
_ENDED = "57014"
_LOWEST = -(2**63)


@dataclass(frozen=True, slots=True)
class Tally:
    """queues: how many by queue, most first. oldest: of those. running: how many of the selection run.

    looked: None when all were counted; else so many rows were looked at, the oldest. expected: how many there
    are in all, by estimate.
    """

    queues: tuple[tuple[str, int], ...]
    oldest: datetime | None
    running: int
    looked: int | None = None
    expected: int | None = None

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(count for _, count in self.queues)


def tally(
    connection: DeadlineConnection,
    place: str,
    terms: Sequence[Term],
    condition: Statement,
    values: Row,
    exact_seconds: float | None = None,
) -> Tally:
    """Count what the condition selects. place: "live" or "dead"; terms: those in the condition that people
    wrote.

    exact_seconds: a person waits so long for a whole count, whatever it costs. Works in the transaction of
    the connection, or in none. Raises StoreError.
    """
    parts = {
        "source": sql(f"tally_{place}"),
        "taken": sql(f"tally_{place}_taken"),
        "runs": sql(f"tally_{place}_runs"),
        "within": sql(f"tally_within_{place}"),
        "filter": condition,
    }
    both = Statement(f"{parts['within']} and {condition}")
    expected = planned(connection, parts["source"], both, values)
    is_cheap = expected["Plan Rows"] <= MOST_COUNTED and expected["Total Cost"] <= MOST_COST
    if is_cheap or exact_seconds is not None:
        found = _whole(connection, sql("tally").format(**parts), values, exact_seconds or MOST_SECONDS)
        if found is not None:
            return found
    counted, is_all = _walk(connection, sql("tally_step").format(**parts), values)
    if is_all:
        return Tally(counted.queues, counted.oldest, counted.running)
    number = int(expected["Plan Rows"])
    if not all(_has_statistics(term, place) for term in terms):
        rows = planned(connection, parts["source"], parts["within"], values)["Plan Rows"]
        number = round(counted.total * max(1.0, rows / max(1, counted.looked or 1)))
    about = max(_rounded(number), counted.total)
    return Tally(counted.queues, counted.oldest, counted.running, counted.looked, about)


def planned(connection: DeadlineConnection, source: Statement, condition: Statement, values: Any) -> Row:
    """What the planner expects of a selection: among others "Plan Rows" and "Total Cost"."""
    statement = sql("browse_plan").format(source=source, filter=condition)
    plan: Any = decoded(connection.execute(statement, values).fetchone()[0])  # type: ignore[index]
    expected: Row = plan[0]["Plan"]
    return expected


def _rounded(number: int) -> int:
    """To two digits: an estimate shall not look like a count."""
    return int(float(f"{number:.2g}"))


def _has_statistics(term: Term, place: str) -> bool:
    """Does the planner know anything of these values? What is in a JSON document, it guesses."""
    return term.field != "payload" and not (place == "live" and term.field in ("error", "code"))


def _whole(connection: DeadlineConnection, statement: Statement, values: Row, seconds: float) -> Tally | None:
    """All in one statement; None when the server has ended it after these seconds."""
    try:
        with translated(), connection.transaction():
            before: Any = connection.execute(sql("bound_statements"), (f"{seconds}s",)).fetchone()
            found = rows_of(connection, statement, values)
            connection.execute(sql("bound_statements"), (before[0],))
    except StoreUnavailable as error:
        if error.sqlstate != _ENDED:
            raise
        return None
    return _summed(found)


def _walk(connection: DeadlineConnection, statement: Statement, values: Row) -> tuple[Tally, bool]:
    """Steps from the oldest row on; whether they came to the end."""
    found: list[Row] = []
    looked, after, step, begun_at = 0, _LOWEST, FIRST_STEP, time.monotonic()
    while True:
        rows = rows_of(connection, statement, {**values, "after": after, "step": step})
        found += rows
        seen = sum(row["looked"] for row in rows)
        looked += seen
        if seen < step:
            return _summed(found), True
        after = max(row["last_id"] for row in rows)
        left = MOST_COUNTED - sum(row["count"] for row in found)
        seconds = time.monotonic() - begun_at
        fitting = int(looked * MOST_SECONDS / max(seconds, 1e-6)) - looked
        # one more than what is left may match: a step ends where more than MOST_COUNTED are known
        step = min(fitting, left + 1)
        if left < 0 or step < min(FIRST_STEP, left + 1):
            return _summed(found, looked), False


def _summed(found: Sequence[Row], looked: int | None = None) -> Tally:
    counts: dict[str, int] = {}
    for row in found:
        counts[row["queue"]] = counts.get(row["queue"], 0) + row["count"]
    queues = sorted(
        ((queue, count) for queue, count in counts.items() if count), key=lambda one: (-one[1], one[0])
    )
    oldest = min((row["oldest"] for row in found if row["oldest"] is not None), default=None)
    return Tally(tuple(queues), oldest, sum(row["running"] for row in found), looked)

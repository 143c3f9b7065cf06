"""Pages of messages, of dead letters by cause, and of the audit trail, for a reader who turns them
(browse.sql).

A page is found by id, older or newer than an id, so that turning neither skips nor repeats a message. A
filter that matches few messages would walk over all that are there: a walk ends after MOST_ROWS of them, or
MOST_SECONDS, and says how far it came. Nothing here writes or locks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.records import Row
from packhorse.worker.states import LIVE as LIVE_STATES
from packhorse.worker.states import State
from packhorse.worker.store import filters
from packhorse.worker.store.filters import Term
from packhorse.worker.store.rows import rows, rows_of, value
from packhorse.worker.store.tallies import planned

#: Messages that one walk looks at, whatever the filter; the first tenth alone at first, which often is
#: enough, then as many of the others as a walk of MOST_SECONDS may take at that speed. What vacuum has not
#: seen, or is not in memory, takes five times as long.
MOST_ROWS, MOST_SECONDS = 100_000, 0.1
#: Counted when the planner expects no more than this many, at no higher price (its own unit: a page read in
#: order is 1).
MOST_COUNTED = 50_000
MOST_COST = 20_000.0


#: Conversations that are looked at for those that wait longest; messages that are counted of all of them (a
#: hundred of each at least).
MOST_PROBES, MOST_WAITING_COUNTED = 2000, 10_000


#: So many dead letters are read whole to group them: in the order of the table, not of an index, that is the
#: cheapest way. Of more a filter looks at the newest ones.
MOST_LETTERS, NEWEST_LETTERS = 200_000, 50_000
#: Causes that are looked at then, letters that are counted of all of them, and letters in a sample.
MOST_CAUSES, MOST_LETTERS_COUNTED, SAMPLED_LETTERS = 1000, 5000, 50_000


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages, newest first. newer, older: is there more that way? searched_to: the walk ended at this
    message, which it looked at, though there are others beyond it; searched_at: when that was created."""

    rows: tuple[Row, ...]
    newer: bool
    older: bool
    searched_to: int | None = None
    searched_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """Dead letters by cause, most frequent first.

    rows: fingerprint, count, last_hour (estimated: both, from a sample), first and last, and of the newest
    letter id, queue, type, reason, error. is_all: no bound left out a letter that the filter may select, or a
    cause.
    """

    rows: tuple[Row, ...]
    is_all: bool


@dataclass(frozen=True, slots=True)
class Count:
    """How many messages a filter selects; estimated: by the planner, without looking at them."""

    number: int
    estimated: bool


def source(terms: Sequence[Term]) -> tuple[Statement, bool]:
    """The narrowest place that holds what the states among these terms name, and whether a walk over it is
    bounded by itself.
    """
    states = set(State)
    for term in terms:
        if term.field == "state":
            named = {State(text) for text in term.values}
            states &= named if term.operator == "=" else set(State) - named
    if states == {State.DEAD}:
        return sql("browse_dead"), False
    if states == {State.RUNNING}:
        return sql("browse_live").format(live=sql("browse_live_running")), True
    if states == {State.BLOCKED}:
        return sql("browse_live").format(live=sql("browse_live_blocked")), True
    if states <= LIVE_STATES:
        return sql("browse_live").format(live=sql("browse_live_any")), False
    return sql("browse_all"), any(term.field == "id" and term.operator == "=" for term in terms)


def messages(
    connection: DeadlineConnection,
    terms: tuple[Term, ...],
    before: int | None,
    after: int | None,
    limit: int,
    most_rows: int | None = None,
) -> Page:
    """One page of messages of any state that a filter selects (terms over filters.KNOWN), at most `limit`.

    before: those with smaller ids, newest first. after: those with larger ids (and `before` is not looked
    at). Neither: the newest. A filter looks at about most_rows messages, MOST_ROWS otherwise; then
    `searched_to` says where it ended, and a page from there goes on.
    """
    place, bounded = source(terms)
    given = {"before": before, "after": after, "limit": limit + 1, "now": value(connection, "database_time")}
    most = None if bounded or not terms else most_rows or MOST_ROWS
    found, edge, edge_at = _walk(connection, terms, place, given, most)
    more = len(found) > limit
    kept = tuple(found[:limit] if after is None else reversed(found[:limit]))
    stopped = None if more else edge
    if after is None:
        return Page(
            kept,
            before is not None,
            more or stopped is not None,
            stopped,
            edge_at if stopped is not None else None,
        )
    return Page(kept, more or stopped is not None, True, stopped, edge_at if stopped is not None else None)


def _walk(
    connection: DeadlineConnection,
    terms: tuple[Term, ...],
    place: Statement,
    given: Row,
    most_rows: int | None,
) -> tuple[list[Row], int | None, datetime | None]:
    """Up to given["limit"] rows in the order of the walk, and the id and time of where it ended before it was
    through. most_rows: None for a walk that is bounded by itself.
    """
    way, bound = ("older", "before") if given["after"] is None else ("newer", "after")
    found: list[Row] = []
    edge: int | None = None
    edge_at: datetime | None = None
    condition, values = filters.condition(terms, filters.KNOWN)
    step, begun_at = None if most_rows is None else most_rows // 10, time.monotonic()
    while True:
        at = {**given, bound: given[bound] if edge is None else edge}
        edge, edge_at = (None, None) if step is None else _edge(connection, place, way, at, step)
        found += rows_of(
            connection,
            sql(f"browse_{way}").format(source=place, filter=condition),
            {**at, **values, "edge": edge, "limit": given["limit"] - len(found)},
        )
        if most_rows is None or step is None or edge is None or len(found) >= given["limit"]:
            break
        step, most_rows = _second_step(step, time.monotonic() - begun_at, most_rows - step), None
        if not step:
            break
    return found, edge, edge_at


def _second_step(first: int, seconds: float, most: int) -> int:
    """How many messages the second step of a walk looks at, when the first took so long; 0 for fewer than the
    first.
    """
    fitting = int(min(most, first * MOST_SECONDS / max(seconds, 1e-6) - first))
    return fitting if fitting >= first else 0


def _edge(
    connection: DeadlineConnection, place: Statement, way: str, given: Row, step: int
) -> tuple[int | None, datetime | None]:
    """The last message of a step, which is looked at; None when the walk gets through with less."""
    row = connection.execute(
        sql(f"browse_edge_{way}").format(source=place), {**given, "rows": step}
    ).fetchone()
    return (None, None) if row is None else (row[0], row[1])


def count(connection: DeadlineConnection, terms: tuple[Term, ...]) -> Count:
    """How many messages a filter selects: exact when counting them is cheap, else what the planner
    expects.
    """
    place, _ = source(terms)
    condition, values = filters.condition(terms, filters.KNOWN)
    values = {**values, "now": value(connection, "database_time")}
    top = planned(connection, place, condition, values)
    if top["Plan Rows"] > MOST_COUNTED or top["Total Cost"] > MOST_COST:
        return Count(int(top["Plan Rows"]), True)
    number = connection.execute(sql("browse_count").format(source=place, filter=condition), values).fetchone()
    return Count(int(number[0]), False)  # type: ignore[index]


def waiting(connection: DeadlineConnection, limit: int, probes: int = MOST_PROBES) -> list[Row]:
    """Conversations that wait, longest first, and what holds each; of the first `probes` by key.

    waiting, is_more: so many messages, or more than that. first_id: of the first message that waits.
    looked_at: how many conversations were looked at.
    """
    return rows(
        connection, "browse_waiting", {"limit": limit, "probes": probes, "most": MOST_WAITING_COUNTED}
    )


def archived_of(
    connection: DeadlineConnection, key: str, before: int | None, limit: int, most_rows: int = MOST_ROWS
) -> Page:
    """Archived messages of a conversation among the newest most_rows archived ones, or among the next ones
    older than an id; newest first.

    The archive has no index for conversations: each message would pay for it when it is done.
    """
    given = {"key": key, "before": before, "limit": limit + 1}
    edge, edge_at = _edge(connection, sql("browse_archive"), "older", given, most_rows)
    found = rows(connection, "browse_archived_of", {**given, "edge": edge})
    if len(found) > limit:
        return Page(tuple(found[:limit]), before is not None, True)
    return Page(tuple(found), before is not None, edge is not None, edge, edge_at)


def values_of(connection: DeadlineConnection, field: str, start: str) -> list[str]:
    """Values of `queue`, `type`, `error` or `code` that begin so, at most 20; none for other fields."""
    return [str(row["value"]) for row in rows(connection, "browse_values", {"field": field, "start": start})]


def groups(connection: DeadlineConnection, terms: tuple[Term, ...], limit: int) -> Groups:
    """Dead letters by cause (terms over filters.DEAD)."""
    expected = planned(connection, sql("browse_dead"), sql("filter_everything"), None)["Plan Rows"]
    is_small = expected <= MOST_LETTERS
    if not terms and is_small:
        return Groups(tuple(rows(connection, "browse_groups", {"limit": limit})), True)
    if not terms:
        connection.execute(sql("browse_by_index"), prepare=False)
        bounds = {
            "most": MOST_LETTERS_COUNTED,
            "causes": MOST_CAUSES,
            "scale": max(1.0, expected / SAMPLED_LETTERS),
        }
        found = rows(connection, "browse_groups_bounded", {**bounds, "limit": limit})
        return Groups(tuple(found), all(row["is_all"] for row in found))
    edge = None if is_small else value(connection, "browse_letters_edge", {"newest": NEWEST_LETTERS})
    statement, values = filters.filled("browse_groups_filtered", terms, filters.DEAD)
    given = {**values, "limit": limit, "edge": edge, "now": value(connection, "database_time")}
    return Groups(tuple(rows_of(connection, statement, given)), edge is None)


def group(connection: DeadlineConnection, fingerprint: str) -> Row | None:
    """One cause, with the traceback of its newest letter; None when no letter has it. is_more: it has more
    letters than were counted.
    """
    connection.execute(sql("browse_by_index"), prepare=False)
    found = rows(connection, "browse_group", {"fingerprint": fingerprint, "most": NEWEST_LETTERS})
    return found[0] if found else None


def group_letters(
    connection: DeadlineConnection, fingerprint: str, before: int | None, after: int | None, limit: int
) -> Page:
    """One page of the letters of a cause, newest message first."""
    given = {"fingerprint": fingerprint, "before": before, "after": after, "limit": limit + 1}
    return _turned(
        rows(connection, "browse_group_letters" if after is None else "browse_group_letters_newer", given),
        before,
        after,
        limit,
    )


def actions_of(connection: DeadlineConnection, message_id: int) -> list[Row]:
    """What operators did with a message, newest first, at most 50."""
    return rows(connection, "browse_actions_of", (message_id,))


def conversation_of(connection: DeadlineConnection, message_id: int) -> str | None:
    """The key of the conversation of a message, wherever it is; None when there is no such message, or it is
    of none.
    """
    found = value(connection, "browse_conversation_of", {"id": message_id})
    return None if found is None else str(found)


def trace_context(connection: DeadlineConnection, message_id: int) -> str | None:
    """`traceparent`, or `traceparent tracestate`, of a message; None when it has none."""
    found = value(connection, "browse_trace", {"id": message_id})
    return None if found is None else str(found)


def actions(
    connection: DeadlineConnection,
    action: str | None,
    operator: str | None,
    message_id: int | None,
    before: int | None,
    after: int | None,
    limit: int,
) -> Page:
    """One page of what operators did, newest first."""
    given = {
        "action": action,
        "operator": operator,
        "message_id": message_id,
        "before": before,
        "after": after,
        "limit": limit + 1,
    }
    return _turned(
        rows(connection, "browse_actions" if after is None else "browse_actions_newer", given),
        before,
        after,
        limit,
    )


def _turned(found: list[Row], before: int | None, after: int | None, limit: int) -> Page:
    more = len(found) > limit
    if after is None:
        return Page(tuple(found[:limit]), before is not None, more)
    return Page(tuple(reversed(found[:limit])), more, True)

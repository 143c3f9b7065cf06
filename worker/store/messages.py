"""Every verb on messages: one function = one statement = one SQL function (migrations/functions).

Each takes a connection first, so that it runs in whatever transaction that connection is in. Errors
come out as psycopg errors inside a lent connection (pool.py and Link translate them).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from operator import itemgetter
from typing import Any
from uuid import UUID

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.records import EnqueueResult, Gate, Hints
from packhorse.worker.store.options import BULK_KEYS, OPTIONS
from packhorse.worker.store.wakes import Wake, note

_OPTIONS = ", ".join(f"{option.argument} => {option.expression.format('%s')}" for option in OPTIONS)
_ENQUEUE = sql("enqueue").format(options=_OPTIONS)
_ENQUEUE_TELLING = sql("enqueue_telling").format(options=_OPTIONS)
_ENQUEUE_PLAIN = sql("enqueue_plain")
_ENQUEUE_PLAIN_TELLING = sql("enqueue_plain_telling")
_COMPLETE_AND_CLAIM = sql("complete_and_claim")

ClaimRow = tuple[Any, ...]
NO_HINTS = Hints()
_TURN = itemgetter(7, 14, 1)  # priority, run_at (texts that sort as times: times_in_utc), id


def enqueue_plain(
    connection: DeadlineConnection,
    queue: str,
    message_type: str,
    payload: str,
    options: str,
    priority: int,
    *,
    wakes: set[Wake] | None = None,
) -> int:
    """Enqueue with nothing but the basics (payload and options as JSON text); returns the id. wakes: as for
    enqueue().
    """
    given = (queue, message_type, payload, options, priority)
    if wakes is None:
        row = connection.execute(_ENQUEUE_PLAIN, given).fetchone()
    else:
        row = connection.execute(_ENQUEUE_PLAIN_TELLING, (*given, queue)).fetchone()
        note(wakes, row[1], queue)  # type: ignore[index]
    return int(row[0])  # type: ignore[index]


def enqueue(
    connection: DeadlineConnection,
    queue: str,
    message_type: str,
    payload: str,
    options: str,
    *,
    wakes: set[Wake] | None = None,
    **given: Any,
) -> EnqueueResult:
    """Enqueue one message in the connection's transaction.

    payload, options: JSON object texts. given: values by the keys of the table of options (options.py).
    wakes: takes what is to be published by Redis after the commit; None: nothing is asked. Returns the id,
    and whether it is that of an older message. Raises InvalidArgument, UnknownQueue. Source:
    migrations/functions/enqueue.sql
    """
    values = [given.get(option.key, option.default) for option in OPTIONS]
    arguments = (queue, message_type, payload, options, *values)
    if wakes is None:
        row = connection.execute(_ENQUEUE, arguments).fetchone()
    else:
        row = connection.execute(_ENQUEUE_TELLING, (queue, *arguments)).fetchone()
        note(wakes, row[3], queue)  # type: ignore[index]
    return EnqueueResult(int(row[0]), bool(row[1]), bool(row[2]))  # type: ignore[index]


BULK_ROWS = 1000
#: Columns of a row: queue, type, payload, options, priority, and those of options.
WIDTH = 5 + len(BULK_KEYS)
SEPARATOR, NULL = "\x1e", "\x1f"  # cannot occur in JSON text; other columns are checked


@cache
def _in_columns(name: str, width: int) -> Statement:
    return sql(name).format(columns=", ".join(["%s"] * width))


def insert_messages(connection: DeadlineConnection, rows: Sequence[Sequence[str]], with_state: bool) -> None:
    """Bulk enqueue; rows of texts in the column order of the statement `insert_messages` (NULL for null),
    `state` last.

    In statements of BULK_ROWS rows; ids in order. Without with_state the state is left out: all are pending.
    """
    width = WIDTH + with_state
    statement = _in_columns("insert_messages_with_state" if with_state else "insert_messages", width)
    for start in range(0, len(rows), BULK_ROWS):
        columns = list(zip(*rows[start : start + BULK_ROWS], strict=True))[:width]
        payloads, options = columns[2:4]
        alike = [
            None if column[0] == NULL else column[0]
            for column in (*columns[:2], *columns[4:WIDTH])
            if len(set(column)) == 1
        ]
        if len(alike) == WIDTH - 2 and not with_state:
            connection.execute(
                _in_columns("insert_alike", WIDTH),
                [*alike, SEPARATOR.join(payloads), SEPARATOR.join(options)],
            )
        else:
            connection.execute(statement, [SEPARATOR.join(column) for column in columns])


def database_now(connection: DeadlineConnection) -> datetime:
    """In UTC: on the wall clock of a session's zone a day is 23 hours long once a year."""
    now: datetime = connection.execute(sql("database_now")).fetchone()[0]  # type: ignore[index]
    return now.astimezone(UTC)


def can_write(connection: DeadlineConnection) -> bool:
    """Is this a server that takes writes?"""
    return connection.execute(sql("can_write")).fetchone()[0] is True  # type: ignore[index]


def declare_queue(connection: DeadlineConnection, queue: str) -> bool:
    """Make a queue known; True when it is new. Raises InvalidArgument for a bad name."""
    return bool(connection.execute(sql("declare_queue"), (queue,)).fetchone()[0])  # type: ignore[index]


def complete_and_claim(
    connection: DeadlineConnection,
    ids: list[int],
    tokens: list[int],
    holder: UUID,
    queues: list[str],
    limit: int,
    lease: str,
    types: list[str] | None,
    since: list[str | None] | None = None,
    until: list[str | None] | None = None,
    isolated: bool = False,
    first: list[int] | None = None,
    forward: str | None = None,
) -> tuple[list[ClaimRow], Hints]:
    """Complete these, claim those: one round trip, one commit. Rows of messages as in the statement
    `complete_and_claim`, by (priority, run_at, id), and the hints.

    limit: 0..10000. lease: interval text. since, until: ten timestamp texts per queue, one per priority; None
    looks from the start, or without an end. isolated: those that were there when two processes died, and no
    others. first: messages whose conversation went on, to be looked at wherever they are. forward: of queues
    that are forwarded to there; None: of those that are not forwarded. Source: migrations/functions/claim.sql
    """
    rows = connection.execute(
        _COMPLETE_AND_CLAIM,
        (
            _array(ids),
            _array(tokens),
            holder,
            queues,
            limit,
            lease,
            types,
            since,
            isolated,
            _array(first or []),
            until,
            forward,
        ),
    ).fetchall()
    said = json.loads(rows.pop()[0]) if rows and rows[-1][0] is not None else None
    rows.sort(key=_TURN)
    if said is None:
        return rows, NO_HINTS
    return rows, Hints(
        frozenset(said.get("lost", ())),
        tuple(said.get("promoted", ())),
        said.get("next_in"),
        said.get("isolated", False),
        tuple(said.get("forwarded", ())),
        {int(message_id): at for message_id, at in said.get("expires", {}).items()},
    )


def next_of_conversations(connection: DeadlineConnection, keys: list[str]) -> list[int]:
    """The first pending message of each of these conversations, at most 1000: what complete_and_claim takes
    as `first`.
    """
    return list(connection.execute(sql("next_of_conversations"), (keys,)).fetchone()[0])  # type: ignore[index]


def is_superseded(connection: DeadlineConnection, message_id: int) -> bool:
    """Is there a later live message of its conversation or, without one, of its pending key?"""
    return bool(connection.execute(sql("is_superseded"), (message_id,)).fetchone()[0])  # type: ignore[index]


def _array(numbers: list[int]) -> str:
    """An array literal: a tenth of the time of the driver's list adapter."""
    return "{" + ",".join(map(str, numbers)) + "}"


def complete(connection: DeadlineConnection, ids: list[int], tokens: list[int]) -> list[int]:
    """Complete messages; returns the ids that still were ours."""
    return list(connection.execute(sql("complete"), (ids, tokens)).fetchone()[0])  # type: ignore[index]


def complete_in_transaction(connection: DeadlineConnection, message_id: int, token: int) -> bool:
    """Complete the message of a transactional handler, whatever the handler did to role and search_path;
    False when the lease was lost.
    """
    if connection.touched:
        return connection.ask_as_ourselves(sql("complete_as_text").format(int(message_id), int(token))) == "t"
    return bool(complete(connection, [message_id], [token]))


def fail(
    connection: DeadlineConnection,
    message_id: int,
    token: int,
    error_class: str,
    error_message: str,
    traceback: str | None,
    frame: str | None,
    max_attempts: int | None,
    delay_seconds: float | None,
    backoff_initial: float | None,
    backoff_max: float | None,
    details: str | None = None,
    options: str | None = None,
) -> str:
    """An attempt failed; "retry", "dead", "cancelled" or "lost"; "parked" (by this failure) or "snooze" when
    a failure breaker lets it rest.

    details: JSON object text, see failure_details in migrations/functions/history.sql. options: JSON object
    text of the options for the next attempt; None leaves them.
    """
    values = (
        message_id,
        token,
        error_class,
        error_message,
        traceback,
        frame,
        max_attempts,
        delay_seconds,
        backoff_initial,
        backoff_max,
        details,
    )
    row = connection.execute(sql("fail"), (*values, options)).fetchone()
    return str(row[0])  # type: ignore[index]


def reject(
    connection: DeadlineConnection,
    message_id: int,
    token: int,
    reason: str,
    error_class: str,
    error_message: str | None,
    traceback: str | None,
    frame: str | None,
    details: str | None,
) -> str:
    """An attempt failed and no other one can help: "dead" or "lost"; "parked" or "snooze" as in fail()."""
    row = connection.execute(
        sql("reject"), (message_id, token, reason, error_class, error_message, traceback, frame, details)
    ).fetchone()
    return str(row[0])  # type: ignore[index]


def retry(
    connection: DeadlineConnection,
    message_id: int,
    token: int,
    delay_seconds: float,
    error_class: str,
    error_message: str,
    traceback: str | None = None,
    details: str | None = None,
    options: str | None = None,
) -> bool:
    """running -> pending in delay_seconds whatever attempts are left; False when the lease was lost. details,
    options: as in fail().
    """
    values = message_id, token, delay_seconds, error_class, error_message, details, traceback, options
    row = connection.execute(sql("retry"), values).fetchone()
    return bool(row[0])  # type: ignore[index]


def snooze(
    connection: DeadlineConnection, message_id: int, token: int, delay_seconds: float, reason: str | None
) -> bool:
    return bool(connection.execute(sql("snooze"), (message_id, token, delay_seconds, reason)).fetchone()[0])  # type: ignore[index]


def park(
    connection: DeadlineConnection,
    message_id: int,
    token: int,
    delay_seconds: float,
    scope: str | None,
    reason: str | None,
) -> str:
    """What the message calls asked for a pause; "parked" (this call parked its scope), "snooze", "cancelled"
    or "lost".
    """
    row: Any = connection.execute(sql("park"), (message_id, token, delay_seconds, scope, reason)).fetchone()
    return str(row[0])


def release(
    connection: DeadlineConnection, ids: list[int], tokens: list[int], reason: str | None = None
) -> int:
    """Hand messages back, attempts given back; how many were still ours. reason: why started handlers were
    interrupted, for the history.
    """
    return int(connection.execute(sql("release"), (ids, tokens, reason)).fetchone()[0])  # type: ignore[index]


#: So many times in a row a handler's transaction may be cut off before that counts as a failed attempt.
MAX_UNCOMMITTED = 5


def return_uncommitted(
    connection: DeadlineConnection,
    message_id: int,
    token: int,
    delay_seconds: float,
    reason: str,
    *,
    bounded: bool,
) -> str:
    """A handler's transaction was not committed: "snooze", or when it is bounded and too often in a row what
    fail() returns.
    """
    row = connection.execute(
        sql("uncommitted"), (message_id, token, delay_seconds, reason, MAX_UNCOMMITTED if bounded else None)
    ).fetchone()
    return str(row[0])  # type: ignore[index]


def fail_overdue(connection: DeadlineConnection, message_id: int, token: int) -> str:
    """The attempt of a handler that ignored its hard time limit, in a process that is gone, has failed; what
    fail() returns.
    """
    text = "the handler ignored its time limit; its process was replaced"
    return str(connection.execute(sql("fail_overdue"), (message_id, token, text)).fetchone()[0])  # type: ignore[index]


def mark_completion_refused(
    connection: DeadlineConnection, ids: list[int], tokens: list[int], detail: str
) -> int:
    """These handlers are done and the database refuses to write it: they must not run again; how many were
    still ours.
    """
    return int(connection.execute(sql("mark_completion_refused"), (ids, tokens, detail)).fetchone()[0])  # type: ignore[index]


def complete_refused(connection: DeadlineConnection) -> int:
    """Try marked completions again; how many worked."""
    return int(connection.execute(sql("complete_refused")).fetchone()[0])  # type: ignore[index]


def release_unknown(connection: DeadlineConnection, holder: UUID, known: list[int]) -> int:
    """Hand back what `holder` leased by claims whose answers were lost; how many. Source:
    migrations/functions/release.sql
    """
    return int(connection.execute(sql("release_unknown"), (holder, _array(known))).fetchone()[0])  # type: ignore[index]


def bury(
    connection: DeadlineConnection,
    message_id: int,
    token: int | None,
    reason: str,
    error_class: str | None,
    error_message: str | None,
    traceback: str | None = None,
    frame: str | None = None,
    details: str | None = None,
) -> bool:
    """Give a message up; False when it was not there or the lease was lost. details: as in fail()."""
    row = connection.execute(
        sql("bury"), (message_id, token, reason, error_class, error_message, traceback, frame, details)
    ).fetchone()
    return bool(row[0])  # type: ignore[index]


def cancel(connection: DeadlineConnection, message_id: int, reason: str | None, operator: str) -> str:
    """Cancel by an operator: "cancelled", "requested" (it runs) or "gone"."""
    return str(connection.execute(sql("cancel"), (message_id, reason, operator)).fetchone()[0])  # type: ignore[index]


def cancel_held(connection: DeadlineConnection, message_id: int, token: int, reason: str | None) -> bool:
    row = connection.execute(sql("cancel_held"), (message_id, reason, token)).fetchone()
    return row[0] == "cancelled"  # type: ignore[index,no-any-return]


def explain(connection: DeadlineConnection, message_id: int) -> list[Gate]:
    """The gates between a message and its start, in the order of the claim."""
    return [Gate(*row) for row in connection.execute(sql("explain"), (message_id,)).fetchall()]

"""What an operator does with messages that do not run: count a filter, act on what it selects, edit one,
clone one (SPEC Q5).

A filter is counted first. What is counted is fixed at that instant: an act by filter touches no message that
came later. It takes down the ids of all that match, then works oldest first, in batches with a transaction
each: what comes to match while it works, a message that the last batch has unblocked, is not touched. The
verbs themselves are SQL (migrations/functions/edit.sql), which records each message.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, NotFound, StoreConflict
from packhorse.worker.ops.amounts import Amount
from packhorse.worker.ops.where import Where
from packhorse.worker.records import Row
from packhorse.worker.store import acts

MAX_BATCH = 500
#: Ids are taken down so many at a time.
IDS_AT_ONCE = 10_000
#: At a terminal a person waits so long for a whole count.
COUNT_SECONDS = 30.0
#: verb -> the words that say that it did something.
DONE = {
    "cancel": ("cancelled", "requested"),
    "retry": ("due", "blocked", "redriven"),
    "reschedule": ("rescheduled",),
    "move": ("moved",),
    "priority": ("changed",),
    "bury": ("buried",),
}
#: Of these a message that runs is one, too.
_OF_RUNNING = ("cancel",)
_LOWEST = -(2**63)


@dataclass(frozen=True, slots=True)
class Act:
    """One verb (a key of DONE) with its parameters: `queue`, `priority`, or `run_at` and `delay` (seconds;
    one of them None).
    """

    verb: str
    operator: str
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.parameters, "operator": self.operator, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Counted:
    """What a filter selected at the instant `at`: how many by queue (most first), how many of them run, since
    when the oldest is there; as far as that was counted.

    last: the newest message that can be part of it.
    """

    where: Where
    at: datetime
    last: int
    queues: tuple[tuple[str, int], ...]
    oldest: datetime | None
    running: int
    amount: Amount

    @property
    def total(self) -> int:
        """How many, as far as they were counted."""
        return self.amount.counted


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What was done. matched: so many matched when it began. answers: how many by the verb's word. left: had
    changed meanwhile, or somebody else had them locked. ended: "finished", "interrupted", or "more": more
    matched than were agreed to, and nothing was done."""

    matched: int
    answers: dict[str, int]
    left: int
    ended: str

    def done(self, verb: str) -> int:
        """How many the verb did something with."""
        return sum(self.answers.get(word, 0) for word in DONE[verb])


def count(
    connection: DeadlineConnection,
    where: Where,
    verb: str,
    bounds: tuple[datetime, int] | None = None,
    exact_seconds: float | None = None,
) -> Counted:
    """What the verb would touch: live messages of the filter, without those that run where the verb is not
    for these. Beyond bounds of number and time it is an estimate (store/tallies.py).

    bounds: `at` and `last` of an earlier count: what of that is still there. exact_seconds: a person waits so
    long for a whole count. Raises StoreError.
    """
    at, last = bounds or acts.moment(connection)
    found = acts.count(
        connection, where.terms, at, last, running=verb in _OF_RUNNING, exact_seconds=exact_seconds
    )
    return Counted(where, at, last, found.queues, found.oldest, found.running, Amount.of(found))


def sentence(counted: Counted) -> str:
    """`1,204 messages: 1,000 whatsapp, 204 default; oldest 3 h`. Where not all were counted, their queues are
    not known.
    """
    if not counted.amount.is_all:
        return counted.amount.said("message") + _oldest(counted)
    if not counted.total:
        return "no message matches" + (f" but {counted.running:,} that run" if counted.running else "")
    queues = ", ".join(f"{count:,} {queue}" for queue, count in counted.queues)
    return f"{counted.amount.said('message')}: {queues}{_oldest(counted)}"


def _oldest(counted: Counted) -> str:
    if counted.oldest is None:
        return ""
    return f"; oldest {_span((counted.at - counted.oldest).total_seconds())}"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def apply(
    connection: DeadlineConnection,
    counted: Counted,
    act: Act,
    *,
    most: int | None = None,
    begins: Callable[[int], Any] = lambda count: None,
    report: Callable[[int], Any] = lambda count: None,
    stop: threading.Event | None = None,
    batch: int = MAX_BATCH,
) -> FilterResult:
    """Do it with what was counted, oldest first. most: with no message at all when more than so many match.
    begins: called with how many match, all of them counted. report: called with the size of each batch when
    it is done. stop ends it between two.

    Raises StoreError; batches before that are done, and were reported.
    """
    answers: Counter[str] = Counter()
    left = 0
    stop = stop or threading.Event()
    ids = _matching(connection, counted, act, most, stop)
    if most is not None and len(ids) > most:
        return FilterResult(len(ids), {}, 0, "more")
    begins(len(ids))
    for at in range(0, len(ids), batch):
        if stop.is_set():
            return FilterResult(len(ids), dict(answers), left, "interrupted")
        some = ids[at : at + batch].tolist()
        told = _batch(connection, counted, act, some)
        answers.update(told.values())
        left += len(some) - len(told)
        report(len(some))
    ended = "interrupted" if stop.is_set() and not ids else "finished"
    return FilterResult(len(ids), dict(answers), left, ended)


def _matching(
    connection: DeadlineConnection, counted: Counted, act: Act, most: int | None, stop: threading.Event
) -> array[int]:
    """The ids of all that match, ascending, eight bytes for each; no more than one over `most`, and none when
    stop is set meanwhile.
    """
    running = act.verb in _OF_RUNNING
    found = array("q")
    after = _LOWEST
    while not stop.is_set():
        size = IDS_AT_ONCE if most is None else min(IDS_AT_ONCE, most + 1 - len(found))
        ids = acts.page(
            connection, counted.where.terms, counted.at, after, counted.last, size, running=running
        )
        found.extend(ids)
        if len(ids) < size or (most is not None and len(found) > most):
            return found
        after = ids[-1]
    return array("q")


def _batch(connection: DeadlineConnection, counted: Counted, act: Act, ids: list[int]) -> dict[int, str]:
    """One transaction for all; each alone when somebody has locked what one of them needs (the next message
    of its conversation).
    """
    try:
        return _together(connection, counted, act, ids)
    except StoreConflict:
        answers: dict[int, str] = {}
    for one in ids:
        try:
            answers |= _together(connection, counted, act, [one])
        except StoreConflict:
            continue
    return answers


def _together(connection: DeadlineConnection, counted: Counted, act: Act, ids: list[int]) -> dict[int, str]:
    running = act.verb in _OF_RUNNING
    with translated(), connection.transaction():
        locked = acts.lock(connection, counted.where.terms, counted.at, ids, running=running)
        return acts.act(connection, act.verb, locked, act.arguments) if locked else {}


def act_on(connection: DeadlineConnection, act: Act, message_id: int) -> str:
    """Do it with one message; the verb's word, or the state that forbids it. Raises NotFound, StoreConflict,
    InvalidArgument.
    """
    with translated():
        answer = acts.act(connection, act.verb, [message_id], act.arguments)[message_id]
    if answer == "gone":
        raise NotFound("message", message_id)
    return answer


def clone(
    connection: DeadlineConnection, message_id: int, delay_seconds: float, operator: str, reason: str | None
) -> tuple[str, int | None]:
    """A new message like this one: "cloned" and its id; "running" and None. Raises NotFound, InvalidArgument,
    UnknownQueue.
    """
    answer, clone_id = acts.clone(connection, message_id, delay_seconds, operator, reason)
    if answer == "gone":
        raise NotFound("message", message_id)
    return answer, clone_id


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be another one of a message; None: left as it is.

    payload: a JSON object as text, `before` as it was read; fresh: without its steps. expires_at: a time, or
    NEVER.
    """

    payload: str | None = None
    before: str | None = None
    fresh: bool = False
    max_attempts: int | None = None
    expires_at: datetime | str | None = None

    @property
    def limits(self) -> bool:
        return self.max_attempts is not None or self.expires_at is not None


#: As an expiry: none.
NEVER = "infinity"


def edit(
    connection: DeadlineConnection, message_id: int, wanted: Edit, operator: str, reason: str | None
) -> str:
    """Change one message that waits, all of it or nothing: "edited", else the state that forbids it.

    Raises InvalidArgument, and StoreRejected with the SQLSTATE PH005 when somebody else has changed the
    payload since.
    """
    with translated(), connection.transaction():
        if wanted.limits:
            answer = acts.set_limits(
                connection, message_id, wanted.max_attempts, wanted.expires_at, operator, reason
            )
            if answer not in ("changed", "unchanged"):
                return answer
        if wanted.payload is None:
            return "edited"
        return acts.edit(
            connection,
            message_id,
            wanted.payload,
            wanted.before or "{}",
            operator,
            reason,
            fresh=wanted.fresh,
        )


def with_settings(payload: dict[str, Any], settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of the payload with values at dotted paths: `customer.id`; objects on the way are made. Raises
    InvalidArgument.

    A place in a list is its number.
    """
    result: Any = _copied(payload)
    for path, new in settings:
        names = path.split(".")
        if not all(names):
            raise InvalidArgument(
                f"set: {path[:60]!r} is not a path", field="set", hint="Write customer.id=42"
            )
        target = result
        for name, following in zip(names, [*names[1:], None], strict=True):
            key = _key(target, name, path)
            if following is None:
                target[key] = new
            elif isinstance(target, dict) and key not in target:
                target[key] = {}
            if following is not None:
                target = target[key]
    return dict(result)


def _key(target: Any, name: str, path: str) -> str | int:
    if isinstance(target, dict):
        return name
    if isinstance(target, list) and name.isdecimal() and int(name[:9]) < len(target):
        return int(name)
    raise InvalidArgument(
        f"set: there is no {name[:60]!r} of {path[:60]!r} in the payload",
        field="set",
        hint="Only the keys of objects are made",
    )


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def list_messages(connection: DeadlineConnection, where: Where, **filters: Any) -> list[Row]:
    """Messages, newest first: live, archived and dead. filters: queue, state, message_type, conversation_key,
    since, until (creation), after (an id: the page behind it), limit; None is no filter."""
    names = ("queue", "state", "message_type", "conversation_key", "since", "until", "after")
    at, _ = acts.moment(connection)
    return acts.list_messages(
        connection, where.terms, {**dict.fromkeys(names), "limit": 50, **filters, "now": at}
    )

"""What an application sends, as a list, without a database (SPEC W12)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dramatiq

from packhorse.worker.enqueue import capture
from packhorse.worker.enqueue.encoding import Encoded
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import EnqueueResult
from packhorse.worker.store.options import OPTIONS

#: Messages that a failed assertion shows.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message as its row would have been. payload: the handler's keyword arguments, after JSON. delay,
    expires_in, dedup_window, debounce, max_wait: seconds, None when nothing was said. options: what dramatiq
    keeps with a message, without its own id."""

    id: int
    queue: str
    message_type: str
    payload: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    priority: int = 5
    delay: float | None = None
    run_at: datetime | None = None
    conversation_key: str | None = None
    concurrency_key: str | None = None
    fairness_key: str | None = None
    dedup_key: str | None = None
    dedup_window: float | None = None
    pending_key: str | None = None
    when_pending: str | None = None
    debounce: float | None = None
    max_wait: float | None = None
    correlation_id: str | None = None
    trace_context: str | None = None
    max_attempts: int | None = None
    expires_in: float | None = None


_FIELDS = {option.key: option.name for option in OPTIONS}


class SentMessages(list[SentMessage]):
    """What was sent, in order. Each question that finds something else than it asks for raises AssertionError
    with what was sent.
    """

    def of(self, message_type: str | dramatiq.Actor[Any, Any]) -> list[SentMessage]:
        """Those of an actor, or of a message type by its name; in order, perhaps none."""
        name = _name(message_type)
        return [message for message in self if message.message_type == name]

    def one(self, message_type: str | dramatiq.Actor[Any, Any] | None = None) -> SentMessage:
        """The only one that was sent; of an actor: the only one of it. Raises AssertionError."""
        found = list(self) if message_type is None else self.of(message_type)
        if len(found) != 1:
            wanted = "" if message_type is None else f" of {_name(message_type)!r}"
            raise AssertionError(f"expected one message{wanted}, found {len(found)}; {self._told()}")
        return found[0]

    def none(self, message_type: str | dramatiq.Actor[Any, Any] | None = None) -> None:
        """Nothing was sent; of an actor: nothing of it. Raises AssertionError when something was."""
        found = list(self) if message_type is None else self.of(message_type)
        if found:
            wanted = "" if message_type is None else f" of {_name(message_type)!r}"
            raise AssertionError(f"expected no message{wanted}, found {len(found)}; {self._told()}")

    def _told(self) -> str:
        if not self:
            return "nothing was sent"
        lines = [
            f"  {message.id}: {message.message_type} {json.dumps(message.payload)} on {message.queue}"
            for message in self[:SHOWN]
        ]
        more = [f"  and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return "\n".join(["sent:", *lines, *more])


def _name(message_type: str | dramatiq.Actor[Any, Any]) -> str:
    name = message_type if isinstance(message_type, str) else getattr(message_type, "actor_name", None)
    if not isinstance(name, str):
        raise InvalidArgument(
            f"message_type: {message_type!r} is neither an actor nor the name of one", field="message_type"
        )
    return name


class _Taker:
    """Ids are made up: 1, 2, 3 … A dedup or pending key holds nothing back."""

    def __init__(self) -> None:
        self.sent = SentMessages()
        self._lock = threading.Lock()

    def take(self, messages: list[Encoded]) -> list[EnqueueResult]:
        with self._lock:
            taken = [_sent(len(self.sent) + number, encoded) for number, encoded in enumerate(messages, 1)]
            self.sent.extend(taken)
        return [EnqueueResult(message.id) for message in taken]


def _sent(number: int, encoded: Encoded) -> SentMessage:
    options = json.loads(encoded.options)
    options.pop("message_id", None)
    options.pop("message_timestamp", None)
    columns = {_FIELDS.get(key, key): value for key, value in encoded.extra.items()}
    return SentMessage(
        number,
        encoded.queue,
        encoded.message_type,
        json.loads(encoded.payload),
        options,
        encoded.priority,
        **columns,
    )


@contextmanager
def captured() -> Iterator[SentMessages]:
    """Until its end, what this process sends goes into the list that it yields, and no database is asked.

    `send` in all its forms, `enqueue` and its relatives, pipelines and groups; from any thread. Arguments and
    options are checked and encoded as ever, and what is refused raises InvalidArgument. What only the
    database knows is left out: dedup windows, pending keys, names of queues that no actor declares. A
    connection that enqueue() is given is not looked at. Inside another one: this one takes.
    """
    taker = _Taker()
    before, capture.active = capture.active, taker
    try:
        yield taker.sent
    finally:
        capture.active = before

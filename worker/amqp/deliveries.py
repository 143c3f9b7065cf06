"""What this process holds of RabbitMQ: deliveries, and the lines in which those of one conversation stand.

A delivery is one message as it came once. Its attempts are RelayedMessages: a retry in place is another one
of the same delivery.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from pika import BasicProperties

from packhorse.worker.amqp.envelope import RelayedMessage
from packhorse.worker.amqp.outcomes import MOST_ENTRIES, read_history
from packhorse.worker.attempt.stored_steps import AttemptSteps
from packhorse.worker.errors import StepError
from packhorse.worker.store.forwarded import ForwardedNote

#: Seconds that are left of a wait which takes several steps (topology.DELAYS).
WAIT = "packhorse-wait"
#: Attempts that have failed, as JSON.
HISTORY = "packhorse-history"
ATTEMPT = "packhorse-attempt"
#: Processes that died with it since it was relayed, as far as Postgres had noted then; those before are in
#: packhorse-crashes.
CRASHED = "packhorse-crashed"
#: How often the broker has delivered this very message in vain.
DELIVERED = "x-delivery-count"
#: What dramatiq's Retries writes into options; here attempt and history say it.
_OF_THE_ATTEMPT = ("retries", "traceback", "requeue_timestamp")


class HandledMessage(RelayedMessage):
    """One attempt from RabbitMQ. What asks for its row in message_queue, which is gone, is refused before
    anything is done for it.
    """

    def steps_of_attempt(self) -> AttemptSteps:
        raise self._needs_its_row("a step is stored with its message")

    def superseded(self) -> bool:
        raise self._needs_its_row("superseded() looks at the messages behind this one")

    def _needs_its_row(self, what: str) -> StepError:
        error = StepError(
            f"{what}, in Postgres, and this one is handled from RabbitMQ: packhorse queue set {self.queue_name} forward=none"
        )
        error.retryable = False  # a dead letter at once (details.FLAGS)
        return error


class Delivery:
    """tag: of the consuming channel of connection number `connection`. line: it starts when all before it
    in its line have ended: those of its conversation in a partition, else copies of the same message.
    queue: that of Packhorse. is_first: of its line. awaits_note: Postgres is being asked of it. settling:
    what becomes of it is being written. gave_up: the broker has given it up. was_asked: Postgres may
    have been asked too early. Used by the consumer's thread.
    """

    is_first = awaits_note = settling = gave_up = was_asked = False

    def __init__(
        self, tag: int, connection: int, queue: str, keyed: bool, body: bytes, properties: BasicProperties
    ) -> None:
        self.tag = tag
        self.connection = connection
        self.queue = queue
        self.keyed = keyed
        self.body = body
        self.properties = properties
        self.headers: dict[str, Any] = properties.headers or {}
        key = self.headers.get("packhorse-conversation-key") if keyed else None
        self.line: Hashable = (queue, key) if key is not None else properties.message_id
        self.message: RelayedMessage | None = None
        self.note: ForwardedNote | None = None

    @property
    def id(self) -> int | None:
        """Of the message; None when it is none of ours."""
        try:
            return int(self.properties.message_id)
        except (TypeError, ValueError):
            return None

    @property
    def message_type(self) -> str:
        """Empty when it is none of ours."""
        return str(self.properties.type or "")

    def attempt(self, now: float) -> RelayedMessage:
        """The next attempt of it. Raises UndecodableMessage."""
        message = HandledMessage(self.body, self.properties, now)
        message.attempt = max(message.attempt, self._noted_attempt)
        message.crashes += self._crashed
        self.message = message
        return message

    def is_early(self, note: ForwardedNote) -> bool:
        """Has RabbitMQ delivered it more often than Postgres knows why? Then that may come in a moment. True
        once at most.
        """
        if self.was_asked or self.gave_up or note.is_over or note.wait_seconds > 0:
            return False
        self.was_asked = True
        return max(self._number(DELIVERED), 1) > note.crashes - self._number(CRASHED)

    @property
    def _noted_attempt(self) -> int:
        """The first that Postgres does not know to be spent."""
        return self.note.attempt + 1 if self.note is not None else 0

    @property
    def _crashed(self) -> int:
        return max(self._number(CRASHED), self.note.crashes if self.note is not None else 0)

    def _number(self, header: str) -> int:
        """0 for what is none."""
        try:
            return int(self.headers.get(header, 0))
        except (TypeError, ValueError):
            return 0

    @property
    def history(self) -> list[Any]:
        """Attempts that have failed and crashes, oldest first."""
        said = read_history(self.headers.get(HISTORY))
        noted = read_history(self.note.history) if self.note is not None else []
        return [*said, *(entry for entry in noted if entry not in said)][-MOST_ENTRIES:]

    def renew(self, message: RelayedMessage, attempt: int, wait_seconds: float, history: list[Any]) -> None:
        """Make it what its next attempt begins with."""
        self.body = body_with_options(self.body, message)
        self._say(
            {
                ATTEMPT: attempt,
                CRASHED: self._crashed,
                WAIT: f"{wait_seconds:.3f}",
                HISTORY: json.dumps(history),
            }
        )
        self.note = None

    def wait_from_now(self, seconds: float) -> None:
        """So long from when it arrives again, as a message of its own: of that Postgres is not asked."""
        noted = {}
        if self.note is not None:
            attempt = max(self._number(ATTEMPT), self._noted_attempt)
            noted = {ATTEMPT: attempt, CRASHED: self._crashed, HISTORY: json.dumps(self.history)}
        self._say({**noted, WAIT: f"{seconds:.3f}"})

    @property
    def wait_seconds(self) -> float:
        """Until its attempt may begin, counted from its arrival."""
        try:
            said = float(self.headers.get(WAIT, 0))
        except (TypeError, ValueError):
            said = 0.0
        said = said if said > 0 else 0.0  # also what is no number
        return max(said, self.note.wait_seconds if self.note is not None else 0.0)

    def waited(self) -> None:
        """The wait is over."""
        self.headers = {name: value for name, value in self.headers.items() if name != WAIT}
        if self.note is not None:
            self.note = replace(self.note, wait_seconds=0.0)

    def _say(self, headers: dict[str, Any]) -> None:
        self.headers = {**self.headers, **headers}
        said = self.properties
        self.properties = BasicProperties(
            content_type=said.content_type,
            delivery_mode=2,
            message_id=said.message_id,
            type=said.type,
            correlation_id=said.correlation_id,
            timestamp=said.timestamp,
            headers=self.headers,
        )


def body_with_options(body: bytes, message: RelayedMessage) -> bytes:
    """The body, with the options that handler and middleware have left in the message, when they are
    others.
    """
    now = vars(message).get("options")  # none of one that could not be decoded
    if type(now) is not dict:
        return body
    try:
        found = json.loads(body)
        after = {name: value for name, value in now.items() if name not in _OF_THE_ATTEMPT}
        before = {name: value for name, value in found["options"].items() if name not in _OF_THE_ATTEMPT}
        return body if after == before else json.dumps({**found, "options": after}).encode()
    except (TypeError, ValueError):  # what they have left is no JSON: as it was
        return body


class DoneIds:
    """Messages that this process has done, the last 100,000: a copy is known by its id."""

    MOST = 100_000

    def __init__(self) -> None:
        self._ids: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, message_id: int | None) -> bool:
        return message_id in self._ids

    def add(self, message_id: int | None) -> None:
        if message_id is not None:
            self._ids[message_id] = None
            if len(self._ids) > self.MOST:
                self._ids.popitem(last=False)


class Lines:
    """Who waits behind whom. The first of a line is not in it: it is handled, or waits for its retry."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Delivery] | None] = {}  # None: nobody

    def enter(self, delivery: Delivery) -> bool:
        """True: nobody is before it. False: next() will give it."""
        if delivery.line not in self._waiting:
            self._waiting[delivery.line] = None
            return True
        waiting = self._waiting[delivery.line]
        if waiting is None:
            waiting = self._waiting[delivery.line] = deque()
        waiting.append(delivery)
        return False

    def next(self, delivery: Delivery) -> Delivery | None:
        """The first of its line has ended; who is the first now."""
        waiting = self._waiting.get(delivery.line)
        if waiting:
            return waiting.popleft()
        self._waiting.pop(delivery.line, None)
        return None

    def keep(self, lines: set[Hashable]) -> None:
        """The connection is lost, and with it who waits; these lines have a first that still runs."""
        self._waiting = dict.fromkeys(lines)

"""What workers on RabbitMQ write to Postgres, and ask of it: dead letters, notes, the policies of queues,
what rests.

A thread with one connection. RabbitMQ's deliveries wait, unacknowledged, for what stands here: while
Postgres is away it is kept and tried again, and everything that needs no Postgres goes on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from packhorse.worker.amqp.envelope import RelayedMessage
from packhorse.worker.amqp.outcomes import QueuePolicy
from packhorse.worker.attempt.finish import Sender, send_exhausted, without_details
from packhorse.worker.attempt.messages import Outcome
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreConflict, StoreError, StoreUnavailable, UndecodableMessage
from packhorse.worker.service import Service
from packhorse.worker.store import forwarded as store
from packhorse.worker.store.forwarded import ForwardedNote, RestingScope

logger = logging.getLogger("packhorse.amqp")

#: What an operator changes at a queue counts after this.
POLICY_SECONDS = 15.0
#: What rests is read as seldom, and so often while something does, or has failed a moment ago.
RESTING_SECONDS = 2.0
REFUSED_SECONDS = 2.0
MOST_NOTES = 500


@dataclass(slots=True)
class LedgerEntry:
    """One thing to write. write(connection): in a transaction of its own; its answer goes to on_written, in
    the ledger's thread. instead: what to write when the database refuses this.
    """

    write: Callable[[DeadlineConnection], Any]
    on_written: Callable[[Any], None]
    instead: Callable[[DeadlineConnection], Any] | None = None


class Ledger(Service):
    """on_policies(policies, forwarded): what the queues say now, by name, and which of them are forwarded.
    on_resting(scopes, counting): what rests now, and the names of scopes whose failures are counted. Both in
    its thread.
    """

    name = "ledger"
    max_backoff_seconds = 2.0

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        sender: Sender,
        queues: Sequence[str],
        on_policies: Callable[[dict[str, QueuePolicy], set[str]], None],
        on_resting: Callable[[Sequence[RestingScope], frozenset[str]], None],
    ) -> None:
        super().__init__()
        self._link = Link(open_connection)
        self._worker_id = worker_id
        self._sender = sender
        self._queues = list(queues)
        self._on_policies = on_policies
        self._on_resting = on_resting
        self._lock = threading.Lock()
        self._entries: deque[LedgerEntry] = deque()  # changed under the lock
        self._asked: dict[int, list[Callable[[ForwardedNote], None]]] = {}  # changed under the lock
        self._parks: set[tuple[str | None, str]] = set()  # that stand in _entries; changed under the lock
        self._next_policies = self._next_resting = 0.0

    # -- any thread ----------------------------------------------------------------------------------
    @property
    def unwritten(self) -> int:
        return len(self._entries)

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    def ask(self, message_id: int, on_note: Callable[[ForwardedNote], None]) -> None:
        """What is known of a message; on_note is called in the ledger's thread."""
        with self._lock:
            self._asked.setdefault(message_id, []).append(on_note)
        self.wake()

    def note_done(self, ids: Sequence[int]) -> None:
        """Handlers are done whose messages cannot be acknowledged any more."""
        self._add(LedgerEntry(lambda connection: store.note_done(connection, ids), lambda _: None))

    def note_attempt(self, message_id: int, attempt: int, delay_seconds: float, history: list[Any]) -> None:
        """So many attempts are spent of a message that waits where it is."""
        text = json.dumps(history)
        self._add(
            LedgerEntry(
                lambda connection: store.note_attempt(connection, message_id, attempt, delay_seconds, text),
                lambda _: None,
            )
        )

    def park(self, message: RelayedMessage, seconds: float, outcome: Outcome) -> None:
        """What it calls asked for a pause. Thousands may be told so at once: one of them is written."""
        scope, until = outcome.scope, time.monotonic() + seconds
        key = (scope, message.message_type)
        with self._lock:
            if key in self._parks:
                return
            self._parks.add(key)

        def write(connection: DeadlineConnection) -> str | None:
            left = max(until - time.monotonic(), 0.0)
            return store.park(connection, message.id, message.message_type, left, scope, outcome.reason)

        def on_written(parked: str | None) -> None:
            with self._lock:
                self._parks.discard(key)
            self._next_resting = 0.0
            if parked is not None:
                logger.warning(
                    "scope_parked scope=%s seconds=%s message_id=%s actor=%s",
                    parked,
                    seconds,
                    message.id,
                    message.actor_name,
                )

        self._add(LedgerEntry(write, on_written, lambda _: None))

    def lift(self, scope: str) -> None:
        """A failure breaker has parked it, and its probe has succeeded."""

        def on_written(_: None) -> None:
            self._next_resting = 0.0

        self._add(LedgerEntry(lambda connection: store.lift(connection, scope), on_written))

    def count_failure(
        self,
        message: RelayedMessage,
        probes: Sequence[str],
        on_counted: Callable[[tuple[str, float] | None], None],
    ) -> None:
        """What a failure breaker says of a failure: store.count_failure; on_counted in the ledger's
        thread.
        """
        outcome = message.outcome
        assert outcome is not None
        error = (outcome.error_class or "Error", outcome.error_message or "", outcome.frame)

        def write(connection: DeadlineConnection) -> tuple[str, float] | None:
            return store.count_failure(
                connection, message.id, message.message_type, message.queue_name, error, probes
            )

        def on_written(counted: tuple[str, float] | None) -> None:
            self._next_resting = 0.0
            on_counted(counted)

        # what cannot be counted fails as usual
        self._add(LedgerEntry(write, on_written, lambda _: None))

    def note_success(self, scopes: Sequence[str]) -> None:
        """A message of these is done: their failures are counted from none."""
        self._add(LedgerEntry(lambda connection: store.note_success(connection, scopes), lambda _: None))

    def bury(
        self, message: RelayedMessage, reason: str, history: list[Any], on_buried: Callable[[bool], None]
    ) -> None:
        """Make a dead letter; on_buried(whether it is a new one) in the ledger's thread, once it is."""

        def write(connection: DeadlineConnection) -> bool:
            return self._bury(connection, message, reason, history)

        def write_bare(connection: DeadlineConnection) -> bool:
            without_details(message)
            return self._bury(connection, message, reason, [])

        self._add(LedgerEntry(write, on_buried, write_bare))

    def bury_stranger(
        self, queue: str, body: bytes, headers: Any, text: str, on_buried: Callable[[bool], None]
    ) -> None:
        """The same for what is no message of a relay: somebody else has published it there."""
        shown = body[:100_000].decode("utf-8", "replace").replace("\x00", "")
        said = str(headers)[:2000].replace("\x00", "")
        columns = json.dumps(
            {"queue": queue, "message_type": "unknown", "payload": {"body": shown, "properties": said}}
        )

        def write(connection: DeadlineConnection) -> bool:
            error = ("UndecodableMessage", text, None, None)
            return store.bury(connection, None, columns, "undecodable", error, None, self._worker_id)

        self._add(LedgerEntry(write, on_buried))

    def _add(self, entry: LedgerEntry) -> None:
        with self._lock:
            self._entries.append(entry)
        self.wake()

    # -- its thread ----------------------------------------------------------------------------------
    def urgent(self) -> bool:
        return bool(self._entries or self._asked)

    def run_once(self) -> float:
        if time.monotonic() >= self._next_policies:
            self.read_policies()
        if time.monotonic() >= self._next_resting:
            self.read_resting()
        self._answer()
        pause = 0.0
        for _ in range(len(self._entries)):
            pause = max(pause, self._write(self._entries[0]))
            self.ticked(time.monotonic())
        if pause:
            return pause
        return (
            0.0
            if self.urgent()
            else max(0.0, min(self._next_policies, self._next_resting) - time.monotonic())
        )

    def read_resting(self) -> None:
        """As read_policies."""
        with self._link.connection() as connection:
            found = store.resting(connection)
            counting, lately = store.counting(connection)
        self._next_resting = time.monotonic() + (RESTING_SECONDS if found or lately else POLICY_SECONDS)
        self._on_resting(found, counting)

    def read_policies(self) -> None:
        """Also called before the start, by the main thread. Raises StoreError."""
        with self._link.connection() as connection:
            rows = store.policies(connection, self._queues)
        self._next_policies = time.monotonic() + POLICY_SECONDS
        self._on_policies(
            {
                row["name"]: QueuePolicy(
                    row["max_attempts"],
                    row["crash_limit"],
                    row["initial"],
                    row["multiplier"],
                    row["longest"],
                    row["jitter"],
                    row["breaker"],
                )
                for row in rows
            },
            {row["name"] for row in rows if row["forward"] == "amqp"},
        )

    def _answer(self) -> None:
        while self._asked:
            with self._lock:
                ids = list(self._asked)[:MOST_NOTES]
            with self._link.connection() as connection:
                found = store.notes(connection, ids)
            for message_id in ids:
                with self._lock:
                    waiting = self._asked.pop(message_id)
                for on_note in waiting:
                    on_note(found.get(message_id) or ForwardedNote(message_id))

    def _write(self, entry: LedgerEntry) -> float:
        """The first entry; seconds to wait before the next turn. Raises StoreUnavailable: it stays the
        first.
        """
        try:
            answer = self._written(entry.write)
        except StoreUnavailable:
            raise
        except StoreError as error:
            with self._lock:
                self._entries.rotate(-1)  # the others go on
            if isinstance(error, StoreConflict):
                return 0.05
            if entry.instead is not None:
                entry.write, entry.instead = entry.instead, None
                return 0.0
            logger.error("forwarded_outcome_refused error=%s: kept, and tried again", error)
            return REFUSED_SECONDS
        with self._lock:
            self._entries.popleft()
        entry.on_written(answer)
        return 0.0

    def _written(self, write: Callable[[DeadlineConnection], Any]) -> Any:
        with self._link.connection() as connection, connection.transaction():
            return write(connection)

    def _bury(
        self, connection: DeadlineConnection, message: RelayedMessage, reason: str, history: list[Any]
    ) -> bool:
        outcome = message.outcome
        error: tuple[str | None, str | None, str | None, str | None] = (None, None, None, None)
        if outcome is not None:
            error = (
                outcome.error_class,
                outcome.error_message or outcome.reason,
                outcome.traceback,
                outcome.frame,
            )
        details = outcome.details.as_json() if outcome is not None and outcome.details is not None else None
        is_new = store.bury(
            connection, message.id, columns_of(message, history), reason, error, details, self._worker_id
        )
        if is_new and outcome is not None and outcome.on_exhausted and reason in ("failed", "quarantined"):
            send_exhausted(connection, message, outcome, self._sender)
        return is_new

    def on_stop(self) -> None:
        self._link.close()


def columns_of(message: RelayedMessage, history: list[Any]) -> str:
    """What a dead letter has of a message besides its error, as a JSON object."""
    try:
        payload, options = json.loads(message.payload_text), json.loads(message.options_text)
    except (UndecodableMessage, ValueError):
        payload, options = {"body": message._body.decode("utf-8", "replace").replace("\x00", "")}, {}
    return json.dumps(
        {
            "queue": message.queue_name,
            "message_type": message.message_type,
            "payload": payload,
            "options": options,
            "priority": message.priority,
            "attempt": message.attempt,
            "max_attempts": message.max_attempts,
            "crashes": message.crashes,
            "conversation_key": message.conversation_key,
            "correlation_id": message.correlation_id,
            "trace_context": message.trace_context,
            "history": history,
            "age": message.age_seconds,
        }
    )

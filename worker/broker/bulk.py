"""Bulk enqueue: a thousand messages per statement, and while the database inserts them the next thousand
become rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Protocol

import dramatiq

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.enqueue.encoding import Encoded
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.store import messages as store
from packhorse.worker.store.options import BULK_KEYS, PER_MESSAGE_KEYS
from packhorse.worker.store.wakes import Wake, wake_channels, wake_queues

#: What one statement holds at most, and what may be on its way at once: the deadline of a call is for what it
#: waits for.
PART_CHARACTERS = 4_000_000
PIPELINE_PARTS, PIPELINE_CHARACTERS = 10, 8_000_000


class Encoder(Protocol):
    """What a bulk enqueue needs of a broker."""

    def enqueue_hooks(self) -> tuple[list[Any], list[Any], list[Any]]: ...
    def encoded(self, message: dramatiq.Message[Any]) -> Encoded: ...
    def ensure_queue(self, connection: DeadlineConnection, queue: str) -> None: ...
    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None: ...
    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None: ...


def encoded_one_by_one(broker: Encoder, messages: list[dramatiq.Message[Any]]) -> Iterator[Encoded]:
    """Each of them as columns, between its hooks. Raises InvalidArgument."""
    before, after, _ = broker.enqueue_hooks()
    for message in messages:
        if before:
            broker.emit_before("enqueue", message, None)
        encoded = broker.encoded(message)
        if not PER_MESSAGE_KEYS.isdisjoint(encoded.extra):
            name = min(PER_MESSAGE_KEYS & encoded.extra.keys()).removesuffix("_seconds")
            raise InvalidArgument(
                f"{name}: bulk enqueue has neither dedup windows nor pending keys",
                field=name,
                hint="Use enqueue().",
            )
        yield encoded
        if after:
            broker.emit_after("enqueue", message, None)


class BulkEnqueue:
    """One bulk enqueue, in the transaction that its connection is in."""

    def __init__(self, broker: Encoder, connection: DeadlineConnection) -> None:
        self._broker = broker
        self._connection = connection
        self._queues: set[str] = set()
        self._conversations: set[str] = set()  # with a message in the batch so far
        self._now = store.database_now(connection)
        self._plain = (*(str(self._now) if name == "run_at" else store.NULL for name in BULK_KEYS), "pending")

    def insert(self, messages: list[dramatiq.Message[Any]], wakes: set[Wake] | None = None) -> None:
        """Insert them in order and wake the workers of their queues.

        wakes: takes what is to be published by Redis after the commit; None: nothing is asked. Raises
        InvalidArgument, UnknownQueue, StoreUnavailable; the transaction is then to be rolled back.
        """
        with ExitStack() as stack:
            pipeline: Any = None
            parts = size = 0  # on their way
            for rows in self._parts(messages):
                blocked = any(row[-1] == "blocked" for row in rows)
                # blocked ones may be refused, and then come again without a state: not in a pipeline, where
                # an error ends all. Closed, not pipeline.sync(): that waits for answers to what it has not
                # sent yet, for ever, when the rest is long
                if pipeline is not None and (
                    blocked or parts >= PIPELINE_PARTS or size >= PIPELINE_CHARACTERS
                ):
                    stack.close()
                    pipeline = None
                if pipeline is None and not blocked:
                    pipeline = stack.enter_context(self._connection.pipeline())
                    parts = size = 0
                self._insert(rows, blocked)
                parts, size = parts + 1, size + sum(len(row[2]) + len(row[3]) for row in rows)
        wake_queues(self._connection, sorted(self._queues))
        if wakes is not None:
            wakes |= wake_channels(self._connection, sorted(self._queues))

    def _insert(self, rows: list[tuple[str, ...]], blocked: bool) -> None:
        """Later messages of a conversation are blocked behind its first one at once, by a role that may; else
        by the claim.
        """
        if blocked:
            try:
                with translated(), self._connection.transaction():
                    store.insert_messages(self._connection, rows, with_state=True)
                return
            except StoreRejected as error:
                if error.sqlstate != "42501":  # insufficient_privilege: a producer
                    raise
        store.insert_messages(self._connection, rows, with_state=False)

    def _parts(self, messages: list[dramatiq.Message[Any]]) -> Iterator[list[tuple[str, ...]]]:
        """Rows for insert_messages, by the statement."""
        rows: list[tuple[str, ...]] = []
        size = 0
        for encoded in encoded_one_by_one(self._broker, messages):
            if encoded.queue not in self._queues:
                self._queues.add(encoded.queue)
                self._broker.ensure_queue(self._connection, encoded.queue)
            tail = self._tail(encoded.extra) if encoded.extra else self._plain
            rows.append(
                (
                    encoded.queue,
                    encoded.message_type,
                    encoded.payload,
                    encoded.options,
                    str(encoded.priority),
                    *tail,
                )
            )
            size += len(encoded.payload) + len(encoded.options)
            if len(rows) == store.BULK_ROWS or size >= PART_CHARACTERS:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    def _tail(self, extra: dict[str, Any]) -> tuple[str, ...]:
        """The columns of a message that is more than plain, `state` last."""
        key = extra.get("conversation_key")
        state = "blocked" if key in self._conversations else "pending"
        if key is not None:
            self._conversations.add(key)
        times = {
            "run_at": extra.get("run_at") or self._later(extra.get("delay_seconds")) or self._now,
            "expires_seconds": self._later(extra.get("expires_seconds")),
        }
        values = {name: times[name] if name in times else extra.get(name) for name in BULK_KEYS}
        for name, value in values.items():
            if isinstance(value, str) and (store.SEPARATOR in value or store.NULL in value):
                raise InvalidArgument(f"{name}: contains a control character (U+001E or U+001F)", field=name)
        if times["expires_seconds"] is not None and self._now < times["run_at"] >= times["expires_seconds"]:
            raise InvalidArgument(
                "expires_in: the message could never start",
                field="expires_in",
                hint="It must be later than run_at.",
            )
        return (*(store.NULL if value is None else str(value) for value in values.values()), state)

    def _later(self, seconds: float | None) -> Any:
        return None if seconds is None else self._now + timedelta(seconds=seconds)

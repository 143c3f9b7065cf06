"""The consumer for dramatiq's own Worker and CLI (SPEC W1): correct, slower than the runtime.

`ack` and `nack` come from worker threads, so they use the broker's pool and never the claim connection.
Leases of prefetched messages are renewed by a heartbeat of the consumer's own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from dramatiq.broker import Consumer
from dramatiq.errors import BrokerConnectionError

from worker import __version__
from worker.db.pool import Link
from worker.errors import StoreConflict, StoreUnavailable, UndecodableMessage
from worker.heartbeat import Heartbeat
from worker.messages import ClaimedMessage, Ending
from worker.settle import settle
from worker.store import messages as store
from worker.store import workers as worker_store


class PostgresConsumer(Consumer):
    """Iterates over messages of one queue; yields None when nothing came within the timeout."""

    def __init__(self, broker: Any, queue: str, prefetch: int, timeout_seconds: float) -> None:
        self._broker = broker
        self._queue = queue
        self._prefetch = max(1, prefetch)
        self._timeout = timeout_seconds
        self._id = uuid4()
        self._link = Link(broker.open_connection)
        self._ready: deque[ClaimedMessage] = deque()  # consumer thread only
        self._held: dict[int, ClaimedMessage] = {}  # any thread; single operations only
        self._idle = threading.Event()
        settings = broker.settings
        self._lease = f"{settings.lease_seconds} seconds"
        self._poll = min(settings.poll_seconds, 0.1)
        self._heartbeat = Heartbeat(broker.open_connection, self._id, settings, lambda: list(self._held.values()), self._attend)
        try:
            with self._link.connection() as connection:
                worker_store.register(
                    connection, self._id, socket.gethostname(), os.getpid(), __version__, [queue], self._types(), prefetch, settings.lease_seconds
                )
        except StoreUnavailable as error:
            raise BrokerConnectionError(str(error)) from error
        self._heartbeat.start()

    def _types(self) -> list[str]:
        return [*self._broker.actors, *self._broker.aliases]

    def _attend(self, message: ClaimedMessage, lease_held: bool) -> None:
        if not lease_held:
            message.lost = True
            self._forget(message)

    def _forget(self, message: ClaimedMessage) -> None:
        """It is no longer held; its next attempt, which has the same id, may be."""
        if self._held.get(message.id) is message:
            self._held.pop(message.id, None)

    def __next__(self) -> ClaimedMessage | None:
        deadline = time.monotonic() + self._timeout
        while True:
            if self._ready:
                return self._ready.popleft()
            free = self._prefetch - len(self._held)
            if free > 0:
                self._claim(free)
                if self._ready:
                    continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._idle.wait(min(self._poll, remaining))
            self._idle.clear()

    def _claim(self, limit: int) -> None:
        before = time.monotonic()
        lease = self._broker.settings.lease_seconds
        try:
            with self._link.connection() as connection:
                rows = store.complete_and_claim(connection, [], [], self._id, [self._queue], limit, self._lease, self._types())
                if any(row[0] == "suspect" for row in rows) and not self._held:
                    rows += store.complete_and_claim(connection, [], [], self._id, [self._queue], 1, self._lease, self._types(), suspects=True)
        except StoreUnavailable as error:
            raise BrokerConnectionError(str(error)) from error
        except StoreConflict:
            return
        for row in rows:
            if row[0] != "claimed":
                continue
            message = ClaimedMessage(row, before + lease, before)
            try:
                message.decode()
            except UndecodableMessage as error:
                message.ending = Ending("bury", "undecodable", "UndecodableMessage", str(error))
                self._settle(message)
                continue
            self._held[message.id] = message
            self._ready.append(message)

    def ack(self, message: Any) -> None:
        self._settle(message)

    nack = ack

    def _settle(self, message: ClaimedMessage) -> None:
        try:
            with self._broker.pool.connection() as connection:
                answer = settle(connection, message, self._broker)
        except StoreUnavailable as error:
            raise BrokerConnectionError(str(error)) from error
        if answer == "dead" and not message.failed:
            # only the database knew that this was the last attempt: dramatiq's Worker says "ack" around
            # this call, and whoever listens for deaths (Results) has to hear of it all the same
            self._broker.emit_before("nack", message)
            message.failed = True
            self._broker.emit_after("nack", message)
        message.settled = True
        self._forget(message)
        self._idle.set()

    def requeue(self, messages: Iterable[Any]) -> None:
        held = list(messages)
        if not held:
            return
        try:
            with self._broker.pool.connection() as connection:
                store.release(connection, [m.id for m in held], [m.lease_token for m in held])
        except StoreUnavailable as error:
            raise BrokerConnectionError(str(error)) from error
        for message in held:
            self._forget(message)

    def close(self) -> None:
        self.requeue(self._ready)
        self._ready.clear()
        self._heartbeat.stop()
        self._heartbeat.wait(5)
        try:
            with self._link.connection() as connection:
                worker_store.deregister(connection, self._id)
        except StoreUnavailable:
            pass  # information only; the row is forgotten after ten minutes
        self._link.close()

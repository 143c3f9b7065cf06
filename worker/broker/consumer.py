"""The consumer for dramatiq's own Worker and CLI (SPEC W1): correct, slower than the runtime.

`ack` and `nack` come from worker threads, so they use the broker's pool and never the claim connection.
That Worker makes a new consumer after every lost connection, while its handlers go on and hand their
outcomes to whichever consumer there is: what is held belongs to the queue, not to a consumer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

import dramatiq
from dramatiq.broker import Consumer
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import MiddlewareError

from packhorse.worker.attempt.details import stored_text
from packhorse.worker.attempt.finish import Sender, finish
from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.attempt.middleware.retries import policies
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import ConnectionPool, Link
from packhorse.worker.errors import StoreConflict, StoreError, StoreUnavailable, UndecodableMessage
from packhorse.worker.states import Ended, Verb
from packhorse.worker.store import messages as store
from packhorse.worker.store import workers as worker_store

logger = logging.getLogger("packhorse.consumer")

_opening = threading.Lock()


class Host(Sender, Protocol):
    """What a consumer needs of its broker."""

    actors: dict[str, dramatiq.Actor[Any, Any]]
    aliases: dict[str, str]
    in_flight_by_queue: dict[str, QueueInFlight]

    @property
    def settings(self) -> Settings: ...
    @property
    def pool(self) -> ConnectionPool: ...
    def open_connection(self) -> DeadlineConnection: ...
    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None: ...
    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None: ...


class QueueInFlight:
    """What the consumers of one queue have in flight, and the heartbeat that renews its leases.

    It beats as long as a consumer is open or a handed-out message has not come back (FAILURES 49).
    messages: by id; any thread, single operations only. quiet: operators have asked for it, so nothing more
    is claimed.
    """

    quiet = False

    def __init__(self, broker: Host) -> None:
        self.id = uuid4()
        self.messages: dict[int, ClaimedMessage] = {}
        self.heartbeat = Heartbeat(
            broker.open_connection,
            self.id,
            broker.settings,
            lambda: list(self.messages.values()),
            self._attend,
        )
        self.heartbeat.on_asked = self._asked
        self._consumers = 0
        self._lock = threading.Lock()

    @classmethod
    def entered(cls, broker: Host, queue: str) -> QueueInFlight:
        """That of a queue, for a consumer that opens; a fresh one when the last has ended."""
        with _opening:
            held = broker.in_flight_by_queue.get(queue) or cls(broker)
            if not held._enter():
                held = cls(broker)
                held._enter()
            broker.in_flight_by_queue[queue] = held
            return held

    def _enter(self) -> bool:
        with self._lock:
            if not self.heartbeat.stopping:
                self._consumers += 1
            return not self.heartbeat.stopping

    def leave(self) -> bool:
        """A consumer closes; True when that was the end."""
        with self._lock:
            self._consumers -= 1
        self._end_if_idle()
        return self.heartbeat.stopping and self.heartbeat.wait(5)

    def forget(self, message: ClaimedMessage) -> None:
        """It is no longer held; its next attempt, which has the same id, may be."""
        if self.messages.get(message.id) is message:
            self.messages.pop(message.id, None)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._consumers and not self.messages:
                self.heartbeat.stop()

    def _asked(self, request: str | None) -> None:
        """By `packhorse workers quiet|drain|resume`. Ending the process is its parent's: a drain is quiet."""
        if self.quiet == (request is not None):
            return
        self.quiet = request is not None
        self.heartbeat.state = "quiet" if self.quiet else "running"
        if self.quiet:
            logger.info("worker_quiet worker_id=%s", self.id)
        else:
            logger.info("worker_resumed worker_id=%s", self.id)

    def _attend(self, message: ClaimedMessage, lease_held: bool) -> None:
        if not lease_held:
            message.lost = True
            self.forget(message)


class PostgresConsumer(Consumer):
    """Iterates over messages of one queue; yields None when nothing came within the timeout."""

    def __init__(self, broker: Host, queue: str, prefetch: int, timeout_seconds: float) -> None:
        self._broker = broker
        self._queue = queue
        self._prefetch = max(1, prefetch)
        self._timeout = timeout_seconds
        self._link = Link(broker.open_connection)
        self._ready: deque[ClaimedMessage] = deque()  # consumer thread only
        self._idle = threading.Event()
        settings = broker.settings
        self._lease = f"{settings.lease_seconds} seconds"
        self._poll = min(settings.poll_seconds, 0.1)
        held = self._in_flight = QueueInFlight.entered(broker, queue)
        try:
            with self._link.connection() as connection:
                held.heartbeat.register(
                    connection, [queue], self._types(), prefetch, policies=policies(broker)
                )
        except StoreError as error:
            held.leave()
            raise BrokerConnectionError(str(error)) from error
        self._open = True
        held.heartbeat.start()

    def _types(self) -> list[str]:
        return [*self._broker.actors, *self._broker.aliases]

    def __next__(self) -> ClaimedMessage | None:
        deadline = time.monotonic() + self._timeout
        while True:
            if self._in_flight.quiet:
                self._give_back()
            if self._ready:
                return self._ready.popleft()
            free = self._prefetch - len(self._in_flight.messages)
            if free > 0 and not self._in_flight.quiet:
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
        lease, worker_id, held = (
            self._broker.settings.lease_seconds,
            self._in_flight.id,
            self._in_flight.messages,
        )
        try:
            with self._link.connection() as connection:
                rows, hints = store.complete_and_claim(
                    connection, [], [], worker_id, [self._queue], limit, self._lease, self._types()
                )
                # dramatiq's Worker has no process apart: one at a time
                if hints.isolated and not rows and not held:
                    rows, _ = store.complete_and_claim(
                        connection,
                        [],
                        [],
                        worker_id,
                        [self._queue],
                        1,
                        self._lease,
                        self._types(),
                        isolated=True,
                    )
        except StoreUnavailable as error:
            raise BrokerConnectionError(str(error)) from error
        except StoreConflict:
            return
        undecodable = []
        for row in rows:
            message = ClaimedMessage(row, before + lease, before)
            held[message.id] = message
            try:
                message.decode()
            except UndecodableMessage as error:
                message.outcome = Outcome(
                    Verb.BURY, "undecodable", "UndecodableMessage", stored_text(str(error), 1000)
                )
                undecodable.append(message)
            else:
                self._ready.append(message)
        for message in undecodable:
            self._bury(message)

    def _bury(self, message: ClaimedMessage) -> None:
        """The one whose row nobody can read; when that fails its lease runs out, and its neighbours go on."""
        try:
            self._finish(message)
        except (BrokerConnectionError, StoreError) as error:
            logger.warning("outcome_waits message_id=%s error=%s", message.id, error)
            self._in_flight.forget(message)

    def ack(self, message: Any) -> None:
        self._finish(message)

    nack = ack

    def _finish(self, message: ClaimedMessage) -> None:
        try:
            with self._broker.pool.connection() as connection:
                ended = finish(connection, message, self._broker)
        except (StoreUnavailable, StoreConflict) as error:
            raise BrokerConnectionError(str(error)) from error  # dramatiq's Worker tries again
        except StoreError:
            self._in_flight.forget(message)  # nobody tries again: its lease must run out
            raise
        if ended is Ended.DEAD and not message.failed:
            # only the database knew that this was the last attempt: dramatiq's Worker says "ack" around
            # this call, and whoever listens for deaths (Results) has to hear of it all the same
            self._broker.emit_before("nack", message)
            message.failed = True
            self._broker.emit_after("nack", message)
        elif ended is Ended.SNOOZE:
            message.failed = False  # a failure breaker lets its last attempt rest
        elif ended is Ended.RETRY:
            with suppress(MiddlewareError):
                self._broker.emit_before("delay_message", message)
        message.end()
        self._in_flight.forget(message)
        self._idle.set()

    def requeue(self, messages: Iterable[Any]) -> None:
        held = list(messages)
        if not held:
            return
        try:
            with self._broker.pool.connection() as connection:
                store.release(connection, [m.id for m in held], [m.lease_token for m in held])
        except StoreError as error:
            raise BrokerConnectionError(str(error)) from error
        finally:
            for message in held:
                # also when the database does not answer: renewed, it would never run again
                self._in_flight.forget(message)

    def _give_back(self) -> None:
        """What the Worker has not taken."""
        try:
            self.requeue(self._ready)
        finally:
            self._ready.clear()

    def close(self) -> None:
        try:
            self._give_back()
        finally:
            if self._open and self._in_flight.leave():  # dramatiq's Worker closes more than once
                self._deregister()
            self._open = False
            self._link.close()

    def _deregister(self) -> None:
        try:
            with self._link.connection() as connection:
                worker_store.deregister(connection, self._in_flight.id)
        except StoreError:
            pass  # the row says nothing that leases depend on, and is forgotten after ten minutes

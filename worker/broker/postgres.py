"""The dramatiq broker over message_queue (SPEC W1): ordinary actors, options, middleware, results.

Enqueue goes straight to SQL; consuming is either Packhorse's runtime (`packhorse worker`, fast) or
dramatiq's own Worker through `consume` (slower: nobody is locked in). Importing and constructing have no
effect on the outside; the first message opens the first connection.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.broker import Broker
from dramatiq.common import dq_name, q_name
from dramatiq.middleware import Middleware

from packhorse.worker import forks
from packhorse.worker.attempt.context import current, sending_on
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.attempt.middleware import default_middleware
from packhorse.worker.attempt.middleware.retries import check_resting
from packhorse.worker.attempt.middleware.time_limits import check_class
from packhorse.worker.attempt.middleware.tracing import Tracing
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.attempt.step_store import BrokerSteps
from packhorse.worker.broker.actor import complete
from packhorse.worker.broker.bulk import BulkEnqueue, encoded_one_by_one
from packhorse.worker.broker.emptying import Emptying
from packhorse.worker.broker.errors import UndeclaredQueue
from packhorse.worker.broker.waking import Waking
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db.async_connection import AsyncDeadlineConnection, current_async, in_thread
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.embedded import running_url
from packhorse.worker.db.errors import translated
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.sessions import open_work
from packhorse.worker.enqueue import capture
from packhorse.worker.enqueue.encoding import Encoded, Signature, check_actor, encode
from packhorse.worker.enqueue.insert import insert
from packhorse.worker.errors import ConfigError, InvalidArgument, StoreRejected, UnknownQueue, WorkerError
from packhorse.worker.exits import EXIT_USAGE
from packhorse.worker.observe import tracing
from packhorse.worker.observe.correlation import inherit
from packhorse.worker.states import Verb
from packhorse.worker.store import messages as store
from packhorse.worker.store.wakes import Wake

DEFAULT_POOL_SIZE = 10

if TYPE_CHECKING:
    from packhorse.worker.broker.consumer import QueueInFlight


class PostgresBroker(Emptying, Broker):
    """Broker on PostgreSQL.

    dsn, or url, as dramatiq's Redis and RabbitMQ brokers call it: connection string; default DATABASE_URL /
    packhorse.toml. settings: a Settings, instead of it. Raises InvalidArgument for a dsn beside another url.
    middleware: default_middleware() when None. pool_size: most connections for enqueueing from handlers
    and producers, 1..1000.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        url: str | None = None,
        settings: Settings | None = None,
        middleware: list[Middleware] | None = None,
        pool_size: int = DEFAULT_POOL_SIZE,
    ) -> None:
        if dsn is not None and url is not None and dsn != url:
            raise InvalidArgument("url: the dsn is another one", field="url", hint="Give one of them.")
        super().__init__(default_middleware() if middleware is None else middleware)
        self.queues: set[str] = set()
        self.aliases: dict[str, str] = {}
        self.runtime: Any = None  # set by the runtime that hosts this broker
        # by queue, of the consumers of dramatiq's Worker
        self.in_flight_by_queue: dict[str, QueueInFlight] = {}
        self._dsn = url if dsn is None else dsn
        self._settings = settings
        self._pool: ConnectionPool | None = None
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self._declared: set[str] = set()  # queues known to exist in the database; only grows
        self._signatures: dict[str, Signature] = {}
        self.waking = Waking()
        self._hooked = -1
        self._hooks: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self.steps = BrokerSteps(lambda: self.pool, partial(self.open_connection, "steps"))
        self.actor_options |= {"transactional", "aliases", "max_in_flight", "debounce", "max_wait"}
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: whoever held the lock may not be here."""
        self._lock = threading.Lock()

    @property
    def settings(self) -> Settings:
        """The settings, read at first use. Raises ConfigError."""
        if self._settings is None:
            self._settings = load_settings(database_url=self._dsn)
        return self._settings

    @property
    def pool(self) -> ConnectionPool:
        """Connections for enqueueing, results and transactional handlers."""
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = ConnectionPool(self.open_connection, self._pool_size)
        return self._pool

    def configure(self, settings: Settings) -> None:
        """Give the settings after construction (the worker process does); closes open connections."""
        self.close()
        self._settings = settings
        self._pool_size = max(self._pool_size, settings.threads + 2)

    def open_connection(self, purpose: str = "enqueue", **overrides: Any) -> DeadlineConnection:
        """A fresh connection as the settings say. purpose: a word for its application_name. overrides:
        options of the connection.

        Raises ConfigError without a database, StoreUnavailable.
        """
        return open_work(self.settings, purpose, url=self.url, **overrides)

    @property
    def url(self) -> str:
        """The configured database, else the embedded one that `packhorse up` runs in this folder."""
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        url = running_url(self.settings.data_dir)
        if url is None:
            raise ConfigError(
                ["database_url: not set; set DATABASE_URL, or run everything with `packhorse up`"]
            )
        return url

    def add_middleware(
        self,
        middleware: Middleware,
        *,
        before: type[Middleware] | None = None,
        after: type[Middleware] | None = None,
    ) -> None:
        """As dramatiq's, but Tracing goes to the front: it begins first and sees how the attempt ended."""
        super().add_middleware(middleware, before=before, after=after)
        if not _of_dramatiqs_worker(middleware):
            for queue in self.queues:
                middleware.after_declare_delay_queue(self, dq_name(queue))
        if isinstance(middleware, Tracing):
            self.middleware.insert(0, self.middleware.pop(self.middleware.index(middleware)))

    # -- declaring ---------------------------------------------------------------------------------
    def declare_actor(self, actor: Any) -> None:
        check_actor(actor)
        check_class(actor.options)
        check_resting(actor.options)
        complete(actor)
        for alias in actor.options.get("aliases") or ():
            taken = alias if alias in self.actors else self.aliases.get(alias, actor.actor_name)
            if taken != actor.actor_name:
                raise InvalidArgument(
                    f"aliases: {alias!r} is the actor {taken!r}",
                    field="aliases",
                    hint="A former name means one actor.",
                )
        signature = Signature(actor)
        super().declare_actor(actor)
        self._signatures[actor.actor_name] = signature
        actor.logger.addFilter(_without_arguments)
        for alias in actor.options.get("aliases") or ():
            self.aliases[alias] = actor.actor_name

    def get_actor(self, actor_name: str) -> Any:
        actor = self.actors.get(actor_name)
        return actor if actor is not None else super().get_actor(self.aliases.get(actor_name, actor_name))

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)
            self.emit_after("declare_delay_queue", dq_name(queue_name))

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    # -- enqueueing --------------------------------------------------------------------------------
    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Put a message on its queue; in the handler's transaction when it has one.

        delay: milliseconds. Options beyond dramatiq's: those of EnqueueOptions, in its units. Raises
        InvalidArgument, StoreUnavailable.
        """
        if isinstance(message, ClaimedMessage):
            if message.stage < AttemptStage.RETURNED:
                # dramatiq's stock Retries: our retry is one UPDATE of the same row
                error = message._exception
                outcome = (
                    Outcome(Verb.RETRY)
                    if error is None
                    else dataclasses.replace(failure(error), verb=Verb.RETRY)
                )
                message.outcome = dataclasses.replace(outcome, delay_seconds=(delay or 0) / 1000)
                return message
            message = message.again()  # it is over, or about to be
        before, after, delayed = self.enqueue_hooks()
        if before:
            self.emit_before("enqueue", message, delay)
        if delayed and (delay or message.options.get("delay")):
            self.emit_before("delay_message", message)
        if tracing.active is None:
            self._send(message, delay)
        else:
            with tracing.active.sending((q_name(message.queue_name),)) as sent:
                sent(self._send(message, delay))
        if after:
            self.emit_after("enqueue", message, delay)
        return message

    async def enqueue_async(self, message: Any, *, delay: int | None = None) -> Any:
        """As `enqueue`, for coroutines: it waits in a thread. In a transactional coroutine the message is
        part of its transaction.
        """
        held = self._coroutines_connection() if capture.active is None else None
        if held is None:
            return await in_thread(self.enqueue, message, delay=delay)
        return await held.ours(self._enqueue_for_coroutine, held.twin, message, delay)

    def _enqueue_for_coroutine(self, twin: DeadlineConnection, message: Any, delay: int | None) -> Any:
        with sending_on(twin, self.place):
            return self.enqueue(message, delay=delay)

    def _send(self, message: dramatiq.Message[Any], delay: int | None) -> int:
        if capture.active is not None:
            return capture.active.take([self.encoded(message, delay)])[0].id
        held = self._handlers_connection()
        if held is None and self._coroutines_connection() is not None:
            raise WorkerError(
                "a transactional coroutine sends with `await actor.send_async(…)`: its connection is asynchronous"
            )
        if held is not None:
            with held.as_ourselves():
                return self.enqueue_on(held, message, delay=delay)
        wakes = self.waking.new(self.settings)
        try:
            with self.pool.connection() as connection:
                message_id = self._enqueue(connection, message, delay, wakes)
        except UnknownQueue as error:
            raise UndeclaredQueue.of(error) from error.__cause__
        self.waking.publish(self.settings, wakes)
        return message_id

    def _handlers_connection(self) -> DeadlineConnection | None:
        """That of the transactional handler in this thread, when it is one to this broker's tables."""
        return current.connection if current.connection is not None and current.place == self.place else None

    def _coroutines_connection(self) -> AsyncDeadlineConnection | None:
        """The same of the transactional coroutine in this context."""
        found = current_async.get()
        return found[0] if found is not None and found[1] == self.place else None

    @property
    def place(self) -> tuple[str, str]:
        """Where its tables are: URL, schema."""
        return self.url, self.settings.db_schema

    def enqueue_on(
        self, connection: DeadlineConnection, message: dramatiq.Message[Any], *, delay: int | None = None
    ) -> int:
        """Enqueue on a given connection, in its transaction; returns the id in message_queue."""
        try:
            with translated():
                return self._enqueue(connection, message, delay, connection.wakes)
        except UnknownQueue as error:
            raise UndeclaredQueue.of(error) from error.__cause__

    def _enqueue(
        self,
        connection: DeadlineConnection,
        message: dramatiq.Message[Any],
        delay: int | None,
        wakes: set[Wake] | None,
    ) -> int:
        encoded = self.encoded(message, delay)
        if encoded.queue not in self._declared:
            self.ensure_queue(connection, encoded.queue)
        return insert(connection, encoded, wakes)

    def encoded(self, message: dramatiq.Message[Any], delay: int | None = None) -> Encoded:
        """Check a message against its actor's signature and turn it into columns."""
        actor = self.actors.get(message.actor_name)
        encoded = encode(
            message,
            delay if delay is not None else message.options.get("delay"),
            self._signatures.get(message.actor_name),
            actor.options if actor else {},
        )
        if actor is not None and 1 <= actor.priority <= 10 and "priority" not in message.options:
            encoded.priority = actor.priority
        inherit(encoded.extra)
        if tracing.active is not None:
            tracing.active.stamp(encoded.extra)
        return encoded

    def enqueue_many(self, messages: Iterable[dramatiq.Message[Any]]) -> int:
        """Enqueue many messages in one transaction, a thousand per statement; returns how many. All or none.

        Within the batch, messages of one conversation keep their order. No dedup or pending keys:
        InvalidArgument.
        """
        found = list(messages)
        if tracing.active is None or not found:
            return self._send_many(found)
        with tracing.active.sending({q_name(message.queue_name) for message in found}, len(found)):
            return self._send_many(found)

    def _send_many(self, messages: list[dramatiq.Message[Any]]) -> int:
        if capture.active is not None:
            capture.active.take(list(encoded_one_by_one(self, messages)))
            return len(messages)
        held = self._handlers_connection()
        wakes = self.waking.new(self.settings) if held is None else held.wakes
        try:
            with (
                self.pool.connection() if held is None else nullcontext(held) as connection,
                connection.as_ourselves(),
                connection.transaction(),
            ):
                BulkEnqueue(self, connection).insert(messages, wakes)
        except UnknownQueue as error:
            raise UndeclaredQueue.of(error) from error.__cause__
        if held is None:
            self.waking.publish(self.settings, wakes)
        return len(messages)

    def enqueue_hooks(self) -> tuple[list[Any], list[Any], list[Any]]:
        """before_enqueue, after_enqueue and before_delay_message of those middleware that really have
        them.
        """
        if self._hooked != len(self.middleware):

            def own(name: str) -> list[Any]:
                return [
                    getattr(m, name)
                    for m in self.middleware
                    if getattr(type(m), name, None) is not getattr(Middleware, name)
                ]

            self._hooks = (own("before_enqueue"), own("after_enqueue")[::-1], own("before_delay_message"))
            self._hooked = len(self.middleware)
        return self._hooks

    def ensure_queue(self, connection: DeadlineConnection, queue: str) -> None:
        """Queues that actors of this process declare exist; any other name must be known to the database."""
        if queue in self._declared:
            return
        if queue in self.queues:
            try:
                with translated(), connection.transaction():
                    store.declare_queue(connection, queue)
            except StoreRejected:
                pass  # a producer role may not; the enqueue itself says when the queue is unknown
        if connection.info.transaction_status.name == "IDLE":
            self._declared.add(queue)

    # -- what a handler can ask, under dramatiq's own Worker (our runtime does not come through here) ----
    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "worker_boot" and self.runtime is None:
            _ = self.url  # its consumers would meet a ConfigError again and again
        if signal == "process_message" and isinstance(args[0], ClaimedMessage):
            current.message = args[0]
            args[0].step_store = self.steps
        super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_boot" and self.runtime is None:
            self._end_misconfigured()
        # dramatiq's Worker would consume it: here the delayed messages of a queue are in that queue
        if signal == "declare_delay_queue":
            for middleware in [
                middleware for middleware in reversed(self.middleware) if not _of_dramatiqs_worker(middleware)
            ]:
                try:
                    middleware.after_declare_delay_queue(self, *args)
                except Exception:  # dramatiq's contract
                    self.logger.critical(
                        "Unexpected failure in after_%s of %r.", signal, middleware, exc_info=True
                    )
            return
        super().emit_after(signal, *args, **kwargs)
        if signal in ("process_message", "skip_message"):
            current.message = None
            if isinstance(args[0], ClaimedMessage):
                args[0].hand_back()

    def _end_misconfigured(self) -> None:
        """In a process of dramatiq's CLI: end it when its configuration is unusable, by the code that ends
        the whole command.
        """
        try:
            _ = self.url
        except ConfigError as error:
            for problem in error.problems:
                self.logger.critical("config_error %s", problem)
            sys.exit(EXIT_USAGE)

    # -- consuming ---------------------------------------------------------------------------------
    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Any:
        """A consumer for dramatiq's own Worker."""
        from packhorse.worker.broker.consumer import PostgresConsumer

        return PostgresConsumer(self, q_name(queue_name), prefetch, timeout / 1000)

    def close(self) -> None:
        """Close the connections for enqueueing; they open again when needed."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._declared.clear()
        if pool is not None:
            pool.close()
        self.steps.close()


def _of_dramatiqs_worker(middleware: Middleware) -> bool:
    return type(middleware).__module__ == "dramatiq.worker"


def _without_arguments(record: logging.LogRecord) -> bool:
    """dramatiq's Actor logs the arguments of every call at debug level; payloads are not in logs (SPEC
    P8).
    """
    return not str(record.msg).startswith("Received args=")

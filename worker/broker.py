"""The dramatiq broker over message_queue (SPEC W1): ordinary actors, options, middleware, results.

Enqueue goes straight to SQL; consuming is either Packhorse's runtime (`packhorse worker`, fast) or
dramatiq's own Worker through `consume` (slower: nobody is locked in). Importing and constructing have no
effect on the outside; the first message opens the first connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import dramatiq
from dramatiq.broker import Broker
from dramatiq.common import q_name
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import Middleware

from worker.config import Settings, load_settings
from worker.context import current
from worker.db.connection import DeadlineConnection, connect
from worker.db.errors import translated
from worker.db.pool import ConnectionPool
from worker.embedded import running_url
from worker.encoding import Encoded, Signature, encode
from worker.errors import ConfigError, InvalidArgument, StoreRejected
from worker.messages import ClaimedMessage, Ending
from worker.middleware import default_middleware
from worker.middleware.tracing import Tracing
from worker.observe import tracing
from worker.store import messages as store

DEFAULT_POOL_SIZE = 10
PIPELINE_PARTS = 10  # statements of a bulk enqueue that may be on their way at once


class PostgresBroker(Broker):
    """Broker on PostgreSQL.

    dsn: connection string; default DATABASE_URL / packhorse.toml. settings: a Settings, instead of dsn.
    middleware: default_middleware() when None. pool_size: most connections for enqueueing from handlers
    and producers, 1..1000.
    """

    def __init__(
        self, dsn: str | None = None, *, settings: Settings | None = None, middleware: list[Middleware] | None = None,
        pool_size: int = DEFAULT_POOL_SIZE,
    ) -> None:
        super().__init__(default_middleware() if middleware is None else middleware)
        self.queues: set[str] = set()
        self.aliases: dict[str, str] = {}
        self.runtime: Any = None  # set by the runtime that hosts this broker
        self.holdings: dict[str, Any] = {}  # by queue, of the consumers of dramatiq's Worker
        self._dsn = dsn
        self._settings = settings
        self._pool: ConnectionPool | None = None
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self._declared: set[str] = set()  # queues known to exist in the database; only grows
        self._signatures: dict[str, Signature] = {}
        self._hooked = -1
        self._hooks: tuple[list[Any], list[Any]] = ([], [])
        self.actor_options |= {"transactional", "aliases"}

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
        """A fresh connection as the settings say. Raises ConfigError without a database, StoreUnavailable."""
        settings = self.settings
        return connect(
            self._url(), **{
                "schema": settings.db_schema, "application_name": f"packhorse {purpose}",
                "deadline_seconds": settings.call_deadline_seconds,
                "connect_timeout_seconds": settings.connect_timeout_seconds, "pooler": settings.pooler, **overrides,
            },
        )

    def _url(self) -> str:
        """The configured database, else the embedded one that `packhorse up` runs in this folder."""
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        url = running_url(self.settings.data_dir)
        if url is None:
            raise ConfigError(["database_url: not set; set DATABASE_URL, or run everything with `packhorse up`"])
        return url

    def add_middleware(self, middleware: Middleware, *, before: type[Middleware] | None = None, after: type[Middleware] | None = None) -> None:
        """As dramatiq's, but Tracing goes to the front: it begins first and sees how the attempt ended."""
        super().add_middleware(middleware, before=before, after=after)
        if isinstance(middleware, Tracing):
            self.middleware.insert(0, self.middleware.pop(self.middleware.index(middleware)))

    # -- declaring ---------------------------------------------------------------------------------
    def declare_actor(self, actor: Any) -> None:
        super().declare_actor(actor)
        self._signatures[actor.actor_name] = Signature(actor)
        actor.logger.addFilter(_without_arguments)
        for alias in actor.options.get("aliases", ()):
            self.aliases[alias] = actor.actor_name

    def get_actor(self, actor_name: str) -> Any:
        actor = self.actors.get(actor_name)
        return actor if actor is not None else super().get_actor(self.aliases.get(actor_name, actor_name))

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    # -- enqueueing --------------------------------------------------------------------------------
    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Put a message on its queue; in the handler's transaction when it has one.

        delay: milliseconds. Options beyond dramatiq's: priority 1..10, conversation_key, dedup_key,
        dedup_window (s), correlation_id, trace_context, max_attempts, concurrency_key, run_at, expires_in (s).
        Raises InvalidArgument, StoreUnavailable.
        """
        if isinstance(message, ClaimedMessage):
            # dramatiq's stock Retries: our retry is one UPDATE of the same row
            message.ending = Ending("retry", delay_seconds=(delay or 0) / 1000)
            return message
        before, after = self._enqueue_hooks()
        if before:
            self.emit_before("enqueue", message, delay)
        if tracing.active is None:
            self._send(message, delay)
        else:
            with tracing.active.sending((q_name(message.queue_name),)) as sent:
                sent(self._send(message, delay))
        if after:
            self.emit_after("enqueue", message, delay)
        return message

    def _send(self, message: dramatiq.Message[Any], delay: int | None) -> int:
        if current.connection is not None:
            return self.enqueue_on(current.connection, message, delay=delay)
        with self.pool.connection() as connection:
            return self._enqueue(connection, message, delay)

    def enqueue_on(self, connection: DeadlineConnection, message: dramatiq.Message[Any], *, delay: int | None = None) -> int:
        """Enqueue on a given connection, in its transaction; returns the id in message_queue."""
        with translated():
            return self._enqueue(connection, message, delay)

    def _enqueue(self, connection: DeadlineConnection, message: dramatiq.Message[Any], delay: int | None) -> int:
        encoded = self.encoded(message, delay)
        if encoded.queue not in self._declared:
            self._ensure_queue(connection, encoded.queue)
        if not encoded.extra:
            return store.enqueue_plain(connection, encoded.queue, encoded.message_type, encoded.payload, encoded.options, encoded.priority)
        return store.enqueue(
            connection, encoded.queue, encoded.message_type, encoded.payload, encoded.options, priority=encoded.priority, **encoded.extra
        ).id

    def encoded(self, message: dramatiq.Message[Any], delay: int | None = None) -> Encoded:
        """Check a message against its actor's signature and turn it into columns."""
        actor = self.actors.get(message.actor_name)
        encoded = encode(
            message, delay if delay is not None else message.options.get("delay"), self._signatures.get(message.actor_name),
            actor.options if actor else {},
        )
        if actor is not None and 1 <= actor.priority <= 10 and "priority" not in message.options:
            encoded.priority = actor.priority
        if current.message is not None and current.message.correlation_id and "correlation_id" not in encoded.extra:
            encoded.extra["correlation_id"] = current.message.correlation_id
        if tracing.active is not None:
            tracing.active.stamp(encoded.extra)
        return encoded

    def enqueue_many(self, messages: Iterable[dramatiq.Message[Any]]) -> int:
        """Enqueue many messages in one transaction, a thousand per statement; returns how many. All or none.

        Within the batch, messages of one conversation keep their order. No dedup keys: InvalidArgument.
        """
        found = list(messages)
        if tracing.active is None or not found:
            return self._send_many(found)
        with tracing.active.sending({q_name(message.queue_name) for message in found}, len(found)):
            return self._send_many(found)

    def _send_many(self, messages: list[dramatiq.Message[Any]]) -> int:
        held = current.connection
        with self.pool.connection() if held is None else _held(held) as connection, connection.transaction():
            queues: set[str] = set()
            self._insert_all(connection, messages, queues)
            store.wake_queues(connection, sorted(queues))
        return len(messages)

    def _insert_all(self, connection: DeadlineConnection, messages: list[dramatiq.Message[Any]], queues: set[str]) -> None:
        """In the caller's transaction. While the database inserts one part, the next one is turned into rows."""
        now, seen = store.database_now(connection), set[str]()
        with ExitStack() as stack:
            pipeline: Any = None
            for number, first in enumerate(range(0, len(messages), store.BULK_ROWS)):
                rows, blocked = self._bulk_rows(messages[first : first + store.BULK_ROWS], now, queues, seen, connection)
                if blocked:  # may be refused, and then again without a state: not in a pipeline, where an error ends all
                    stack.close()
                    pipeline = None
                elif pipeline is None:
                    pipeline = stack.enter_context(connection.pipeline())
                elif number % PIPELINE_PARTS == 0:
                    pipeline.sync()  # the deadline of a call is for what it waits for
                self._insert(connection, rows, blocked)

    def _insert(self, connection: DeadlineConnection, rows: list[tuple[str, ...]], blocked: bool) -> None:
        """Later messages of a conversation are blocked behind its first one at once, by a role that may; else by the claim."""
        if blocked:
            try:
                with translated(), connection.transaction():
                    store.insert_messages(connection, rows, with_state=True)
                return
            except StoreRejected as error:
                if error.sqlstate != "42501":  # insufficient_privilege: a producer
                    raise
        store.insert_messages(connection, rows, with_state=False)

    def _bulk_rows(
        self, messages: list[Any], now: datetime, queues: set[str], seen: set[str], connection: DeadlineConnection
    ) -> tuple[list[tuple[str, ...]], bool]:
        """Rows for insert_messages, and whether any is blocked. seen: conversations with a message in the batch so far."""
        before, after = self._enqueue_hooks()
        rows = []
        none = store.NULL
        plain = (str(now), none, none, none, none, none, none, "pending")
        blocked = False
        for message in messages:
            for hook in before:
                hook(self, message, None)
            encoded = self.encoded(message)
            if encoded.queue not in queues:
                queues.add(encoded.queue)
                self._ensure_queue(connection, encoded.queue)
            tail = self._bulk_tail(encoded.extra, now, seen) if encoded.extra else plain
            blocked = blocked or tail[-1] == "blocked"
            rows.append((encoded.queue, encoded.message_type, encoded.payload, encoded.options, str(encoded.priority), *tail))
            for hook in after:
                hook(self, message, None)
        return rows, blocked

    def _bulk_tail(self, extra: dict[str, Any], now: datetime, seen: set[str]) -> tuple[str, ...]:
        """The columns of a message that is more than plain, `state` last."""
        if "dedup_key" in extra:
            raise InvalidArgument("dedup_key: bulk enqueue has no dedup windows", field="dedup_key", hint="Use enqueue().")
        key = extra.get("conversation_key")
        state = "blocked" if key in seen else "pending"
        if key is not None:
            seen.add(key)
        values = {
            "run_at": extra.get("run_at") or _later(now, extra.get("delay_seconds")) or now, "max_attempts": extra.get("max_attempts"),
            "conversation_key": key, "correlation_id": extra.get("correlation_id"), "trace_context": extra.get("trace_context"),
            "expires_at": _later(now, extra.get("expires_seconds")), "concurrency_key": extra.get("concurrency_key"),
        }
        for name, value in values.items():
            if isinstance(value, str) and (store.SEPARATOR in value or store.NULL in value):
                raise InvalidArgument(f"{name}: contains a control character (U+001E or U+001F)", field=name)
        return (*(store.NULL if value is None else str(value) for value in values.values()), state)

    def _enqueue_hooks(self) -> tuple[list[Any], list[Any]]:
        """before_enqueue and after_enqueue of those middleware that really have them."""
        if self._hooked != len(self.middleware):
            def own(name: str) -> list[Any]:
                return [getattr(m, name) for m in self.middleware if getattr(type(m), name, None) is not getattr(Middleware, name)]

            self._hooks = (own("before_enqueue"), own("after_enqueue")[::-1])
            self._hooked = len(self.middleware)
        return self._hooks

    def _ensure_queue(self, connection: DeadlineConnection, queue: str) -> None:
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
        if signal == "process_message" and isinstance(args[0], ClaimedMessage):
            current.message = args[0]
        super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_after(signal, *args, **kwargs)
        if signal in ("process_message", "skip_message"):
            current.message = None

    # -- consuming ---------------------------------------------------------------------------------
    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Any:
        """A consumer for dramatiq's own Worker."""
        from worker.consumer import PostgresConsumer

        return PostgresConsumer(self, q_name(queue_name), prefetch, timeout / 1000)

    def flush(self, queue_name: str) -> None:
        """Cancel every message of the queue that does not run; for tests."""
        from worker.db.queries import sql

        with self.pool.connection() as connection:
            connection.execute(sql("flush_queue"), (q_name(queue_name),))

    def flush_all(self) -> None:
        for queue in self.queues:
            self.flush(queue)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until the queue holds no live message; timeout in ms, then QueueJoinTimeout. For tests."""
        from worker.db.queries import sql

        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            with self.pool.connection() as connection:
                if not connection.execute(sql("queue_has_messages"), (q_name(queue_name),)).fetchone()[0]:  # type: ignore[index]
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            threading.Event().wait(0.02)

    def close(self) -> None:
        """Close the connections for enqueueing; they open again when needed."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._declared.clear()
        if pool is not None:
            pool.close()


class _held:
    """A connection that somebody else lends and takes back."""

    def __init__(self, connection: DeadlineConnection) -> None:
        self._connection = connection

    def __enter__(self) -> DeadlineConnection:
        return self._connection

    def __exit__(self, *exc: object) -> None:
        return None


def _later(now: Any, seconds: float | None) -> Any:
    return None if seconds is None else now + timedelta(seconds=seconds)


def _without_arguments(record: logging.LogRecord) -> bool:
    """dramatiq's Actor logs the arguments of every call at debug level; payloads are not in logs (SPEC P8)."""
    return not str(record.msg).startswith("Received args=")

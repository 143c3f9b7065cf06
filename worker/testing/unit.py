"""A handler called in a test as a worker calls it, without a server (SPEC W12).

What a worker does around the call (retries, time limits, middleware, the claim and the completion) is not
here: queue.py runs all of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dramatiq

from packhorse.worker import forks
from packhorse.worker.attempt.context import current, sending_on
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.async_connection import AsyncDeadlineConnection, current_async
from packhorse.worker.db.borrowed import borrowed, borrowed_async
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.names import Names
from packhorse.worker.db.sessions import names_of
from packhorse.worker.enqueue.encoding import Signature, encode
from packhorse.worker.errors import ConfigError, InvalidArgument
from packhorse.worker.runtime.coroutines import coroutine_function
from packhorse.worker.store.json_text import to_json
from packhorse.worker.testing.connections import FakeAsyncConnection, FakeConnection
from packhorse.worker.testing.steps import MemorySteps

if TYPE_CHECKING:
    from collections.abc import Iterator

R = TypeVar("R")

#: The lease of a message in a test; nobody renews it and nobody takes it.
LEASE_SECONDS = 3600.0
#: Where a connection leads that is none: to no broker's tables.
NOWHERE = ("", "")


def fake_message(
    *,
    id: int = 1,
    attempt: int = 1,
    max_attempts: int | None = None,
    crashes: int = 0,
    queue: str | None = None,
    priority: int = 5,
    conversation_key: str | None = None,
    correlation_id: str | None = None,
    trace_context: str | None = None,
    age_seconds: float = 0.0,
    due_seconds: float = 0.0,
    message_id: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ClaimedMessage:
    """What `current_message()` is to be in run_actor, which adds message type and arguments.

    id, attempt, max_attempts, crashes, priority, conversation_key, correlation_id, trace_context: as in the
    row of a claimed message. queue: None is the actor's. age_seconds: since it was enqueued. due_seconds:
    since it could have started. message_id: dramatiq's; made up when None. options: dramatiq's. Raises
    InvalidArgument for options that are no JSON.
    """
    said = {**({} if options is None else options)} | (
        {} if message_id is None else {"message_id": message_id}
    )
    row = (None, id, id, queue, "", "{}", to_json("options", said), priority, attempt, max_attempts, crashes)
    return _of_row(
        (*row, conversation_key, correlation_id, trace_context, "", age_seconds, due_seconds, None)
    )


def run_actor(
    actor: dramatiq.Actor[..., R],
    /,
    *args: Any,
    message: ClaimedMessage | None = None,
    connection: Any = None,
    now: datetime | None = None,
    steps: MemorySteps | None = None,
    **kwargs: Any,
) -> R:
    """Call the handler of an actor as a worker would, and return what it returns.

    args, kwargs: the handler's, checked as `send` does and handed over after JSON: a tuple arrives as a list.
    An argument of the handler that is called like one of ours (message, connection, now, steps) is given by
    position. message: `fake_message(…)`, what current_message() and correlation_id() tell. connection: for a
    transactional actor, and only for one: a psycopg connection, whose transaction stays the test's (nothing
    is committed here), or FakeConnection(). now: when the message is handled, for its timestamps; a worker
    has no other clock. steps: what earlier attempts have stored, and where this one stores; by default each
    call begins anew.

    An `async def` actor runs in an event loop of its own; in a test that has one, await run_actor_async.
    Whatever the handler raises comes out: Snooze, Retry, Bury and the like are not acted upon. Raises
    InvalidArgument.
    """
    attempt = _FakeAttempt(actor, args, kwargs, message, connection, now, steps)
    if attempt.coroutine is None:
        return cast(R, copy_context().run(attempt.run))
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return cast(R, asyncio.run(attempt.run_async()))
    raise InvalidArgument(
        f"actor: {actor.actor_name} is a coroutine, and an event loop runs here",
        field="actor",
        hint="await run_actor_async(…).",
    )


async def run_actor_async(
    actor: dramatiq.Actor[..., R],
    /,
    *args: Any,
    message: ClaimedMessage | None = None,
    connection: Any = None,
    now: datetime | None = None,
    steps: MemorySteps | None = None,
    **kwargs: Any,
) -> R:
    """As run_actor, in the event loop of the caller: an `async def` actor in a task of its own, any other in
    a thread.

    connection: of a transactional `async def` actor a psycopg AsyncConnection, or FakeAsyncConnection().
    """
    attempt = _FakeAttempt(actor, args, kwargs, message, connection, now, steps)
    if attempt.coroutine is None:
        return cast(R, await asyncio.to_thread(attempt.run))
    return cast(R, await asyncio.get_running_loop().create_task(attempt.run_async(), context=copy_context()))


class _FakeAttempt:
    """One call; used once, in a context of its own."""

    def __init__(
        self,
        actor: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        message: ClaimedMessage | None,
        connection: Any,
        now: datetime | None,
        steps: MemorySteps | None,
    ) -> None:
        if not isinstance(actor, dramatiq.Actor):
            raise InvalidArgument(
                f"actor: {actor!r} is no actor",
                field="actor",
                hint="Declare it with @packhorse.actor or @dramatiq.actor.",
            )
        _check(message, now, steps)
        self._actor = actor
        self._transactional = bool(actor.options.get("transactional"))
        self.coroutine = coroutine_function(actor)
        self._connection = self._for_handler(connection)
        self._steps = MemorySteps() if steps is None else steps
        self.message = claimed(
            actor, args, kwargs, fake_message() if message is None else message, now, self._steps
        )

    def run(self) -> Any:
        """In a thread."""
        with self._storing():
            if self._connection is None:
                return forks.contain(self._actor, *self.message.args, **self.message.kwargs)
            with sending_on(cast(DeadlineConnection, self._connection), self._place):
                return forks.contain(self._actor, *self.message.args, **self.message.kwargs)

    async def run_async(self) -> Any:
        """In a task."""
        assert self.coroutine is not None
        if self._connection is not None:
            current_async.set((cast(AsyncDeadlineConnection, self._connection), self._place))
        with self._storing():
            return await self.coroutine(*self.message.args, **self.message.kwargs)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Steps of a transactional handler are kept when it returns; those of any other at once."""
        store = self._steps.copy() if self._transactional else self._steps
        current.message = self.message
        self.message.step_store = store
        yield
        if store is not self._steps:
            self._steps.take(store)

    def _for_handler(self, connection: Any) -> Any:
        if not self._transactional:
            if connection is not None:
                raise InvalidArgument(
                    f"connection: {self._actor.actor_name} is not transactional: a worker gives it none",
                    field="connection",
                    hint="Declare it with transactional=True, or leave the connection out.",
                )
            return None
        fake = FakeConnection if self.coroutine is None else FakeAsyncConnection
        if connection is None:
            raise InvalidArgument(
                f"connection: {self._actor.actor_name} is transactional: it needs one",
                field="connection",
                hint=f"Give psycopg's, or {fake.__name__}().",
            )
        if isinstance(connection, fake):
            return connection
        return (borrowed if self.coroutine is None else borrowed_async)(connection, self._names)

    @property
    def _place(self) -> tuple[str, str]:
        """What it sends goes into the test's transaction, when that is one to a database at all."""
        broker = self._actor.broker
        if isinstance(broker, PostgresBroker) and not isinstance(
            self._connection, (FakeConnection, FakeAsyncConnection)
        ):
            try:
                return broker.place
            except ConfigError:  # no database is configured: sending says so
                pass
        return NOWHERE

    @property
    def _names(self) -> Names:
        broker = self._actor.broker
        return names_of(broker.settings) if isinstance(broker, PostgresBroker) else DeadlineConnection.names


def claimed(
    actor: dramatiq.Actor[Any, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    like: ClaimedMessage,
    now: datetime | None = None,
    steps: MemorySteps | None = None,
) -> ClaimedMessage:
    """A message of an actor as a worker has it after the claim; `like` says the rest. Raises InvalidArgument
    for arguments that `send` refuses.
    """
    encoded = encode(actor.message_with_options(args=args, kwargs=kwargs), None, Signature(actor), {})
    options = to_json("options", {**json.loads(encoded.options), **json.loads(like._options)})
    moment = datetime.now(UTC) if now is None else now
    run_at = str(moment - timedelta(seconds=like.due_seconds))
    message = _of_row(
        (
            None,
            like.id,
            like.lease_token,
            like.queue_name or actor.queue_name,
            actor.actor_name,
            encoded.payload,
            options,
            like.priority,
            like.attempt,
            like.max_attempts,
            like.crashes,
            like.conversation_key,
            like.correlation_id,
            like.trace_context,
            run_at,
            like.age_seconds,
            like.due_seconds,
            None if steps is None else steps.as_stored(),
        )
    )
    message.decode()
    message.message_timestamp = int((moment.timestamp() - like.age_seconds) * 1000)
    message.started_at = time.monotonic()
    message.move(AttemptStage.RUNNING)
    return message


def _of_row(row: tuple[Any, ...]) -> ClaimedMessage:
    now = time.monotonic()
    return ClaimedMessage(row, now + LEASE_SECONDS, now)


def _check(message: object, now: object, steps: object) -> None:
    for name, value, kind, wanted in (
        ("message", message, ClaimedMessage, "fake_message(…)"),
        ("now", now, datetime, "a datetime"),
        ("steps", steps, MemorySteps, "MemorySteps()"),
    ):
        if value is not None and not isinstance(value, kind):
            raise InvalidArgument(
                f"{name}: must be {wanted}, not {type(value).__name__}",
                field=name,
                hint="An argument of the handler with this name goes by position.",
            )
    if isinstance(now, datetime) and now.tzinfo is None:
        raise InvalidArgument("now: must be a datetime with a time zone", field="now")

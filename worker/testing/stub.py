"""dramatiq's StubBroker for our actors: in memory, run by dramatiq's own Worker (SPEC W1, W12).

Actors and messages are checked as our broker checks them, and what a handler can ask about itself has an
answer. There is no database: no transaction, no order per conversation, no dedup window, no limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AgeLimit, AsyncIO, Middleware, ShutdownNotifications

from packhorse.worker.attempt.context import correlation_id, current
from packhorse.worker.attempt.middleware import Callbacks, Pipelines, Retries, TimeLimits
from packhorse.worker.attempt.middleware.retries import asked_for, check_resting
from packhorse.worker.attempt.middleware.time_limits import check_class
from packhorse.worker.broker.actor import complete
from packhorse.worker.enqueue.encoding import Signature, check_actor, encode
from packhorse.worker.errors import Retry
from packhorse.worker.states import Verb
from packhorse.worker.store.options import COLUMN_OPTIONS
from packhorse.worker.testing.steps import MemorySteps
from packhorse.worker.testing.unit import claimed, fake_message

#: What a queue says when nobody else does: three attempts, a second before the second one.
MAX_RETRIES, MIN_BACKOFF_MS = 2, 1000


class StubRetries(Retries):
    """Retries by another message, as dramatiq's; the outcomes that a handler asks for are those of a
    worker.
    """

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        asked = None if exception is None else asked_for(exception)
        if asked is not None and asked.verb in (Verb.SNOOZE, Verb.PARK):
            broker.enqueue(message, delay=int(1000 * (asked.delay_seconds or 0)))
        elif asked is not None and asked.verb is Verb.BURY:
            message.fail()
        elif asked is None or asked.verb is not Verb.CANCEL:
            if isinstance(exception, Retry) and exception.seconds is not None:
                exception = dramatiq.errors.Retry(str(exception), delay=int(1000 * exception.seconds))
            super().after_process_message(broker, message, result=result, exception=exception)


class PackhorseStubBroker(StubBroker):
    """See stub_broker."""

    def __init__(self, middleware: list[Middleware]) -> None:
        super().__init__(middleware)
        self.actor_options |= {"transactional", "aliases", "max_in_flight", "debounce", "max_wait"}
        self.aliases: dict[str, str] = {}
        self._signatures: dict[str, Signature] = {}
        self._steps: dict[str, MemorySteps] = {}  # by dramatiq's message id, over the attempts of a message
        self._ids = itertools.count(1)

    def declare_actor(self, actor: Any) -> None:
        check_actor(actor)
        check_class(actor.options)
        check_resting(actor.options)
        complete(actor)
        self._signatures[actor.actor_name] = Signature(actor)
        if actor.options.get("max_attempts") is not None:
            actor.options.setdefault("max_retries", actor.options["max_attempts"] - 1)
        super().declare_actor(actor)
        self.aliases |= dict.fromkeys(actor.options.get("aliases") or (), actor.actor_name)

    def get_actor(self, actor_name: str) -> Any:
        return super().get_actor(self.aliases.get(actor_name, actor_name))

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """As dramatiq's. Raises InvalidArgument for what our broker refuses."""
        if not isinstance(message, MessageProxy):  # else it is a retry
            actor = self.actors.get(message.actor_name)
            encode(message, delay, self._signatures.get(message.actor_name), actor.options if actor else {})
            inherited = correlation_id()
            if inherited and "correlation_id" not in message.options:
                message = message.copy(options={"correlation_id": inherited})
        return super().enqueue(message, delay=delay)

    async def enqueue_async(self, message: Any, *, delay: int | None = None) -> Any:
        """What send_async of our actors asks for. delay: milliseconds."""
        return self.enqueue(message, delay=delay)

    def enqueue_many(self, messages: Iterable[dramatiq.Message[Any]]) -> int:
        """As that of our broker, one by one; returns how many."""
        return sum(self.enqueue(message) is not None for message in list(messages))

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_message":
            self._begin(args[0])
        super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_after(signal, *args, **kwargs)
        if signal in ("process_message", "skip_message"):
            current.message = None

    def _begin(self, message: Any) -> None:
        """What current_message() tells of it."""
        actor = self.get_actor(message.actor_name)
        steps = self._steps.setdefault(message.message_id, MemorySteps())
        columns = {
            name: message.options[name]
            for name in ("conversation_key", "correlation_id", "priority")
            if message.options.get(name) is not None
        }
        like = fake_message(
            id=next(self._ids),
            attempt=message.options.get("retries", 0) + 1,
            message_id=message.message_id,
            options={name: value for name, value in message.options.items() if name not in COLUMN_OPTIONS},
            **columns,
        )
        current.message = found = claimed(actor, tuple(message.args), message.kwargs, like, steps=steps)
        found.step_store = steps


def stub_broker() -> PackhorseStubBroker:
    """A StubBroker on which actors may have our options; dramatiq.Worker(broker) runs them.

    Call dramatiq.set_broker with it before the actors are declared. Snooze, Retry, RetryAfter, Bury and
    Cancel end a message as in a worker; three attempts, a second before the second one, unless the actor says
    otherwise. A transactional actor runs without a transaction: for it take run_actor, or a real queue.
    """
    retries = StubRetries(max_retries=MAX_RETRIES, min_backoff=MIN_BACKOFF_MS)
    return PackhorseStubBroker(
        [AgeLimit(), TimeLimits(), ShutdownNotifications(), Callbacks(), Pipelines(), AsyncIO(), retries]
    )

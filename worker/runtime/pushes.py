"""Declares what packhorse.toml binds to an endpoint: each `[push.TYPES]` becomes an `async def` actor, which
the worker runs as any other (SPEC W8).
"""

from __future__ import annotations

import asyncio
from typing import Any

from dramatiq.middleware import Middleware

from packhorse.worker import forks
from packhorse.worker.attempt.context import current_message
from packhorse.worker.broker.actor import actor
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.calls.push.client import PushClient
from packhorse.worker.calls.push.declarations import PushDeclaration, declared_pushes
from packhorse.worker.calls.push.handler import Push
from packhorse.worker.calls.registry import default_registry
from packhorse.worker.errors import ConfigError

#: A request ends by its own limit; the handler's is behind it.
BEHIND_MS = 5_000


class PushConnections(Middleware):
    """Closes connections with the event loop that has used them, and lets none into a forked child."""

    def __init__(self, clients: list[PushClient]) -> None:
        self._clients = clients
        forks.register(self)

    def before_worker_thread_shutdown(self, broker: Any, thread: Any) -> None:
        try:
            loop = asyncio.get_event_loop_policy().get_event_loop()
        except RuntimeError:  # a thread without one
            return
        for client in self._clients:
            loop.run_until_complete(client.close())

    def after_fork(self, stranger: bool) -> None:
        for client in self._clients:
            client.after_fork()


def declare_pushes(broker: PostgresBroker) -> None:
    """Declare the actors of packhorse.toml's pushes on this broker. Raises ConfigError with every problem."""
    declared = declared_pushes(queues=broker.settings.queues)
    taken = [push.types for push in declared if push.types in broker.actors or push.types in broker.aliases]
    if taken:
        raise ConfigError(
            [f"push {types!r}: name: an actor has this name; keep the actor or the push" for types in taken]
        )
    handlers = [_declare(broker, push) for push in declared]
    if handlers:
        broker.add_middleware(PushConnections([handler.client for handler in handlers]))


def _declare(broker: PostgresBroker, push: PushDeclaration) -> Push:
    handler = Push(push, default_registry().add(push.service))

    async def push_message(*_args: Any, **_payload: Any) -> None:
        message = current_message()
        assert message is not None
        await handler.handle(message)

    options: dict[str, Any] = {} if push.max_attempts is None else {"max_attempts": push.max_attempts}
    actor(
        actor_name=push.types,
        queue_name=push.queue,
        broker=broker,
        max_in_flight=push.max_in_flight,
        services=[push.service.name],
        time_limit=push.service.timeout_ms + BEHIND_MS,
        **options,
    )(push_message)
    return handler

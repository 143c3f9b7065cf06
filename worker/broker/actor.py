"""Actors with typed options, and their asynchronous `send` (SPEC N1, W3).

`packhorse.actor` is dramatiq's decorator: the same names, the same defaults. Its options are those that
Packhorse and dramatiq's middleware know, so a type checker finds a misspelt one. What is declared by
`dramatiq.actor` can do the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import dramatiq

from packhorse.worker.errors import InvalidArgument

P = ParamSpec("P")
R = TypeVar("R")

#: Most coroutines or threads that `max_in_flight` can allow.
MOST_IN_FLIGHT = 100_000
#: Of a message whose actor and sender say nothing.
USUAL_PRIORITY = 5


class ActorOptions(TypedDict, total=False):
    """Options of an actor. Times are milliseconds, as dramatiq has them; docs/configuration.md says what each
    does.
    """

    max_retries: int | None
    max_attempts: int
    min_backoff: int
    max_backoff: int
    retry_when: Callable[[int, Exception], bool] | None
    throws: type[BaseException] | tuple[type[BaseException], ...]
    on_retry_exhausted: str
    on_success: str
    on_failure: str
    max_age: int
    time_limit: float
    time_limit_class: str
    hard_time_limit: float
    notify_shutdown: bool
    pipe_ignore: bool
    store_results: bool
    result_ttl: int
    transactional: bool
    aliases: list[str]
    max_in_flight: int
    services: list[str]
    failure_breaker: int
    debounce: float  # seconds, as max_wait
    max_wait: float


class Actor(dramatiq.Actor[P, R]):
    """dramatiq's, with an asynchronous `send`."""

    async def send_async(self, *args: P.args, **kwargs: P.kwargs) -> dramatiq.Message[R]:
        """`send` for coroutines: the event loop goes on meanwhile. In a transactional coroutine the message
        is part of its transaction.

        Raises InvalidArgument, StoreUnavailable.
        """
        return await self.send_with_options_async(args=args, kwargs=kwargs)

    async def send_with_options_async(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: int | None = None,
        **options: Any,
    ) -> dramatiq.Message[R]:
        """`send_with_options` for coroutines. args, kwargs: of the handler. delay: milliseconds. options: of
        the message (`EnqueueOptions`).

        Raises InvalidArgument, StoreUnavailable.
        """
        message = self.message_with_options(args=args, kwargs=kwargs, **options)
        return cast(
            "dramatiq.Message[R]", await cast(AsyncSender, self.broker).enqueue_async(message, delay=delay)
        )


class AsyncSender(Protocol):
    """What an actor needs of its broker."""

    async def enqueue_async(self, message: Any, *, delay: int | None = None) -> Any: ...


class ActorDecorator(Protocol):
    """What `packhorse.actor(…)` returns."""

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]]) -> Actor[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Actor[P, R]: ...


@overload
def actor(fn: Callable[P, Awaitable[R]]) -> Actor[P, R]: ...
@overload
def actor(fn: Callable[P, R]) -> Actor[P, R]: ...
@overload
def actor(
    *,
    actor_name: str | None = None,
    queue_name: str = "default",
    priority: int = 0,
    broker: dramatiq.Broker | None = None,
    **options: Unpack[ActorOptions],
) -> ActorDecorator: ...
def actor(fn: Any = None, **options: Any) -> Any:
    """Declare an actor: a function, or an `async def`, that handles messages.

    actor_name: the message type, default the name of the function. queue_name: the queue of its messages.
    priority: 1..10, 1 first; 0: the queue's usual 5. broker: default the one that dramatiq knows. Raises
    InvalidArgument for an option that cannot be, ValueError for one that no middleware knows.
    """
    declare = dramatiq.actor(actor_class=Actor, **options)
    return declare if fn is None else declare(fn)


def complete(declared: Any) -> None:
    """Called by the broker for every actor that is declared: check what only the broker can, and give it what
    Actor has. Raises InvalidArgument.
    """
    _check_priority(declared)
    most = declared.options.get("max_in_flight")
    if most is not None and (
        isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_IN_FLIGHT
    ):
        raise InvalidArgument(
            f"max_in_flight: {most!r} is not a whole number from 1 to {MOST_IN_FLIGHT}", field="max_in_flight"
        )
    if not isinstance(declared, Actor):
        for name in ("send_async", "send_with_options_async"):
            setattr(declared, name, MethodType(getattr(Actor, name), declared))


def _check_priority(declared: Any) -> None:
    """Give an actor that says nothing of its priority the usual one, by which its messages are claimed.
    Raises InvalidArgument.

    With dramatiq an actor without a priority has 0 and goes first. Here it has 5: what `dramatiq.actor` puts
    behind it would go before it.
    """
    if declared.priority == 0:
        declared.priority = USUAL_PRIORITY
    elif declared.priority <= USUAL_PRIORITY and not isinstance(declared, Actor):
        raise InvalidArgument(
            f"priority: with dramatiq an actor of {declared.priority} starts after those without a priority; here these have {USUAL_PRIORITY}",
            field="priority",
            hint=f"Say {USUAL_PRIORITY + 1} to 10 for later, or declare it by packhorse.actor: 1 is first.",
        )

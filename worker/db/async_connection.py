"""The asynchronous face of a connection, for the handler of a transactional coroutine (SPEC W3, P3).

A session is opened, prepared, reset and closed by the synchronous code that does it for everybody. While a
coroutine has it, an AsyncDeadlineConnection speaks on the same socket; statements of ours go through its
`twin`, in a thread, while the coroutine's own wait for the lock. So there is one text of each rule, and a
handler sees psycopg's AsyncConnection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar

import psycopg
from psycopg.adapt import AdaptersMap

from packhorse.worker import forks
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import DeadlinePassed

T = TypeVar("T")
P = ParamSpec("P")


#: Most threads that wait for coroutines: for statements of ours, for hooks of middleware.
HELPERS = 16


class _Helpers:
    """Threads of our own: those of the event loop are the handlers', who may keep them for long
    (`asyncio.to_thread`).
    """

    def __init__(self) -> None:
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        self.threads = ThreadPoolExecutor(HELPERS, thread_name_prefix="packhorse-helper")

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: the threads are the parent's."""
        self._begin()


_helpers = _Helpers()


def submit(function: Callable[[], T]) -> asyncio.Future[T]:
    """Call it in a helper thread, in the context that this thread has there."""
    return asyncio.get_running_loop().run_in_executor(_helpers.threads, function)


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a helper thread, in a copy of the caller's context, to its end: a cancellation that comes
    meanwhile is raised afterwards.
    """
    context = copy_context()
    return await to_its_end(submit(lambda: context.run(function, *args, **kwargs)))


class AsyncDeadlineConnection(psycopg.AsyncConnection[Any]):
    """A psycopg AsyncConnection in autocommit mode whose every wait for the server ends after
    `deadline_seconds`.

    twin: the connection that opened the session. The handler's adapters, row factory and the like are this
    object's, and go with it.
    """

    def __init__(self, twin: DeadlineConnection) -> None:
        super().__init__(twin.pgconn)
        self.twin = twin
        self.deadline_seconds = twin.deadline_seconds
        self._autocommit = True
        self._adapters = AdaptersMap(twin.adapters)
        self._prepared = twin._prepared  # what the session has prepared, by whichever of the two
        self._pool: Any = None  # psycopg's sign that somebody else closes it
        self.prepare_threshold = twin.prepare_threshold

    async def wait(
        self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None
    ) -> T:
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        try:
            return await super().wait(gen, interval, self.deadline_seconds)
        except psycopg.errors._WaitTimeout:  # the name that psycopg documents for it
            self.pgconn.finish()
            raise DeadlinePassed("the server did not answer before the deadline of the call") from None

    async def ours(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function`, which uses the twin, in a thread; the handler's own statements wait meanwhile.

        It runs to its end, for a socket has one reader at a time.
        """
        async with self.lock:
            return await in_thread(function, *args, **kwargs)


async def to_its_end(work: Awaitable[T]) -> T:
    """Await what must not be left half done. A cancellation that comes meanwhile is raised afterwards."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled() and future.exception() is not None:
            raise cancelled from future.exception()
        raise cancelled
    return future.result()


#: The connection of the transactional coroutine that runs in this context, and where it leads: URL, schema.
current_async: ContextVar[tuple[AsyncDeadlineConnection, tuple[str, str]] | None] = ContextVar(
    "packhorse_async_connection", default=None
)

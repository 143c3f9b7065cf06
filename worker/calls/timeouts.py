"""A time limit for one operation: a call of a service, a query, a model (PLATFORM 8).

A coroutine is cancelled. A function cannot be: it runs in a thread of its own, and after its time nobody
waits for it any more.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any, Literal, TypeVar, overload

from packhorse.worker import forks
from packhorse.worker.attempt.middleware import time_limits
from packhorse.worker.errors import InvalidArgument, WorkflowError
from packhorse.worker.observe.masking import mask
from packhorse.worker.suggest import did_you_mean

logger = logging.getLogger("packhorse.calls")

T = TypeVar("T")
TimeoutClass = Literal["default", "ai_agent", "payment", "media", "external_api", "database"]

#: Milliseconds by class; the first four are the time limits of actors (SPEC W4).
TIMEOUTS_MS: dict[str, float] = {
    "default": time_limits.DEFAULT_SECONDS * 1000,
    **{name: seconds * 1000 for name, seconds in time_limits.CLASSES.items()},
    "external_api": 30_000.0,
    "database": 10_000.0,
}
#: A day.
MAX_TIMEOUT_MS = 86_400_000.0
TIMEOUT = "TIMEOUT"
TOO_MANY_LEFT = "TOO_MANY_LEFT_OPERATIONS"
#: So many operations of a process may go on after their time; each has a thread.
MAX_LEFT = 100
#: How often the caller looks for what interrupts it: an interrupt does not reach a thread while it waits.
_LOOK_SECONDS = 0.05

_left: list[threading.Thread] = []
_counting = threading.Lock()


@overload
def with_timeout(
    operation: Callable[[], Coroutine[Any, Any, T]] | Awaitable[T],
    timeout_ms: float | TimeoutClass = "default",
    name: str | None = None,
) -> Coroutine[Any, Any, T]: ...
@overload
def with_timeout(
    operation: Callable[[], T], timeout_ms: float | TimeoutClass = "default", name: str | None = None
) -> T: ...
def with_timeout(
    operation: Any, timeout_ms: float | TimeoutClass = "default", name: str | None = None
) -> Any:
    """Run an operation for at most timeout_ms; what it returns, or raises.

    operation: a coroutine (or another awaitable), a function without arguments that makes one, or any other
    function without arguments. For the first two the answer is a coroutine: `await
    with_timeout(client.get(url), "external_api", "look up")`.
    timeout_ms: more than 0, at most a day, or the name of a class (TIMEOUTS_MS). name: for people; the
    function's own by default.

    After the time: WorkflowError with code `TIMEOUT`, recoverable and retryable, context `timeout_ms` and
    `operation_name`. A TimeoutError of the operation itself comes out as it is.

    A coroutine is cancelled; one that does not end when it is cancelled is waited for. A function runs in a
    thread of its own, in a copy of the caller's context (message, log values), and the caller waits for it.
    Nothing can end that thread from outside: after the time, or when the handler is interrupted, it goes on
    until the function returns, and what it returns is dropped. So give a function that has effects a limit of
    its own as well (a socket timeout, say). There current_connection() is not to be had: the handler's
    transaction belongs to the handler's thread. When 100 functions of the process go on so, the next is
    refused at once (WorkflowError, code `TOO_MANY_LEFT_OPERATIONS`, retryable). Not for functions in an event
    loop: the loop would wait as well.

    Raises InvalidArgument for a timeout that is none.
    """
    waits = inspect.isawaitable(operation)
    try:
        limit = milliseconds(timeout_ms)
    except InvalidArgument:
        if inspect.iscoroutine(operation):
            operation.close()  # nobody will await it
        raise
    title = mask(str(name or _name_of(operation))[:200])
    if waits or inspect.iscoroutinefunction(operation):
        return _await(operation, limit, title)
    return _call(operation, limit, title)


def milliseconds(timeout_ms: float | str) -> float:
    """The number that a timeout stands for. Raises InvalidArgument for one that is none."""
    if isinstance(timeout_ms, str):
        if timeout_ms in TIMEOUTS_MS:
            return TIMEOUTS_MS[timeout_ms]
        hint = did_you_mean(timeout_ms, TIMEOUTS_MS, f"Known: {', '.join(TIMEOUTS_MS)}.")
        raise InvalidArgument(
            f"timeout_ms: {timeout_ms[:100]!r} is no class of timeout", field="timeout_ms", hint=hint
        )
    if (
        isinstance(timeout_ms, bool)
        or not isinstance(timeout_ms, (int, float))
        or not 0 < timeout_ms <= MAX_TIMEOUT_MS
    ):
        raise InvalidArgument(
            "timeout_ms: not a number of milliseconds",
            field="timeout_ms",
            hint="More than 0, at most 86400000, or a class.",
        )
    return float(timeout_ms)


def _name_of(operation: Any) -> str:
    return getattr(operation, "__qualname__", None) or type(operation).__name__


def over(limit: float, title: str) -> WorkflowError:
    """The error of an operation whose time is over."""
    shown = int(limit) if limit == math.floor(limit) else limit
    return WorkflowError(
        f"{title} took longer than {shown} ms", TIMEOUT, {"timeout_ms": shown, "operation_name": title}
    )


async def _await(operation: Any, limit: float, title: str) -> Any:
    try:
        async with asyncio.timeout(limit / 1000) as timer:
            return await (operation if inspect.isawaitable(operation) else operation())
    except TimeoutError as error:
        if timer.expired():
            raise over(limit, title) from error
        raise


class _Threaded:
    """One function in its thread."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        self._operation = operation
        self._context = copy_context()
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._context.run(forks.contain, self._operation)
        except BaseException as error:  # for the caller
            self.error = error
        finally:
            self.done.set()


def _call(operation: Callable[[], Any], limit: float, title: str) -> Any:
    if _count_left() >= MAX_LEFT:
        raise WorkflowError(
            f"{title} was not started: {MAX_LEFT} operations of this process go on after their time",
            TOO_MANY_LEFT,
            {"operation_name": title},
        )
    call = _Threaded(operation)
    thread = threading.Thread(target=call.run, name="packhorse-timeout", daemon=True)
    deadline = time.monotonic() + limit / 1000
    thread.start()
    try:
        while not call.done.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise over(limit, title)
    finally:
        if not call.done.is_set():
            _leave(thread, title)
    if call.error is not None:
        try:
            raise call.error
        finally:
            call.error = None  # it keeps its frames alive
    # it has only made a coroutine: that is what is to be limited
    return _await(call.result, limit, title) if inspect.iscoroutine(call.result) else call.result


def _count_left() -> int:
    with _counting:
        _left[:] = [thread for thread in _left if thread.is_alive()]
        return len(_left)


def _leave(thread: threading.Thread, title: str) -> None:
    with _counting:
        _left.append(thread)
    logger.warning("operation_left operation_name=%s count=%d", title, _count_left())

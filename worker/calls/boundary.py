"""An error boundary around one operation: what goes wrong in it is said once, masked, and ends with the right
outcome (SPEC W9).

It hides nothing: whatever is raised goes on. What leaves it carries a judgement (worker/attempt/details.py),
by which Retries decides: an error that another attempt cannot help is a dead letter at once.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, wraps
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from packhorse.worker.attempt.context import boundary_correlation_id, current
from packhorse.worker.attempt.context import correlation_id as correlation_id_here
from packhorse.worker.attempt.details import Judgement, code_of, judge, judgement_of
from packhorse.worker.attempt.messages import text_of
from packhorse.worker.attempt.middleware.retries import ASKED
from packhorse.worker.calls.retryable import is_retryable_error
from packhorse.worker.calls.timeouts import TimeoutClass, milliseconds, over, with_timeout
from packhorse.worker.errors import AgentError, WorkflowError
from packhorse.worker.observe.bound import Bound, bind, unbind
from packhorse.worker.observe.contexts import MAX_TEXT, JsonObject, JsonValue, masked_context
from packhorse.worker.observe.masking import mask

logger = logging.getLogger("packhorse.calls")

F = TypeVar("F", bound=Callable[..., Any])

#: Keys of a context that log lines inside the boundary have; all others stand there under `context`.
LINE_KEYS = ("user_id", "user_phone", "message_id", "agent_type", "workflow_type")
MAX_NAME = 200
#: A correlation id that others sent: it goes into a header again, and into a column.
_CORRELATION_ID = re.compile(r"[\x20-\x7e]{1,200}")

_numbers = itertools.count(1)


class Operation:
    """One run of an operation inside a boundary. correlation_id: for the headers of what it calls."""

    def __init__(self, boundary: ErrorBoundary) -> None:
        self.boundary = boundary
        self.name = boundary.name
        self.outer = _running.get()
        message = current.message
        own = message.correlation_id if message is not None else None
        self.correlation_id: str = own or boundary.given_id or correlation_id_here() or str(uuid4())
        self._lease_token: int | None = message.lease_token if message is not None else None
        self.numbers: tuple[int, ...] = (
            next(_numbers),
            *(self.outer.numbers if self.outer is not None else ()),
        )
        self._id_before = boundary_correlation_id.get()
        self._bound: Bound = {}
        self._started = 0.0
        self.timer: asyncio.Timeout | None = None

    def __enter__(self) -> Operation:
        _running.set(self)
        boundary_correlation_id.set(self.correlation_id)
        # inside a handler message_id is that of the running message, in every line
        values = {
            key: value
            for key, value in self.boundary.line_values.items()
            if key != "message_id" or self._lease_token is None
        }
        self._bound = bind({**values, "operation_name": self.name, "correlation_id": self.correlation_id})
        self._started = time.monotonic()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            with suppress(Exception):  # nothing of ours may take the place of the error
                self._end(error, time.monotonic() - self._started)
        finally:
            unbind(self._bound)
            boundary_correlation_id.set(self._id_before)
            _running.set(self.outer)

    def _end(self, error: BaseException | None, seconds: float) -> None:
        if error is None:
            if logger.isEnabledFor(logging.INFO):  # masking takes 14 µs
                logger.info(
                    "operation_done operation_name=%s duration_seconds=%.3f correlation_id=%s",
                    self.name,
                    seconds,
                    mask(self.correlation_id),
                )
        elif isinstance(error, Exception) and not isinstance(error, ASKED):
            self._fail(error, seconds)

    def _fail(self, error: Exception, seconds: float) -> None:
        retryable = is_retryable_error(error)
        context: JsonObject = {
            "operation_name": self.name,
            "correlation_id": mask(self.correlation_id),
            **self.boundary.context,
        }
        inner = judgement_of(error)
        # it has left a boundary inside this one, which knows more
        if inner is not None and self.numbers[0] in inner.operations:
            context = masked_context(
                {
                    **inner.context,
                    **{key: value for key, value in context.items() if key not in inner.context},
                }
            )
            operations = inner.operations
        else:
            operations = self.numbers
        judge(error, Judgement(retryable, context, self.correlation_id, operations, self._lease_token))
        logger.warning(
            "operation_failed operation_name=%s code=%s error_class=%s retryable=%s duration_seconds=%.3f correlation_id=%s",
            self.name,
            code_of(error),
            mask(type(error).__name__[:MAX_NAME]),
            retryable,
            seconds,
            mask(self.correlation_id),
        )
        if isinstance(error, AgentError):
            agent = error.agent_type or self.boundary.context.get("agent_type")
            logger.warning(
                "agent_error agent_type=%s operation_name=%s code=%s recoverable=%s",
                None if agent is None else mask(str(agent)[:MAX_NAME]),
                self.name,
                code_of(error),
                error.recoverable is not False,
            )


_running: ContextVar[Operation | None] = ContextVar("packhorse_operation", default=None)


class ErrorBoundary:
    """A boundary: a decorator of functions and coroutine functions, and a context manager for `with` and
    `async with`.

    One may be entered any number of times, also at once, by threads and coroutines.
    """

    def __init__(
        self,
        operation: str,
        timeout_ms: float | TimeoutClass | None,
        given_id: str | None,
        context: dict[str, object],
    ) -> None:
        self.name = mask(str(operation)[:MAX_NAME])
        self.timeout_ms = None if timeout_ms is None else milliseconds(timeout_ms)
        self.given_id = (
            given_id if isinstance(given_id, str) and _CORRELATION_ID.fullmatch(given_id) else None
        )
        self.context: JsonObject = masked_context(
            {key: value for key, value in context.items() if value is not None and key != "operation_name"}
        )
        others = {key: value for key, value in self.context.items() if key not in LINE_KEYS}
        self.line_values: dict[str, JsonValue] = {
            key: self.context[key] for key in LINE_KEYS if key in self.context
        }
        if others:
            self.line_values["context"] = others

    def __call__(self, function: F) -> F:
        """The function inside the boundary, each call by itself. Below `@dramatiq.actor`, not above it."""
        if hasattr(function, "send_with_options"):
            raise TypeError(
                "with_error_boundary goes below @dramatiq.actor: it is around the function, not around the actor"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is a generator: put `with with_error_boundary(...)` into it")
        call = getattr(function, "__call__", None)  # noqa: B004
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

            @wraps(function)
            async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
                with Operation(self):
                    running = function(*args, **kwargs)
                    return await (
                        running
                        if self.timeout_ms is None
                        else with_timeout(running, self.timeout_ms, self.name)
                    )

            return cast(F, run_coroutine)

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with Operation(self):
                if self.timeout_ms is None:
                    return function(*args, **kwargs)
                return with_timeout(partial(function, *args, **kwargs), self.timeout_ms, self.name)

        return cast(F, run)

    def __enter__(self) -> Operation:
        if self.timeout_ms is not None:
            raise TypeError(
                "nothing can end a `with` block from outside: give timeout_ms to a decorator or to `async with`"
            )
        return Operation(self).__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        operation = self._last_entered()
        if operation is not None:
            operation.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Operation:
        operation = Operation(self).__enter__()
        if self.timeout_ms is not None:
            operation.timer = asyncio.timeout(self.timeout_ms / 1000)
            await operation.timer.__aenter__()
        return operation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        operation = self._last_entered()
        if operation is None:
            return
        timer = operation.timer
        if timer is not None and self.timeout_ms is not None:
            try:
                await timer.__aexit__(kind, error, traceback)
            except TimeoutError as expired:
                late = over(self.timeout_ms, self.name)
                late.__cause__ = expired
                operation.__exit__(type(late), late, None)
                raise late
        operation.__exit__(kind, error, traceback)

    def _last_entered(self) -> Operation | None:
        """The innermost operation of this boundary that runs here; None in another context than the one in
        which it was entered.
        """
        operation = _running.get()
        while operation is not None and operation.boundary is not self:
            operation = operation.outer
        return operation


def with_error_boundary(
    operation: str,
    *,
    timeout_ms: float | TimeoutClass | None = None,
    correlation_id: str | None = None,
    user_id: object = None,
    user_phone: str | None = None,
    message_id: object = None,
    agent_type: str | None = None,
    workflow_type: str | None = None,
    **context: object,
) -> ErrorBoundary:
    """Put an operation inside an error boundary: a decorator (`def` and `async def`), or a context manager
    (`with` and `async with`).

    One log line when it is done, `operation_done` with its duration; one when it fails, `operation_failed`
    with name, code and duration. Whatever is raised goes on to the caller. Inside a handler it ends the
    message so: an error of ours that is not retryable or not recoverable is a dead letter at once; an error
    of anybody else, too, unless is_retryable_error() says that another attempt may help; all others follow
    the retry policy. Snooze, Retry, Bury, Cancel and interrupts pass untouched and are no error.

    operation: its name, for people; at most 200 characters. timeout_ms: as of with_timeout(), with what that
    means for a function; not for `with`, which nothing can end from outside; None: the handler's own time
    limit alone. correlation_id: that of the running message comes first, and without any a new one is made;
    printable ASCII, at most 200 characters, else as if not given. user_id, user_phone, message_id,
    agent_type, workflow_type and all others are context: masked, kept with the failure in about 4,000
    characters, and in the log lines of what happens inside.
    """
    given = {
        "user_id": user_id,
        "user_phone": user_phone,
        "message_id": message_id,
        "agent_type": agent_type,
        "workflow_type": workflow_type,
    }
    return ErrorBoundary(operation, timeout_ms, correlation_id, {**given, **context})


class SafeResponse(NamedTuple):
    """What a web handler answers: HTTP status, JSON body, headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def safe_http_response(exception: BaseException, correlation_id: str | None = None) -> SafeResponse:
    """The answer of a web handler to an exception, without what nobody outside may see.

    400 for a WorkflowError that is not recoverable, else 500. The body says `error` (the masked text of a
    WorkflowError, nothing of any other) and `correlationId`, which is also the header `X-Correlation-ID`.
    correlation_id: what the request has in that header; without, that of the boundary which the exception has
    left or is in, else a new one.
    """
    judgement = judgement_of(exception)
    found = [
        correlation_id,
        judgement.correlation_id if judgement is not None else None,
        correlation_id_here(),
    ]
    known = next(
        (one for one in found if isinstance(one, str) and _CORRELATION_ID.fullmatch(one)), None
    ) or str(uuid4())
    status, text = 500, "internal error"
    if isinstance(exception, WorkflowError):
        status, text = 400 if exception.recoverable is False else 500, mask(text_of(exception)[:MAX_TEXT])
    return SafeResponse(status, {"error": text, "correlationId": known}, {"X-Correlation-ID": known})

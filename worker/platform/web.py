"""Handlers of HTTP requests, whatever the framework: an answer for every exception, and the correlation id on
the whole way.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from typing import Any, overload
from uuid import uuid4

from packhorse.worker.calls.boundary import SafeResponse, safe_http_response, with_error_boundary

CORRELATION_HEADER = "X-Correlation-ID"
Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
_FIT = re.compile(r"[\x20-\x7e]{1,200}")


def request_correlation_id(headers: Headers | None) -> str:
    """The correlation id of a request: what its header X-Correlation-ID says, else a new UUID.

    headers: a mapping, or pairs of name and value as ASGI has them; str or bytes, in any case. A value that
    is no printable ASCII of at most 200 characters counts as none.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    for name, value in pairs:
        if _text(name).lower() == CORRELATION_HEADER.lower() and _FIT.fullmatch(_text(value)):
            return _text(value)
    return str(uuid4())


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class SafeHandler:
    """What safe_http_handler() makes of functions."""

    def __init__(self, operation: str) -> None:
        self.operation = operation

    @overload
    def __call__(
        self, function: Callable[[Any, Headers], Awaitable[Any]]
    ) -> Callable[[Any, Headers], Awaitable[SafeResponse]]: ...
    @overload
    def __call__(self, function: Callable[[Any, Headers], Any]) -> Callable[[Any, Headers], SafeResponse]: ...

    def __call__(self, function: Callable[[Any, Headers], Any]) -> Callable[[Any, Headers], Any]:
        """The function with an answer for everything."""
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def answer_later(body: Any, headers: Headers) -> SafeResponse:
                correlation_id = request_correlation_id(headers)
                try:
                    async with with_error_boundary(self.operation, correlation_id=correlation_id):
                        return answer_of(await function(body, headers), correlation_id)
                except Exception as error:  # told by the boundary; the caller gets an answer
                    return safe_http_response(error, correlation_id)

            return answer_later

        @wraps(function)
        def answer(body: Any, headers: Headers) -> SafeResponse:
            correlation_id = request_correlation_id(headers)
            try:
                with with_error_boundary(self.operation, correlation_id=correlation_id):
                    return answer_of(function(body, headers), correlation_id)
            except Exception as error:  # as above
                return safe_http_response(error, correlation_id)

        return answer


def safe_http_handler(operation: str) -> SafeHandler:
    """A decorator for a function (`def` or `async def`) of body and headers that answers an HTTP request; the
    framework sends what it returns.

    The function returns a SafeResponse, a dict (status 200), or a status with a dict. It runs in an error
    boundary, so what it enqueues and calls has the correlation id of the request. An exception becomes 400
    for a WorkflowError that is not recoverable, else 500, and the body says `error` and `correlationId`; the
    text of exceptions that are not ours is not shown. Every answer has the header X-Correlation-ID.
    operation: the name of the boundary.
    """
    return SafeHandler(operation)


def answer_of(value: Any, correlation_id: str) -> SafeResponse:
    """What a handler returned, as an answer. Raises TypeError."""
    status, body = 200, value
    headers: Mapping[str, str] = {}
    if isinstance(value, SafeResponse):
        status, body, headers = value
    elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int):
        status, body = value
    if not isinstance(body, Mapping):
        raise TypeError(
            f"a handler of HTTP returns a dict, a status with a dict, or a SafeResponse, not {type(value).__name__}"
        )
    return SafeResponse(status, dict(body), {**headers, CORRELATION_HEADER: correlation_id})

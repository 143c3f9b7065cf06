"""Can another attempt help? Errors of other libraries are known by their kind, without importing those
libraries (PLATFORM 8).
"""

from __future__ import annotations

import errno
import re
import socket
from contextlib import suppress
from functools import lru_cache
from typing import Any

from packhorse.worker.attempt.details import own_flag
from packhorse.worker.calls.requests import AnswerTooLong
from packhorse.worker.errors import (
    AskedOutcome,
    Bury,
    Cancel,
    CancelInterrupt,
    DrainInterrupt,
    LeaseInterrupt,
    NotCompleted,
    ServiceFailed,
    StoreConflict,
    StoreError,
    StoreUnavailable,
)

#: HTTP: too many requests, service unavailable, gateway timeout. Any other status means that the same request
#: fails again.
RETRYABLE_STATUSES = frozenset({429, 503, 504})

#: Of the network, as the operating system names them.
_ERRNOS = frozenset(
    number
    for name in (
        "ECONNREFUSED",
        "ECONNRESET",
        "ECONNABORTED",
        "ETIMEDOUT",
        "EPIPE",
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENOTCONN",
    )
    if (number := getattr(errno, name, None)) is not None
)
#: How libraries call them: httpx, requests, aiohttp, urllib3, redis, psycopg, asyncpg, SQLAlchemy, SDKs of AI
#: providers.
_KINDS = re.compile(
    r"Timeout|TimedOut|ConnectError|Connect(?:ion|or)\w*Error|Connection(?:Refused|Reset|Closed|Aborted)|NetworkError|ProxyError"
    r"|Disconnected|NameResolution|RemoteProtocolError|IncompleteRead|PayloadError|ChunkedEncodingError|OperationalError|RateLimit"
    r"|TooManyRequests|ServiceUnavailable|Throttl"
)
_OURS = (StoreUnavailable, StoreConflict, NotCompleted, LeaseInterrupt, DrainInterrupt, CancelInterrupt)
#: Exceptions of one chain, and of one group, that are looked at.
_LONGEST = 10


def is_retryable_error(error: BaseException) -> bool:
    """Whether the same call may work a little later.

    What the error says of itself decides (`retryable`, `recoverable`, `should_retry`: all that are there).
    Else: a timeout, a network that is down, a connection that was refused or cut, a name that is not found,
    an HTTP status of 429, 503 or 504 (in `status_code`, `status` or those of `response`), a service of the
    registry that did not answer or answered with 500 and more, and what was raised `from` one of these. A
    group is retryable when all of its exceptions are.
    """
    return _look(error, _LONGEST)


def _look(error: BaseException, left: int) -> bool:
    if isinstance(error, AskedOutcome):
        return not isinstance(error, (Bury, Cancel))
    said = own_flag(error)
    if said is not None:
        return said
    if isinstance(error, BaseExceptionGroup):
        return left > 0 and all(_look(member, left - 1) for member in error.exceptions)
    if isinstance(error, StoreError):
        return isinstance(error, _OURS)
    status = _status(error)
    if isinstance(error, ServiceFailed):  # what its circuit breaker counts as a failure of the service
        return not isinstance(error, AnswerTooLong) and (
            status is None or status >= 500 or status in RETRYABLE_STATUSES
        )
    if status is not None:
        return status in RETRYABLE_STATUSES
    if isinstance(error, _OURS) or _is_of_the_network(error):
        return True
    below: object = error.__cause__
    if below is None:
        with suppress(Exception):
            below = getattr(error, "reason", None)  # where urllib keeps the error below
    return left > 0 and isinstance(below, BaseException) and _look(below, left - 1)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries; None when it carries none."""
    with suppress(Exception):  # attributes of others
        for carrier in (error, getattr(error, "response", None)):
            for name in ("status_code", "status"):
                found = getattr(carrier, name, None)
                if isinstance(found, int) and 100 <= found <= 599:
                    return int(found)
    return None


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError, socket.gaierror, socket.herror)):
        return True
    if isinstance(error, OSError) and isinstance(error.errno, int) and error.errno in _ERRNOS:
        return True
    kind: Any = type(error)
    return _is_named_so(kind)


@lru_cache(maxsize=512)
def _is_named_so(kind: type[Any]) -> bool:
    return any(_KINDS.search(base.__name__) for base in kind.__mro__)

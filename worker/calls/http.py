"""HTTP to one endpoint of a service: bounded in time and size, nothing remembered from one message for the
next. Needs the extra `http`.

Connections are kept in several small pools: one large one looks through all of its connections for each
request.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from packhorse.worker.calls.declarations import ServiceDeclaration
from packhorse.worker.calls.requests import AnswerTooLong, BadAnswer, HttpRequest, NotSent, ServiceResponse
from packhorse.worker.clock import Deadline
from packhorse.worker.errors import ConfigError, InvalidArgument, ServiceFailed

if TYPE_CHECKING:
    import httpx

HTTP_NEEDS = "requests need the package httpx: pip install 'packhorse[http]'"
#: Requests at once in one pool of connections.
POOL_REQUESTS = 16
#: An idle connection is closed after this: most servers wait longer, so that it is not found closed.
KEEP_SECONDS = 5.0

C = TypeVar("C")


class _Pool(Generic[C]):
    """A client and how many requests it has at once."""

    __slots__ = ("client", "requests")

    def __init__(self, client: C) -> None:
        self.client = client
        self.requests = 0


class HttpClients:
    """The clients of one service: one set for threads, one for each event loop."""

    def __init__(self, declaration: ServiceDeclaration) -> None:
        self._declaration = declaration
        self._lock = threading.Lock()
        self._pools: list[_Pool[httpx.Client]] = []
        self._of_loops: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[_Pool[httpx.AsyncClient]]
        ] = weakref.WeakKeyDictionary()

    def send(self, endpoint: str, request: HttpRequest) -> ServiceResponse:
        """One request. Raises ServiceFailed, ConfigError without httpx, InvalidArgument for a request that
        cannot be sent.
        """
        httpx = _httpx()
        deadline = Deadline(request.timeout_seconds)
        with self._lock:
            pool = _free(self._pools, lambda: httpx.Client(**_settings()))
        try:
            with (
                _translated(request, endpoint),
                pool.client.stream(**_arguments(request, endpoint)) as answer,
            ):
                body = _Body(request, endpoint, answer)
                for chunk in answer.iter_bytes():
                    body.add(chunk)
                    if deadline.passed:
                        raise _too_late(request, endpoint)
                return body.response()
        finally:
            with self._lock:
                pool.requests -= 1

    async def send_async(self, endpoint: str, request: HttpRequest) -> ServiceResponse:
        """As `send`, awaited."""
        httpx = _httpx()
        pool = _free(
            self._of_loops.setdefault(asyncio.get_running_loop(), []),
            lambda: httpx.AsyncClient(**_settings()),
        )
        limit = asyncio.timeout(request.timeout_seconds)
        try:
            with _translated(request, endpoint):
                async with limit, pool.client.stream(**_arguments(request, endpoint)) as answer:
                    body = _Body(request, endpoint, answer)
                    async for chunk in answer.aiter_bytes():
                        body.add(chunk)
                    return body.response()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise _too_late(request, endpoint) from error
        finally:
            pool.requests -= 1

    def close(self) -> None:
        """Close what threads have used; a loop's connections end with the loop."""
        with self._lock:
            pools, self._pools = self._pools, []
        for pool in pools:
            pool.client.close()


def _free(pools: list[_Pool[C]], make: Callable[[], C]) -> _Pool[C]:
    """The first pool with room, so that few connections are kept when there is little to do."""
    for pool in pools:
        if pool.requests < POOL_REQUESTS:
            break
    else:
        pool = _Pool(make())
        pools.append(pool)
    pool.requests += 1
    return pool


class _Body:
    """What has been read of an answer."""

    def __init__(self, request: HttpRequest, endpoint: str, answer: httpx.Response) -> None:
        self._request = request
        self._endpoint = endpoint
        self._answer = answer
        self._content = bytearray()
        announced = answer.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > request.max_bytes and request.method != "HEAD":
            raise self._too_long()

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        if len(self._content) > self._request.max_bytes:
            raise self._too_long()

    def _too_long(self) -> ServiceFailed:
        return AnswerTooLong(
            f"the service {self._request.service} answered with more than {self._request.max_bytes} bytes (max_bytes)",
            service=self._request.service,
            endpoint=self._endpoint,
        )

    def response(self) -> ServiceResponse:
        """Raises BadAnswer for a status that says that the service failed."""
        answer = self._answer
        headers = {name.lower(): value for name, value in answer.headers.items()}
        response = ServiceResponse(answer.status_code, headers, bytes(self._content), self._endpoint)
        if response.status_code >= 500 or response.status_code == 429:
            raise BadAnswer(self._request.service, response)
        return response


def _too_late(request: HttpRequest, endpoint: str) -> ServiceFailed:
    return ServiceFailed(
        f"the service {request.service} has not answered within {request.timeout_seconds:g} s",
        service=request.service,
        endpoint=endpoint,
    )


@contextmanager
def _translated(request: HttpRequest, endpoint: str) -> Iterator[None]:
    """httpx's errors as ours. Their texts may quote a part of the request: only their class is told."""
    httpx = _httpx()
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        text = f"no connection to the service {request.service}: {type(error).__name__}: {error}"
        raise NotSent(text[:500], service=request.service, endpoint=endpoint) from error
    except httpx.TimeoutException as error:
        raise _too_late(request, endpoint) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
        raise InvalidArgument(
            f"request: cannot be sent: {type(error).__name__}: {error}", field="request"
        ) from error
    except (httpx.RequestError, httpx.StreamError) as error:
        raise ServiceFailed(
            f"the service {request.service} broke off: {type(error).__name__}",
            service=request.service,
            endpoint=endpoint,
        ) from error


def _arguments(request: HttpRequest, endpoint: str) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.url(endpoint),
        "params": request.params,
        "headers": dict(request.headers),
        "content": request.content,
        "timeout": request.timeout_seconds,
    }


_tls: list[ssl.SSLContext] = []


def _settings() -> dict[str, Any]:
    """Of a client: redirects are not followed and cookies not kept, for what one message was answered is no
    concern of the next.
    """
    httpx = _httpx()
    if not _tls:
        _tls.append(httpx.create_ssl_context())
    if logging.getLogger("httpx").level == logging.NOTSET:
        # it writes every URL with its query into the log
        logging.getLogger("httpx").setLevel(logging.WARNING)
    return {
        "verify": _tls[0],
        "cookies": CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        "follow_redirects": False,
        "limits": httpx.Limits(
            max_connections=None, max_keepalive_connections=POOL_REQUESTS, keepalive_expiry=KEEP_SECONDS
        ),
    }


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise ConfigError([HTTP_NEEDS]) from None
    return httpx

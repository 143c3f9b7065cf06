"""HTTP to one endpoint of a service: bounded in time and size, nothing remembered from one message for the next. Needs the extra `http`.

The statuses 5xx and 429, and everything that is no answer, are ServiceFailed. Connections are kept in several small pools: one large one
looks through all of its connections for each request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from packhorse.worker.attempt.context import correlation_id, current_message
from packhorse.worker.calls.declarations import ServiceDeclaration
from packhorse.worker.clock import Deadline
from packhorse.worker.errors import ConfigError, InvalidArgument, ServiceFailed
from packhorse.worker.version import __version__

if TYPE_CHECKING:
    import httpx

HTTP_NEEDS = "requests need the package httpx: pip install 'packhorse[http]'"
#: Requests at once in one pool of connections.
POOL_REQUESTS = 16
#: An idle connection is closed after this: most servers wait longer, so that it is not found closed.
KEEP_SECONDS = 5.0
MOST_RETRY_AFTER_SECONDS = 86_400.0
#: Methods that another endpoint may be asked by, too, when it is not known whether the first has done it.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
UNSAFE = frozenset({"POST", "PATCH", "PUT", "DELETE"})
_HEADER_TEXT = re.compile(r"[\x20-\x7e]{1,200}")

Scalar = str | int | float | bool | None


class RequestOptions(TypedDict, total=False):
    """Options of `request`.

    json: a value that becomes the body. content: the body itself. data: a form. params: the query. headers: beside those of the service.
    timeout_ms: of the whole call, 100..3600000; default: the service's. max_bytes: of the answer; default: the service's.
    idempotency_key: sent as Idempotency-Key; default for POST, PATCH, PUT and DELETE inside a handler: one of the message and this request,
    the same in every attempt as long as the body is; "": none. check: False: an answer of 400 and more is returned, not raised.
    retry_after: False: a 429 that says how long to wait does not park the service.
    """

    json: object
    content: str | bytes
    data: Mapping[str, str]
    params: Mapping[str, Scalar]
    headers: Mapping[str, str]
    timeout_ms: int
    max_bytes: int
    idempotency_key: str
    check: bool
    retry_after: bool


OPTIONS = tuple(RequestOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class ServiceResponse:
    """An answer, whole. headers: names in lower case; of a name that comes twice both values, with a comma between."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)
    endpoint: str

    @property
    def text(self) -> str:
        """The body as text, by the charset that it says, else UTF-8; what cannot be read is replaced."""
        charset = re.search(r"charset=\"?([\w.-]+)", self.headers.get("content-type", ""))
        try:
            return self.content.decode(charset[1] if charset else "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.content)


class BadAnswer(ServiceFailed):
    """An answer whose status says that the service failed."""

    def __init__(self, service: str, response: ServiceResponse) -> None:
        self.response = response
        super().__init__(
            f"the service {service} answered with status {response.status_code}",
            service=service,
            endpoint=response.endpoint,
            status_code=response.status_code,
            retry_after=retry_after_seconds(response.headers) if response.status_code in (429, 503) else None,
        )


class NotSent(ServiceFailed):
    """There was no connection: the service has not seen the request."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request without its endpoint, checked."""

    service: str
    method: str
    path: str
    headers: Mapping[str, str]
    params: Mapping[str, Scalar] | None
    content: bytes | None
    timeout_seconds: float
    max_bytes: int
    check: bool
    retry_after: bool

    def url(self, endpoint: str) -> str:
        return f"{endpoint}/{self.path.lstrip('/')}" if self.path and not self.path.startswith("?") else endpoint + self.path

    def may_go_elsewhere(self, error: ServiceFailed) -> bool:
        """May another endpoint be asked after this failure? Yes when the first has not seen it, or when doing it twice is as good as once."""
        if isinstance(error, NotSent):
            return True
        return self.method in IDEMPOTENT and error.status_code != 429 and not isinstance(error, AnswerTooLong)


class AnswerTooLong(ServiceFailed):
    """An answer of more than max_bytes; the rest of it was not read."""


def prepare(declaration: ServiceDeclaration, method: str, path: str, options: RequestOptions) -> HttpRequest:
    """Check a request and give it its headers. Raises InvalidArgument, which names the option."""
    for name in options:
        if name not in OPTIONS:
            raise InvalidArgument(f"{name}: request has no such option", field=name, hint=f"One of {', '.join(OPTIONS)}.")
    if not isinstance(method, str) or not re.fullmatch(r"[A-Za-z]{1,20}", method):
        raise InvalidArgument("method: must be a word like GET or POST", field="method")
    if not isinstance(path, str) or "://" in path.partition("?")[0] or path.startswith("//") or re.search(r"[\x00-\x20\x7f]", path):
        raise InvalidArgument("path: must be what comes behind the endpoint, without blanks", field="path", hint="Quote it with urllib.parse.quote.")
    content, kind = _body(options)
    headers: dict[str, str] = {"user-agent": f"packhorse/{__version__}", "accept": "*/*"}
    if kind is not None:
        headers["content-type"] = kind
    given = declaration.headers() if callable(declaration.headers) else declaration.headers
    for said in (given or {}, options.get("headers") or {}):
        headers |= {name.lower(): value for name, value in said.items()}
    found = correlation_id()
    if isinstance(found, str) and _HEADER_TEXT.fullmatch(found):
        headers.setdefault("x-correlation-id", found)
    if method.upper() in UNSAFE and "idempotency-key" not in headers:
        key = options.get("idempotency_key")
        key = _idempotency_key(declaration.name, method.upper(), path, content) if key is None else key
        if key:
            headers["idempotency-key"] = key
    timeout_ms, max_bytes = options.get("timeout_ms", declaration.timeout_ms), options.get("max_bytes", declaration.max_bytes)
    for name, value, low, high in (("timeout_ms", timeout_ms, 100, 3_600_000), ("max_bytes", max_bytes, 1, 2**40)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidArgument(f"{name}: must be a number from {low} to {high}", field=name)
    return HttpRequest(
        service=declaration.name,
        method=method.upper(),
        path=path,
        headers=headers,
        params=options.get("params"),
        content=content,
        timeout_seconds=timeout_ms / 1000,
        max_bytes=max_bytes,
        check=options.get("check", True),
        retry_after=options.get("retry_after", True),
    )


def _body(options: RequestOptions) -> tuple[bytes | None, str | None]:
    given = [name for name in ("json", "content", "data") if options.get(name) is not None]
    if len(given) > 1:
        raise InvalidArgument(f"{given[1]}: give one of json, content and data", field=given[1])
    if options.get("json") is not None:
        try:
            return json.dumps(options["json"], allow_nan=False, separators=(",", ":")).encode(), "application/json"
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"json: cannot be written as JSON: {error}", field="json") from None
    if options.get("data") is not None:
        from urllib.parse import urlencode

        return urlencode(options["data"]).encode(), "application/x-www-form-urlencoded"
    content = options.get("content")
    return (content.encode() if isinstance(content, str) else content), None


_sent_lock = threading.Lock()


def _idempotency_key(service: str, method: str, path: str, content: bytes | None) -> str | None:
    """Of the running message and this request; None outside a handler. The second time in one attempt that the same is sent it is another one."""
    message = current_message()
    if message is None:
        return None
    digest = hashlib.sha256()
    for part in (message.message_id, str(message.id), service, method, path, hashlib.sha256(content or b"").hexdigest()):
        digest.update(part.encode("utf-8", "replace") + b"\x00")
    key = digest.hexdigest()[:48]
    with _sent_lock:
        if message.requests_sent is None:
            message.requests_sent = {}
        number = message.requests_sent[key] = message.requests_sent.get(key, 0) + 1
    return key if number == 1 else f"{key}-{number}"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks: seconds, or a time that is seen from the Date of the same answer; at most a day. None when it says neither."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return min(float(text), MOST_RETRY_AFTER_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    return min(max(0.0, seconds), MOST_RETRY_AFTER_SECONDS)


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
        self._of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Pool[httpx.AsyncClient]]] = weakref.WeakKeyDictionary()

    def send(self, endpoint: str, request: HttpRequest) -> ServiceResponse:
        """One request. Raises ServiceFailed, ConfigError without httpx, InvalidArgument for a request that cannot be sent."""
        httpx = _httpx()
        deadline = Deadline(request.timeout_seconds)
        with self._lock:
            pool = _free(self._pools, lambda: httpx.Client(**_settings()))
        try:
            with _translated(request, endpoint), pool.client.stream(**_arguments(request, endpoint)) as answer:
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
        pool = _free(self._of_loops.setdefault(asyncio.get_running_loop(), []), lambda: httpx.AsyncClient(**_settings()))
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
        f"the service {request.service} has not answered within {request.timeout_seconds:g} s", service=request.service, endpoint=endpoint
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
        raise InvalidArgument(f"request: cannot be sent: {type(error).__name__}: {error}", field="request") from error
    except (httpx.RequestError, httpx.StreamError) as error:
        raise ServiceFailed(f"the service {request.service} broke off: {type(error).__name__}", service=request.service, endpoint=endpoint) from error


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
    """Of a client: redirects are not followed and cookies not kept, for what one message was answered is no concern of the next."""
    httpx = _httpx()
    if not _tls:
        _tls.append(httpx.create_ssl_context())
    if logging.getLogger("httpx").level == logging.NOTSET:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes every URL with its query into the log
    return {
        "verify": _tls[0],
        "cookies": CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        "follow_redirects": False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=POOL_REQUESTS, keepalive_expiry=KEEP_SECONDS),
    }


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise ConfigError([HTTP_NEEDS]) from None
    return httpx

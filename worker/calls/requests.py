"""A request to a service and its answer, checked, without a connection: options, headers, idempotency key,
what counts as a failure.

The statuses 5xx and 429, and everything that is no answer, are ServiceFailed. worker/calls/http.py sends.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypedDict

from packhorse.worker.attempt.context import correlation_id, current_message
from packhorse.worker.calls.declarations import ServiceDeclaration
from packhorse.worker.errors import InvalidArgument, ServiceFailed
from packhorse.worker.version import __version__

MOST_RETRY_AFTER_SECONDS = 86_400.0
#: Methods that another endpoint may be asked by, too, when it is not known whether the first has done it.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
UNSAFE = frozenset({"POST", "PATCH", "PUT", "DELETE"})
_HEADER_TEXT = re.compile(r"[\x20-\x7e]{1,200}")

Scalar = str | int | float | bool | None


class RequestOptions(TypedDict, total=False):
    """Options of `request`.

    json: a value that becomes the body. content: the body itself. data: a form. params: the query. headers:
    beside those of the service. timeout_ms: of the whole call, 100..3600000; default: the service's.
    max_bytes: of the answer; default: the service's. idempotency_key: sent as Idempotency-Key; default for
    POST, PATCH, PUT and DELETE inside a handler: one of the message and this request, the same in every
    attempt as long as the body is; "": none. check: False: an answer of 400 and more is returned, not raised.
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
    """An answer, whole. headers: names in lower case; of a name that comes twice both values, with a comma
    between.
    """

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
        return (
            f"{endpoint}/{self.path.lstrip('/')}"
            if self.path and not self.path.startswith("?")
            else endpoint + self.path
        )

    def may_go_elsewhere(self, error: ServiceFailed) -> bool:
        """May another endpoint be asked after this failure? Yes when the first has not seen it, or when doing
        it twice is as good as once.
        """
        if isinstance(error, NotSent):
            return True
        return self.method in IDEMPOTENT and error.status_code != 429 and not isinstance(error, AnswerTooLong)


class AnswerTooLong(ServiceFailed):
    """An answer of more than max_bytes; the rest of it was not read."""


def prepare(declaration: ServiceDeclaration, method: str, path: str, options: RequestOptions) -> HttpRequest:
    """Check a request and give it its headers. Raises InvalidArgument, which names the option."""
    for name in options:
        if name not in OPTIONS:
            raise InvalidArgument(
                f"{name}: request has no such option", field=name, hint=f"One of {', '.join(OPTIONS)}."
            )
    if not isinstance(method, str) or not re.fullmatch(r"[A-Za-z]{1,20}", method):
        raise InvalidArgument("method: must be a word like GET or POST", field="method")
    if (
        not isinstance(path, str)
        or "://" in path.partition("?")[0]
        or path.startswith("//")
        or re.search(r"[\x00-\x20\x7f]", path)
    ):
        raise InvalidArgument(
            "path: must be what comes behind the endpoint, without blanks",
            field="path",
            hint="Quote it with urllib.parse.quote.",
        )
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
    timeout_ms, max_bytes = (
        options.get("timeout_ms", declaration.timeout_ms),
        options.get("max_bytes", declaration.max_bytes),
    )
    for name, value, low, high in (
        ("timeout_ms", timeout_ms, 100, 3_600_000),
        ("max_bytes", max_bytes, 1, 2**40),
    ):
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
            return json.dumps(
                options["json"], allow_nan=False, separators=(",", ":")
            ).encode(), "application/json"
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"json: cannot be written as JSON: {error}", field="json") from None
    if options.get("data") is not None:
        from urllib.parse import urlencode

        return urlencode(options["data"]).encode(), "application/x-www-form-urlencoded"
    content = options.get("content")
    return (content.encode() if isinstance(content, str) else content), None


_sent_lock = threading.Lock()


def _idempotency_key(service: str, method: str, path: str, content: bytes | None) -> str | None:
    """Of the running message and this request; None outside a handler. The second time in one attempt that
    the same is sent it is another one.
    """
    message = current_message()
    if message is None:
        return None
    digest = hashlib.sha256()
    for part in (
        message.message_id,
        str(message.id),
        service,
        method,
        path,
        hashlib.sha256(content or b"").hexdigest(),
    ):
        digest.update(part.encode("utf-8", "replace") + b"\x00")
    key = digest.hexdigest()[:48]
    with _sent_lock:
        if message.requests_sent is None:
            message.requests_sent = {}
        number = message.requests_sent[key] = message.requests_sent.get(key, 0) + 1
    return key if number == 1 else f"{key}-{number}"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks: seconds, or a time that is seen from the Date of the same answer; at most a day.
    None when it says neither.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,9})?", text):
        return min(float(text), MOST_RETRY_AFTER_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, seconds), MOST_RETRY_AFTER_SECONDS)

"""What packhorse.toml says of message types that an endpoint handles: `[push."order.*"]` (SPEC W8). Every
problem is found at once, at the start.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from packhorse.worker.calls.declarations import ServiceDeclaration, declare, tables_in_toml
from packhorse.worker.calls.push.addresses import literal, problem_of
from packhorse.worker.calls.push.signing import read_secrets
from packhorse.worker.config import NAME_PATTERN, Settings
from packhorse.worker.errors import ConfigError
from packhorse.worker.suggest import near_miss

SECTION = "push"
TYPE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,99}\*?")
MAX_ANSWER_BYTES = 65_536
MOST_ANSWER_BYTES = 16 * 1024 * 1024
MOST_IN_FLIGHT = 10_000
MOST_URL = 500
FIELDS = (
    "url",
    "secret_file",
    "queue",
    "timeout",
    "max_in_flight",
    "max_answer_bytes",
    "max_attempts",
    "allow_private",
    "allow_http",
    "breaker",
)
Wrong = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class PushDeclaration:
    """Message types and the endpoint that handles them.

    types: a type, or a pattern such as `order.*`. service: with its breaker and time limit; messages of one
    URL share it. max_in_flight: requests at once per process. max_answer_bytes: of an answer, unpacked.
    max_attempts: None: as the queue says. allow_private: the address may be in a private network.
    allow_http: http:// may leave this host.
    """

    types: str
    url: str
    secret_file: Path
    service: ServiceDeclaration
    queue: str = "default"
    max_in_flight: int = 20
    max_answer_bytes: int = MAX_ANSWER_BYTES
    max_attempts: int | None = None
    allow_private: bool = False
    allow_http: bool = False

    @property
    def only_loopback(self) -> bool:
        return self.url.startswith("http://") and not self.allow_http


def declared_pushes(
    path: Path | None = None, environ: Mapping[str, str] | None = None, queues: Collection[str] = ()
) -> list[PushDeclaration]:
    """The tables [push.TYPES] of packhorse.toml; none without one. queues: only those on one of these, for a
    process that works on no other and may lack their secrets; empty: all. Raises ConfigError with every
    problem of all of them.
    """
    found, problems = [], []
    for types, said, where in tables_in_toml(SECTION, path, environ):
        if queues and said.get("queue", "default") not in queues:
            continue
        try:
            found.append(declare_push(types, said, where))
        except ConfigError as error:
            problems += error.problems
    services: dict[str, PushDeclaration] = {}
    for push in found:
        first = services.setdefault(push.url, push)
        if first.service != push.service:
            problems.append(
                f"push {push.types!r}: timeout, breaker: {first.types!r} has the same url and other values; one endpoint has one breaker"
            )
    if problems:
        raise ConfigError(problems)
    return found


def declare_push(types: str, said: Mapping[str, Any], where: str) -> PushDeclaration:
    """Check one table. where: put before each problem. Raises ConfigError with every problem."""
    problems: list[str] = []

    def wrong(place: str, text: str) -> None:
        problems.append(f"{where}: {place}: {text}")

    if not TYPE_PATTERN.fullmatch(types):
        wrong(
            "name",
            'must be a message type such as order.created, or a pattern that ends in *, such as "order.*"',
        )
    for key in sorted(set(said) - set(FIELDS)):
        near = near_miss(str(key), FIELDS)
        wrong(
            str(key)[:60],
            "there is no such field"
            + (f"; did you mean {near!r}?" if near else f"; one of {', '.join(FIELDS)}"),
        )
    private, http = _flag(said, "allow_private", wrong), _flag(said, "allow_http", wrong)
    url = _url(said.get("url"), wrong, allow_private=private, allow_http=http)
    secret_file = _secret_file(said.get("secret_file"), wrong)
    queue = said.get("queue", "default")
    if not isinstance(queue, str) or not re.fullmatch(NAME_PATTERN, queue):
        wrong("queue", "must be the name of a queue")
    numbers = {
        name: _whole(said, name, usual, most, wrong)
        for name, usual, most in (
            ("max_in_flight", 20, MOST_IN_FLIGHT),
            ("max_answer_bytes", MAX_ANSWER_BYTES, MOST_ANSWER_BYTES),
            ("max_attempts", None, 1_000_000),
        )
    }
    service = _service(url, said, wrong)
    if problems or service is None:
        raise ConfigError(problems)
    return PushDeclaration(
        types=types,
        url=url,
        secret_file=secret_file,
        service=service,
        queue=queue,
        max_in_flight=numbers["max_in_flight"] or 20,
        max_answer_bytes=numbers["max_answer_bytes"] or MAX_ANSWER_BYTES,
        max_attempts=numbers["max_attempts"],
        allow_private=private,
        allow_http=http,
    )


def _service(url: str, said: Mapping[str, Any], wrong: Wrong) -> ServiceDeclaration | None:
    """The service of an endpoint: named after its host, for people, and its URL."""
    if not url:
        return None
    host = re.sub(r"[^A-Za-z0-9.-]", "-", urlsplit(url).hostname or "")[:60]
    name = f"push.{host}.{hashlib.sha256(url.encode()).hexdigest()[:6]}"
    fields = {key: said[key] for key in ("timeout", "breaker") if key in said}
    try:
        return declare(name, {"url": url, **fields}, SECTION)
    except ConfigError as error:
        for problem in error.problems:
            place, _, text = problem.removeprefix(f"{SECTION}: ").partition(": ")
            wrong(place, text)
        return None


def _url(value: Any, wrong: Wrong, *, allow_private: bool, allow_http: bool) -> str:
    """The URL without a slash at its end; "" and a problem when a push may not go there."""
    if not isinstance(value, str) or not value:
        wrong("url", "must be a text like https://hooks.example.com/packhorse")
        return ""
    if len(value) > MOST_URL or not value.isascii() or re.search(r"[\s\x00-\x1f\x7f]", value):
        wrong("url", f"must be ASCII without blanks, {MOST_URL} characters at most")
        return ""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        wrong("url", "cannot be read as a URL")
        return ""
    problem = _problem_of_url(parts) or _problem_of_host(
        parts.hostname or "",
        only_loopback=parts.scheme == "http" and not allow_http,
        allow_private=allow_private,
    )
    if problem is not None:
        wrong("url", problem)
        return ""
    return value.rstrip("/")


def _problem_of_url(parts: SplitResult) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "must begin with https:// (or http:// on this host)"
    if not parts.hostname:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "has a user or a password in it, which everybody would see; the signature says who sends"
    if parts.query or parts.fragment:
        return (
            "has a query or a fragment, which everybody would see; put what the endpoint needs into the path"
        )
    return None


def _problem_of_host(host: str, *, only_loopback: bool, allow_private: bool) -> str | None:
    """Addresses, and what is a name of this host. Of other names every connection checks the address."""
    address = literal("127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host)
    if address is not None:
        problem = problem_of(address, allow_private=allow_private, only_loopback=only_loopback)
        return None if problem is None else f"{host} {problem}"
    if only_loopback:
        return (
            "http:// shows payload and signature to everybody on the way; use https, or set allow_http = true"
        )
    return None


def require_handlers(settings: Settings) -> None:
    """Raise ConfigError when there is neither a module with actors nor a push in packhorse.toml, or a push is
    wrong.
    """
    if not settings.actors and not declared_pushes(queues=settings.queues):
        raise ConfigError(
            [
                "actors: none given; name the modules that declare actors: packhorse worker my_app.actors, or PACKHORSE_ACTORS; "
                'or bind a message type to an endpoint: [push."order.*"] in packhorse.toml'
            ]
        )


def _secret_file(value: Any, wrong: Wrong) -> Path:
    if not isinstance(value, str) or not value.strip():
        wrong("secret_file", "must name the file with the secret, one or two lines that begin with whsec_")
        return Path()
    path = Path(value).expanduser()
    try:
        _, problems = read_secrets(path)
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        wrong("secret_file", problem)
    return path


def _flag(said: Mapping[str, Any], name: str, wrong: Wrong) -> bool:
    value = said.get(name, False)
    if not isinstance(value, bool):
        wrong(name, "must be true or false")
        return False
    return value


def _whole(said: Mapping[str, Any], name: str, usual: int | None, most: int, wrong: Wrong) -> int | None:
    if name not in said:
        return usual
    value = said[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        wrong(name, f"must be a whole number from 1 to {most}")
        return usual
    return value

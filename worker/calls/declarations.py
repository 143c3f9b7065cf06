"""What is said of a service: in code (`register_service`) or in packhorse.toml (`[services.NAME]`). Every
problem is found at once.

A declaration is data and has no effect; registry.py makes a service of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

from packhorse.worker.calls.timeouts import TIMEOUTS_MS
from packhorse.worker.config import NAME_PATTERN, read_document
from packhorse.worker.errors import ConfigError
from packhorse.worker.suggest import or_near

MAX_BYTES = 10 * 1024 * 1024
MOST_ENDPOINTS = 50
MOST_ENDPOINT_LENGTH = 500
#: A probe may outlast the timeout of a call by as long again, and this at most, before the next one begins.
MOST_GRACE_SECONDS = 10.0

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When the breaker of an endpoint opens and closes.

    failure_ratio: 0..1 of the calls of the last window_seconds (1..3600), of which there must be least_calls
    (1..10000). After reset_seconds (0.05..86400) it is probed, one call at a time; trials (1..100) successes
    close it. most_in_row failures in a row open it, too: after hours of success the ratio of a window would
    see an outage late.
    """

    failure_ratio: float = 0.5
    least_calls: int = 5
    reset_seconds: float = 60.0
    trials: int = 3
    window_seconds: float = 60.0

    @property
    def most_in_row(self) -> int:
        """As the database counts (functions/breakers.sql)."""
        return 4 * self.least_calls


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often `request` tries again by itself, after backoff_ms, doubled each time. Without one the queue's
    own retries do it.
    """

    max_retries: int = 3
    backoff_ms: int = 1000


class ServiceOptions(TypedDict, total=False):
    """Options of `register_service`.

    endpoints: in place of url. fallback: asked when none of them can be. health_check_url: whole, or a path
    behind each endpoint; health_check_interval_ms: 30000. timeout: milliseconds of one call, 100..3600000, or
    a class (default, ai_agent, payment, media, external_api, database). kind: standard, or ai_agent (opens at
    60 % of 3 calls, for 120 s). breaker, retry_policy: as such or as tables of their fields; without
    retry_policy `request` does not try again. max_bytes: of an answer, 10 MiB. headers: of every request, or
    a function that makes them. is_failure: does this exception speak against the service? metadata: yours.
    """

    endpoints: Sequence[str]
    fallback: Sequence[str]
    health_check_url: str
    health_check_interval_ms: int
    timeout: int | str
    kind: str
    breaker: BreakerPolicy | Mapping[str, float]
    retry_policy: RetryPolicy | Mapping[str, int]
    max_bytes: int
    headers: Headers
    is_failure: Callable[[BaseException], bool]
    metadata: Mapping[str, Any]


#: What a kind of service means where nothing else is said: breaker and timeout class.
KINDS = {"standard": (BreakerPolicy(), "default"), "ai_agent": (BreakerPolicy(0.6, 3, 120.0, 2), "ai_agent")}

_BREAKER_BOUNDS: dict[str, tuple[float, float]] = {
    "failure_ratio": (0.01, 1),
    "least_calls": (1, 10_000),
    "reset_seconds": (0.05, 86_400),
    "trials": (1, 100),
    "window_seconds": (1, 3600),
}
_RETRY_BOUNDS: dict[str, tuple[float, float]] = {"max_retries": (0, 10), "backoff_ms": (1, 60_000)}


@dataclass(frozen=True, slots=True)
class ServiceDeclaration:
    """A service as it was declared. fallback: endpoints that are asked only when no other can be. timeout_ms:
    of one call.
    """

    name: str
    endpoints: tuple[str, ...]
    fallback: tuple[str, ...] = ()
    health_check_url: str | None = None
    health_check_interval_ms: int = 30_000
    timeout_ms: int = 30_000
    kind: str = "standard"
    breaker: BreakerPolicy = BreakerPolicy()
    retry_policy: RetryPolicy | None = None
    max_bytes: int = MAX_BYTES
    metadata: Mapping[str, Any] = field(default_factory=dict)
    headers: Headers | None = field(default=None, repr=False, compare=False)
    is_failure: Callable[[BaseException], bool] | None = field(default=None, repr=False, compare=False)

    @property
    def probe_lease_seconds(self) -> float:
        """A probe that nobody ends is over after this."""
        return self.timeout_ms / 1000 + min(MOST_GRACE_SECONDS, self.timeout_ms / 1000)

    def health_url(self, endpoint: str) -> str | None:
        """Where the health of an endpoint is asked; None: nowhere."""
        if self.health_check_url is None:
            return None
        if "://" in self.health_check_url:
            return self.health_check_url
        return f"{endpoint}/{self.health_check_url.lstrip('/')}"

    def rows(self) -> list[dict[str, Any]]:
        """What the database keeps of it, one object per endpoint."""
        policy = self.breaker
        return [
            {
                "endpoint": endpoint,
                "fallback": endpoint in self.fallback,
                "health_url": self.health_url(endpoint),
                "open_ratio": policy.failure_ratio,
                "least_calls": policy.least_calls,
                "close_after": policy.trials,
                "reset_after": policy.reset_seconds,
                "judged_over": policy.window_seconds,
                "probe_lease": self.probe_lease_seconds,
                "check_every": self.health_check_interval_ms / 1000,
            }
            for endpoint in (*self.endpoints, *self.fallback)
        ]


FIELDS = (
    "url",
    *(f.name.replace("timeout_ms", "timeout") for f in fields(ServiceDeclaration) if f.name != "name"),
)


def declare(name: str, said: Mapping[str, Any], where: str | None = None) -> ServiceDeclaration:
    """Check what was said of a service. where: put before each problem. Raises ConfigError with every
    problem.
    """
    problems: list[str] = []

    def wrong(place: str, text: str) -> None:
        problems.append(f"{where or f'service {name!r}'}: {place}: {text}")

    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        wrong(
            "name",
            "a letter or underscore, then letters, digits, dot, underscore or dash; 100 characters at most",
        )
    for key in sorted(set(said) - set(FIELDS)):
        wrong(
            str(key)[:60],
            "there is no such field" + or_near(str(key), FIELDS, f"; one of {', '.join(FIELDS)}"),
        )
    given = {key: value for key, value in said.items() if value is not None}
    kind = given.get("kind", "standard")
    if kind not in KINDS:
        wrong("kind", f"{str(kind)[:60]!r} is not one of {', '.join(KINDS)}{or_near(str(kind), KINDS)}")
        kind = "standard"
    policy, timeout_class = KINDS[kind]
    endpoints = _endpoints(given, wrong)
    fallback = _urls("fallback", given.get("fallback", ()), wrong)
    if not endpoints and not given.get("url") and not given.get("endpoints"):
        wrong("endpoints", "there is none; give url, or endpoints with at least one")
    for endpoint in sorted({e for e in (*endpoints, *fallback) if (*endpoints, *fallback).count(e) > 1}):
        wrong("endpoints", f"{endpoint!r} is given twice")
    if len(endpoints) + len(fallback) > MOST_ENDPOINTS:
        wrong("endpoints", f"there are {len(endpoints) + len(fallback)}, {MOST_ENDPOINTS} at most")
    breaker = _group("breaker", given.get("breaker"), policy, _BREAKER_BOUNDS, wrong)
    retry = (
        _group("retry_policy", given["retry_policy"], RetryPolicy(), _RETRY_BOUNDS, wrong)
        if "retry_policy" in given
        else None
    )
    headers, is_failure, metadata = given.get("headers"), given.get("is_failure"), given.get("metadata", {})
    if headers is not None and not callable(headers) and not _are_headers(headers):
        wrong("headers", "must be a table of texts, or a function that returns one")
    if is_failure is not None and not callable(is_failure):
        wrong("is_failure", "must be a function that takes an exception")
    if not isinstance(metadata, Mapping):
        wrong("metadata", "must be a table")
    declaration = ServiceDeclaration(
        name=name,
        endpoints=endpoints,
        fallback=fallback,
        health_check_url=_health_url(given.get("health_check_url"), (*endpoints, *fallback), wrong),
        health_check_interval_ms=int(
            _number(
                "health_check_interval_ms",
                given.get("health_check_interval_ms", 30_000),
                100,
                86_400_000,
                wrong,
            )
        ),
        timeout_ms=_timeout(given.get("timeout", timeout_class), wrong),
        kind=kind,
        breaker=breaker,
        retry_policy=retry,
        max_bytes=int(_number("max_bytes", given.get("max_bytes", MAX_BYTES), 1, 2**40, wrong)),
        metadata=metadata if isinstance(metadata, Mapping) else {},
        headers=headers,
        is_failure=is_failure,
    )
    if problems:
        raise ConfigError(problems)
    return declaration


def declared_in_toml(
    path: Path | None = None, environ: Mapping[str, str] | None = None
) -> list[ServiceDeclaration]:
    """The tables [services.NAME] of packhorse.toml; none without one. Raises ConfigError with every problem
    of all of them.
    """
    found, problems = [], []
    for name, said, where in tables_in_toml("services", path, environ):
        try:
            found.append(declare(name, said, where))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def tables_in_toml(
    section: str, path: Path | None = None, environ: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, Any], str]]:
    """Name, content and place of the tables [section.NAME] of packhorse.toml; none without one. Raises
    ConfigError when it cannot be read, or one of them is no table.
    """
    document, path = read_document(path, environ)
    tables = document.get(section, {})
    if not isinstance(tables, dict):
        raise ConfigError([f"{path}: [{section}]: must be tables, [{section}.NAME]"])
    problems = [
        f"{path}: [{section}.{name}]: must be a table"
        for name, said in tables.items()
        if not isinstance(said, dict)
    ]
    if problems:
        raise ConfigError(problems)
    return [(name, said, f"{path}: [{section}.{_quoted(name)}]") for name, said in tables.items()]


def _quoted(name: str) -> str:
    """A key as TOML writes it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


Wrong = Callable[[str, str], None]


def _endpoints(given: Mapping[str, Any], wrong: Wrong) -> tuple[str, ...]:
    if "url" in given and "endpoints" in given:
        wrong("url", "give url or endpoints, not both")
    if "url" in given:
        return _urls("url", (given["url"],), wrong)
    return _urls("endpoints", given.get("endpoints", ()), wrong)


def _urls(place: str, values: Any, wrong: Wrong) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        wrong(place, "must be a list of texts")
        return ()
    found = []
    for value in values:
        problem = _problem_of_endpoint(value)
        if problem is not None:
            wrong(place, problem)
        else:
            found.append(str(value).rstrip("/"))
    return tuple(found)


def _problem_of_endpoint(value: Any) -> str | None:
    """Texts that are no URL are welcome, for clients of another kind; what is one must be one. Never quotes
    what may be a secret.
    """
    if not isinstance(value, str) or not value.strip():
        return "an endpoint must be a text like https://api.example.com/v1"
    if len(value) > MOST_ENDPOINT_LENGTH or re.search(r"[\s\x00-\x1f\x7f]", value):
        return f"an endpoint has no blanks and {MOST_ENDPOINT_LENGTH} characters at most"
    if "://" not in value:
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return "an endpoint is no URL that can be read"
    if parts.username is not None or parts.password is not None:
        return "an endpoint has a user or a password in it, which everybody would see; give them in headers"
    if parts.query or parts.fragment:
        return "an endpoint has a query or a fragment; it is what the paths of requests are put behind"
    return None if parts.hostname else "an endpoint names no host"


def _health_url(value: Any, endpoints: Sequence[str], wrong: Wrong) -> str | None:
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or not value
        or len(value) > MOST_ENDPOINT_LENGTH
        or re.search(r"[\s\x00-\x1f\x7f]", value)
    ):
        wrong("health_check_url", "must be a URL, or a path behind the endpoint, without blanks")
    elif "://" in value and not value.startswith(("http://", "https://")):
        wrong("health_check_url", "must begin with http:// or https://")
    elif "://" in value and "@" in value.partition("://")[2].partition("/")[0]:
        wrong("health_check_url", "has a user or a password in it, which everybody would see")
    elif "://" not in value and not all(
        endpoint.startswith(("http://", "https://")) for endpoint in endpoints
    ):
        wrong("health_check_url", "is a path, and not every endpoint begins with http:// or https://")
    else:
        return value
    return None


def _timeout(value: Any, wrong: Wrong) -> int:
    if isinstance(value, str):
        if value in TIMEOUTS_MS:
            return int(TIMEOUTS_MS[value])
        wrong(
            "timeout", f"{value[:60]!r} is not one of {', '.join(TIMEOUTS_MS)}{or_near(value, TIMEOUTS_MS)}"
        )
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 100:
        wrong("timeout", f"{value:g} is too short: it is in milliseconds, 30 seconds are 30000")
    else:
        return int(_number("timeout", value, 100, 3_600_000, wrong))
    return int(TIMEOUTS_MS["default"])


def _number(place: str, value: Any, low: float, high: float, wrong: Wrong) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        wrong(place, f"must be a number from {low:g} to {high:g}")
        return low
    return value


def _group(
    place: str, value: Any, usual: Any, bounds: Mapping[str, tuple[float, float]], wrong: Wrong
) -> Any:
    """A BreakerPolicy or RetryPolicy, given as one or as a table of its fields."""
    if value is None:
        return usual
    said = {name: getattr(value, name) for name in bounds} if isinstance(value, type(usual)) else value
    if not isinstance(said, Mapping):
        wrong(place, f"must be a {type(usual).__name__} or a table")
        return usual
    for key in sorted(set(said) - set(bounds)):
        wrong(
            f"{place}.{str(key)[:60]}",
            "there is no such field" + or_near(str(key), bounds, f"; one of {', '.join(bounds)}"),
        )
    numbers = {}
    for key, (low, high) in bounds.items():
        number = _number(f"{place}.{key}", said.get(key, getattr(usual, key)), low, high, wrong)
        if isinstance(getattr(usual, key), int) and number != int(number):
            wrong(f"{place}.{key}", "must be a whole number")
        numbers[key] = int(number) if isinstance(getattr(usual, key), int) else float(number)
    return type(usual)(**numbers)


def _are_headers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(text, str) for key, text in value.items()
    )

"""What may be said of a service, and what is refused: every problem at once, with its field (SPEC W10)."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.worker.calls.declarations import BreakerPolicy, declare
from packhorse.worker.calls.remote import verdict
from packhorse.worker.calls.requests import retry_after_seconds
from packhorse.worker.errors import ConfigError, Snooze


def problems(name: str = "ai", **said: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        declare(name, said)
    return caught.value.problems


def test_the_defaults_are_those_of_the_contract() -> None:
    found = declare("ai", {"url": "https://api.example.com/v1/"})
    assert (
        found.endpoints == ("https://api.example.com/v1",)
        and found.timeout_ms == 30_000
        and found.health_check_interval_ms == 30_000
    )
    assert (
        found.breaker == BreakerPolicy(failure_ratio=0.5, least_calls=5, reset_seconds=60.0, trials=3)
        and found.retry_policy is None
    )
    agent = declare("ai", {"url": "https://a", "kind": "ai_agent"})
    assert agent.timeout_ms == 120_000 and agent.breaker == BreakerPolicy(
        failure_ratio=0.6, least_calls=3, reset_seconds=120.0, trials=2
    )


def test_every_problem_is_found_at_once_and_names_its_field() -> None:
    found = problems(
        "1x",
        endpoints=[],
        kind="ai_agnet",
        timeot=1,
        breaker={"trails": 1, "failure_ratio": 2},
        timeout="paymnt",
        metadata=3,
    )
    for text in (
        "name: a letter",
        "endpoints: there is none",
        "kind: 'ai_agnet' is not one of standard, ai_agent; did you mean 'ai_agent'?",
        "timeot: there is no such field; did you mean 'timeout'?",
        "breaker.trails: there is no such field; did you mean 'trials'?",
        "breaker.failure_ratio: must be a number from 0.01 to 1",
        "timeout: 'paymnt' is not one of",
        "metadata: must be a table",
    ):
        assert any(text in problem for problem in found), (text, found)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"url": "https://u:secret@h/"}, "a user or a password"),
        ({"url": "https://h/?key=secret"}, "a query"),
        ({"url": "https:///x"}, "names no host"),
        ({"url": "https://h:port"}, "no URL that can be read"),
        ({"url": "a b"}, "no blanks"),
        ({"url": 3}, "must be a text"),
        ({"endpoints": "https://h"}, "must be a list"),
        ({"endpoints": ["a", "a"]}, "given twice"),
        ({"url": "a", "endpoints": ["b"]}, "not both"),
        ({"endpoints": [f"e{n}" for n in range(51)]}, "50 at most"),
        ({"url": "https://h", "timeout": 30}, "30 seconds are 30000"),
        ({"url": "https://h", "timeout": True}, "must be a number"),
        ({"url": "https://h", "health_check_url": "ftp://h"}, "http:// or https://"),
        ({"url": "eu", "health_check_url": "/health"}, "not every endpoint"),
        ({"url": "https://h", "headers": {"a": 1}}, "a table of texts"),
        ({"url": "https://h", "is_failure": "x"}, "a function"),
        ({"url": "https://h", "retry_policy": {"max_retries": 99}}, "from 0 to 10"),
    ],
)
def test_a_bad_declaration_is_refused_and_shows_no_secret(said: dict[str, Any], text: str) -> None:
    found = problems(**said)
    assert len(found) == 1 and text in found[0] and "secret" not in found[0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "99999999"}, 86_400.0),
        ({"retry-after": "Sun, 29 Nov 2026 12:01:00 GMT", "date": "Sun, 29 Nov 2026 12:00:00 GMT"}, 60.0),
        ({"retry-after": "Sun, 29 Nov 2026 12:01:00 GMT"}, None),
        ({"retry-after": "soon", "date": "Sun, 29 Nov 2026 12:00:00 GMT"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "9" * 30}, 86_400.0),
        (
            {"retry-after": "Sun, 29 Nov 99999999999 12:01:00 GMT", "date": "Sun, 29 Nov 2026 12:00:00 GMT"},
            None,
        ),
        ({}, None),
    ],
)
def test_what_retry_after_asks(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


class Answered(Exception):
    def __init__(self, status: int) -> None:
        self.status_code = status


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Answered(500), False),
        (Answered(429), False),
        (Answered(408), False),
        (Answered(404), True),
        (ConnectionError("x"), False),
        (ValueError("x"), False),
        (TypeError("x"), None),
        (KeyError("x"), None),
        (Snooze(1), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_an_exception_says_of_the_service(error: BaseException, says: bool | None) -> None:
    assert verdict(error) is says

"""Actors that call a service of the test: the file SERVICE says how it does. `ok`, `down`, or `busy
<seconds>` (a 429).
"""

from __future__ import annotations

import os
from pathlib import Path

import dramatiq

import packhorse
from tests.support.notes import nap, note


class AwayError(Exception):
    """The service does not answer."""


def call(key: str, scope: str | None) -> None:
    """One call of the service; a line `called` in the ledger."""
    note("called", key)
    nap(0.05)
    state, _, seconds = Path(os.environ["SERVICE"]).read_text().partition(" ")
    if state == "busy":
        raise packhorse.RetryAfter(float(seconds), scope, "429 Too Many Requests")
    if state == "down":
        raise AwayError(f"no answer for {key}")
    note("effect", key)


@dramatiq.actor(actor_name="ask", services=["api"])
def ask(key: str) -> None:
    call(key, None)


@dramatiq.actor(actor_name="also", services=["api"])
def also(key: str) -> None:
    call(key, None)


@dramatiq.actor(actor_name="learns")
def learns(key: str) -> None:
    call(key, "api")


@dramatiq.actor(actor_name="guarded", failure_breaker=5, max_retries=1, min_backoff=10, max_backoff=20)
def guarded(key: str) -> None:
    call(key, None)


@dramatiq.actor(actor_name="async_ask", services=["api"])
async def async_ask(key: str) -> None:
    call(key, None)


@dramatiq.actor(actor_name="plain")
def plain(key: str) -> None:
    note("effect", key)


@dramatiq.actor(actor_name="asks_nonsense", max_retries=0)
def asks_nonsense(key: str, seconds: str, scope: str) -> None:
    note("start", key)
    raise packhorse.RetryAfter(float(seconds), scope)

"""Actors of the process tests. Each start and each effect is one line in the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import dramatiq

import packhorse
from tests.support.notes import nap, note


@dramatiq.actor(queue_name="default", actor_name="effect")
def effect(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    if seconds:
        nap(seconds)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="fails", max_backoff=200, min_backoff=50)
def fails(key: str, times: int = 10**9) -> None:
    note("start", key)
    message = packhorse.current_message()
    assert message is not None
    if message.attempt <= times:
        raise RuntimeError(f"attempt {message.attempt} of {key} fails")
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="poison")
def poison(key: str) -> None:
    note("start", key)
    os.kill(os.getpid(), signal.SIGKILL)


@dramatiq.actor(queue_name="default", actor_name="leaves")
def leaves(key: str, code: int) -> None:
    """Ends its process without a word, as a library in C may."""
    note("start", key)
    os._exit(code)


@dramatiq.actor(
    queue_name="default", actor_name="ends_late", transactional=True, max_attempts=2, time_limit=600_000
)
def ends_late(key: str, kind: str) -> None:
    """A transaction that the server ends for being idle, or whose commit takes too long, each time."""
    note("start", key)
    if kind == "idle":
        time.sleep(1.5)
    else:
        packhorse.current_connection().execute("insert into slow_commits values (1)")


@dramatiq.actor(
    queue_name="default",
    actor_name="stuck_once",
    time_limit=300,
    hard_time_limit=300,
    max_retries=0,
    on_retry_exhausted="gave_up",
)
def stuck_once(key: str) -> None:
    note("start", key)
    time.sleep(3600)


@dramatiq.actor(
    queue_name="default",
    actor_name="stuck_often",
    time_limit=300,
    hard_time_limit=300,
    max_attempts=4,
    min_backoff=10,
    max_backoff=20,
)
def stuck_often(key: str) -> None:
    note("start", key)
    time.sleep(3600)


@dramatiq.actor(queue_name="default", actor_name="gave_up")
def gave_up(data: dict[str, Any], info: dict[str, Any]) -> None:
    note("gave_up", f"{data['actor_name']}:{data['kwargs']['key']}:{info['retries']}")


@dramatiq.actor(queue_name="default", actor_name="sleeper", time_limit=600_000)
def sleeper(key: str, seconds: float = 60.0) -> None:
    note("start", key)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:  # interruptible: many short naps
        nap(0.01)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="stuck", time_limit=300, hard_time_limit=300)
def stuck(key: str) -> None:
    note("start", key)
    time.sleep(3600)  # one C call: no exception can get in


@dramatiq.actor(queue_name="default", actor_name="transactional", transactional=True)
def transactional(key: str, fail: bool = False) -> None:
    note("start", key)
    packhorse.current_connection().execute("insert into effects (key) values (%s)", (key,))
    if fail and (packhorse.current_message() or 0).attempt == 1:  # type: ignore[union-attr]
        raise RuntimeError("after the effect, before the commit")


@dramatiq.actor(queue_name="default", actor_name="talk")
def talk(conversation: str, number: int, seconds: float = 0.0) -> None:
    note("start", f"{conversation}:{number}")
    if seconds:
        nap(seconds)
    note("effect", f"{conversation}:{number}")


@dramatiq.actor(queue_name="default", actor_name="outcome", max_backoff=50, min_backoff=10)
def outcome(key: str, kind: str) -> None:
    note("start", key)
    message = packhorse.current_message()
    assert message is not None
    if kind == "dead":
        raise packhorse.Bury("as asked")
    if kind == "cancelled":
        raise packhorse.Cancel("as asked")
    if kind == "retried" and message.attempt == 1:
        raise RuntimeError("the first attempt fails")
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="leaks", max_retries=0)
def leaks(secret: str) -> str:
    """Fails with its payload in the text of the error, as careless code does."""
    note("start", "leaks")
    raise ValueError(f"cannot handle {secret}")


@dramatiq.actor(queue_name="default", actor_name="snoozes_badly")
def snoozes_badly(key: str) -> None:
    note("start", key)
    raise packhorse.Snooze(3600, "a reason that is no text: \ud800")


@dramatiq.actor(queue_name="default", actor_name="works_late")
def works_late(key: str) -> None:
    """Ends when the file `.go` lies beside the ledger."""
    note("start", key)
    go = Path(os.environ["LEDGER"]).with_suffix(".go")
    while not go.exists():
        nap(0.02)


@dramatiq.actor(queue_name="default", actor_name="fails_late")
def fails_late(key: str) -> None:
    """The same, and fails."""
    works_late(key)
    raise RuntimeError(f"{key} fails")


def ask(key: str, until_go: bool) -> str:
    """What costs money."""
    note("paid", key)
    if until_go:
        go = Path(os.environ["LEDGER"]).with_suffix(".go")
        while not go.exists():
            nap(0.02)
        note("going", key)
    return f"answer to {key}"


def die_once(key: str, kill: bool) -> None:
    message = packhorse.current_message()
    assert message is not None
    if kill and message.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="pays", time_limit=60_000)
def pays(key: str, kill: bool = False, until_go: bool = False) -> None:
    note("start", key)
    packhorse.step("answer", ask, key, until_go)
    die_once(key, kill)


@dramatiq.actor(queue_name="default", actor_name="pays_async", time_limit=60_000)
async def pays_async(key: str, kill: bool = False, until_go: bool = False) -> None:
    note("start", key)
    await packhorse.step_async("answer", asyncio.to_thread, ask, key, until_go)
    die_once(key, kill)

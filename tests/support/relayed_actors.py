"""Actors of the tests of RabbitMQ, all on the queue `orders`. Starts and effects are lines of the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import dramatiq

import packhorse
from packhorse.worker.attempt.messages import ClaimedMessage
from tests.support.notes import nap, note


def _message() -> ClaimedMessage:
    message = packhorse.current_message()
    assert message is not None
    return message


@dramatiq.actor(queue_name="orders")
def works(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    if seconds:
        nap(seconds)
    note("effect", key)


@dramatiq.actor(queue_name="orders")
async def waits(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    await asyncio.sleep(seconds)
    note("effect", key)


@dramatiq.actor(queue_name="orders", min_backoff=20, max_backoff=100)
def fails(key: str, times: int = 10**9, seconds: float = 0.0) -> None:
    note("start", f"{key}:{_message().attempt}")
    nap(seconds)
    if _message().attempt <= times:
        raise RuntimeError(f"attempt {_message().attempt} of {key} fails")
    note("effect", key)


@dramatiq.actor(queue_name="orders")
def asks(key: str, outcome: str) -> None:
    note("start", f"{key}:{_message().attempt}")
    first = not os.path.exists(f"{os.environ['LEDGER']}.{key}")
    open(f"{os.environ['LEDGER']}.{key}", "w").close()
    if first and outcome == "snooze":
        raise packhorse.Snooze(0.05, "later")
    if first and outcome == "retry":
        raise packhorse.Retry("again", 0.05)
    if outcome == "bury":
        raise packhorse.Bury("as asked")
    if outcome == "cancel":
        raise packhorse.Cancel("as asked")
    note("effect", key)


@dramatiq.actor(queue_name="orders")
def outlasts(key: str) -> None:
    """The first time it takes half a minute, and can be interrupted."""
    note("start", f"{key}:{_message().attempt}")
    first = not os.path.exists(f"{os.environ['LEDGER']}.{key}")
    open(f"{os.environ['LEDGER']}.{key}", "w").close()
    try:
        for _ in range(600 if first else 0):
            time.sleep(0.05)
    except BaseException as error:
        note("interrupted", f"{key}:{type(error).__name__}")
        raise
    note("effect", key)


@dramatiq.actor(queue_name="orders")
def told(key: str) -> None:
    note("start", f"{key}:{_message().attempt}")
    nap(0.2)
    raise packhorse.RetryAfter(3600, scope="till")


@dramatiq.actor(queue_name="orders", on_retry_exhausted="gave_up")
def kills(key: str) -> None:
    note("start", key)
    os.kill(os.getpid(), signal.SIGKILL)


@dramatiq.actor(queue_name="orders", min_backoff=20, max_backoff=20, max_retries=20)
def kills_and_waits(key: str, way: str) -> None:
    """Every other time it kills its process, and in between it asks to run later."""
    path = f"{os.environ['LEDGER']}.{key}"
    times = os.path.getsize(path) if os.path.exists(path) else 0
    with open(path, "a") as file:
        file.write(".")
    note("kill" if times % 2 == 0 else "start", f"{key}:{times}")
    if times % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "snooze":
        raise packhorse.Snooze(0.05, "later")
    raise RuntimeError("again")


@dramatiq.actor(queue_name="orders", failure_breaker=3, min_backoff=20, max_backoff=20)
def calls(key: str) -> None:
    """Fails while the file `<ledger>.down` is there."""
    note("start", f"{key}:{_message().attempt}")
    if os.path.exists(f"{os.environ['LEDGER']}.down"):
        raise ConnectionError("no answer from 10.0.0.7")
    note("effect", key)


@dramatiq.actor(queue_name="orders", time_limit=200, hard_time_limit=200, max_retries=1, min_backoff=10)
def hangs(key: str) -> None:
    note("start", key)
    time.sleep(3600)  # one C call: no exception can get in


@dramatiq.actor(queue_name="orders")
def steps(key: str) -> None:
    note("start", key)
    packhorse.step("paid", lambda: note("paid", key))


@dramatiq.actor(queue_name="orders")
def sends(key: str) -> None:
    note("correlation", _message().correlation_id)
    works.send(f"{key}-sent")
    note("effect", key)


@dramatiq.actor(queue_name="orders", max_retries=0, on_retry_exhausted="gave_up")
def dies(key: str) -> None:
    note("start", key)
    raise ValueError("for good")


@dramatiq.actor(queue_name="orders")
def gave_up(data: dict, info: dict) -> None:
    note("gave_up", data["kwargs"]["key"])

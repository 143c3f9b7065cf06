"""Actors of the tests of debounce: each payload that is handled is a line in the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import packhorse
from tests.support.notes import nap, note


@packhorse.actor(actor_name="gather", debounce=0.2, max_wait=2)
def gather(messages: list[dict[str, Any]]) -> None:
    note("call", str(len(messages)))
    for message in messages:
        note("handled", str(message["n"]))
    running = packhorse.current_message()
    if running is not None and messages[-1].get("kill") and running.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@packhorse.actor(actor_name="image")
def image(n: int) -> None:
    note("handled", str(n))


@packhorse.actor(actor_name="thinks", debounce=0.1)
def thinks(messages: list[dict[str, Any]]) -> None:
    """Tells whether something came while it thought; until then nothing had."""
    note("before" if packhorse.superseded() else "first", str(messages[0]["n"]))
    nap(messages[0].get("seconds", 0))
    if packhorse.superseded():
        raise packhorse.Cancel("superseded")
    note("answered", str(messages[0]["n"]))


@packhorse.actor(actor_name="thinks_async", debounce=0.1)
async def thinks_async(messages: list[dict[str, Any]]) -> None:
    note("before" if await packhorse.superseded_async() else "first", str(messages[0]["n"]))
    await asyncio.sleep(messages[0].get("seconds", 0))
    if await packhorse.superseded_async():
        raise packhorse.Cancel("superseded")
    note("answered", str(messages[0]["n"]))


@packhorse.actor(actor_name="thinks_in_a_transaction", debounce=0.1, transactional=True)
def thinks_in_a_transaction(messages: list[dict[str, Any]]) -> None:
    thinks.fn(messages)

"""`async def` actors of the process tests; see actors.py."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import dramatiq

import packhorse
from tests.support import actors  # noqa: F401 - the ordinary ones, beside them
from tests.support.notes import note


@dramatiq.actor(queue_name="default", actor_name="waits", time_limit=600_000)
async def waits(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    await asyncio.sleep(seconds)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="blocks", time_limit=300, hard_time_limit=300, max_retries=0)
async def blocks(key: str, seconds: float = 3600, elsewhere: bool = False) -> None:
    """Keeps the event loop; elsewhere: in a task that it makes."""
    note("start", key)

    async def block() -> None:
        time.sleep(seconds)

    await (asyncio.create_task(block()) if elsewhere else block())
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="limited", time_limit=2500, max_retries=0)
async def limited(key: str) -> None:
    note("start", key)
    await asyncio.sleep(1.5)
    note("effect", key)


@packhorse.actor(queue_name="default", actor_name="writes", transactional=True)
async def writes(key: str) -> None:
    note("start", key)
    await packhorse.current_async_connection().execute("insert into public.written values (%s)", (key,))


@dramatiq.actor(queue_name="default", actor_name="fails_together", time_limit=600_000)
async def fails_together(key: str) -> None:
    """Fails as soon as the file `.go` lies beside the ledger."""
    note("start", key)
    go = Path(os.environ["LEDGER"]).with_suffix(".go")
    while not go.exists():
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{key} fails")

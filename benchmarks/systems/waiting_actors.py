"""The actors of the metric `waiting` that only Packhorse has: coroutines that wait beside others, and conversations.

BENCH_ORDER_FILE: where `talk` notes its starts and ends, a line each.
"""

from __future__ import annotations

import asyncio
import os

import dramatiq

WAIT_QUEUE = "wait"
TALK_QUEUE = "talk"
ORDER_FILE = "BENCH_ORDER_FILE"
LIMIT_MS = 600_000
"""Longer than anything here waits: the usual limit of 30 s would interrupt it."""

order = os.open(os.environ.get(ORDER_FILE) or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dramatiq.actor(queue_name=WAIT_QUEUE, actor_name=WAIT_QUEUE, time_limit=LIMIT_MS)
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


@dramatiq.actor(queue_name=TALK_QUEUE, actor_name=TALK_QUEUE, time_limit=LIMIT_MS)
async def talk(conversation: int, number: int, seconds: float) -> None:
    os.write(order, b"%d %d start\n" % (conversation, number))
    await asyncio.sleep(seconds)
    os.write(order, b"%d %d end\n" % (conversation, number))

"""The actors of the metric `waiting` that only Packhorse has: coroutines that wait beside others,
conversations, steps.

BENCH_NOTES_FILE: where `talk` notes its starts and ends, a line each, and the actors with steps when each
began and was stored.
"""

from __future__ import annotations

import asyncio
import os
import time

import dramatiq

from packhorse import step, step_async

WAIT_QUEUE = "wait"
TALK_QUEUE = "talk"
STEP_QUEUE = "step"
STEP_ASYNC_QUEUE = "step_async"
NOTES_FILE = "BENCH_NOTES_FILE"
LIMIT_MS = 600_000
"""Longer than anything here waits: the usual limit of 30 s would interrupt it."""

notes = os.open(os.environ.get(NOTES_FILE) or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dramatiq.actor(queue_name=WAIT_QUEUE, actor_name=WAIT_QUEUE, time_limit=LIMIT_MS)
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


@dramatiq.actor(queue_name=TALK_QUEUE, actor_name=TALK_QUEUE, time_limit=LIMIT_MS)
async def talk(conversation: int, number: int, seconds: float) -> None:
    os.write(notes, b"%d %d start\n" % (conversation, number))
    await asyncio.sleep(seconds)
    os.write(notes, b"%d %d end\n" % (conversation, number))


@dramatiq.actor(queue_name=STEP_QUEUE, actor_name=STEP_QUEUE)
def step_alone(number: int) -> None:
    began = time.monotonic_ns()
    step("answer", str, number)
    os.write(notes, b"%d %d\n" % (began, time.monotonic_ns()))


@dramatiq.actor(queue_name=STEP_ASYNC_QUEUE, actor_name=STEP_ASYNC_QUEUE)
async def step_of_many(number: int) -> None:
    began = time.monotonic_ns()
    await step_async("answer", str, number)
    os.write(notes, b"%d %d\n" % (began, time.monotonic_ns()))

"""Actors inside error boundaries: a thread's and a coroutine's."""

from __future__ import annotations

import asyncio
import time

import dramatiq
import structlog

from packhorse.calls import AgentError, with_error_boundary, with_timeout

log = structlog.get_logger("shop")


def _fail(phone: str, how: str) -> None:
    log.info("inside")
    if how == "bug":
        raise LookupError(f"nothing known of {phone}")
    if how == "agent":
        raise AgentError(f"the agent does not answer {phone}", "BUSY", {"phone": phone}, agent_type="support")


@dramatiq.actor(queue_name="default", actor_name="charges", max_attempts=2, min_backoff=10, max_backoff=20)
def charges(phone: str, how: str) -> None:
    with with_error_boundary("charge", user_phone=phone, note=f"for {phone}"):
        _fail(phone, how)


@dramatiq.actor(queue_name="default", actor_name="answers", max_attempts=2, min_backoff=10, max_backoff=20)
@with_error_boundary("answer", workflow_type="support")
async def answers(phone: str, how: str) -> None:
    if how == "slow":
        await with_timeout(asyncio.sleep(60), 50, "ask the model")
    _fail(phone, how)


@dramatiq.actor(queue_name="default", actor_name="waits_long", max_attempts=1, time_limit=300)
def waits_long(phone: str) -> None:
    """Its time limit reaches it while a function of its own goes on in a thread."""
    with with_error_boundary("wait", user_phone=phone):
        with_timeout(lambda: time.sleep(3), 60_000, "the bank")


@dramatiq.actor(queue_name="default", actor_name="awaits_long", max_attempts=1, time_limit=300)
@with_error_boundary("wait")
async def awaits_long(phone: str) -> None:
    async with with_error_boundary("await", user_phone=phone, timeout_ms=60_000):
        await with_timeout(asyncio.sleep(60), 60_000, "the bank")

"""Actors inside error boundaries: a thread's and a coroutine's."""

from __future__ import annotations

import asyncio

import dramatiq
import structlog
from dramatiq.middleware import AsyncIO

from packhorse import PostgresBroker
from packhorse.calls import AgentError, with_error_boundary, with_timeout

log = structlog.get_logger("shop")
broker = PostgresBroker()
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)


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
    import time

    with with_error_boundary("wait", user_phone=phone):
        with_timeout(lambda: time.sleep(3), 60_000, "the bank")

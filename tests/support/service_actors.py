"""Actors that call a service; SERVICE_URL is where it is, SERVICE its breaker as JSON."""

from __future__ import annotations

import json
import os

import dramatiq

from packhorse.calls import register_service
from tests.support.notes import note

ai = register_service(
    "ai", os.environ["SERVICE_URL"], timeout=1000, breaker=json.loads(os.environ["SERVICE"])
)


@dramatiq.actor(queue_name="default", actor_name="ask", min_backoff=100, max_backoff=200)
def ask(key: str) -> None:
    note("start", key)
    ai.request("POST", f"/{key}", json={"key": key})
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="ask_async", min_backoff=100, max_backoff=200)
async def ask_async(key: str) -> None:
    note("start", key)
    await ai.request_async("POST", f"/{key}", json={"key": key})
    note("effect", key)


@dramatiq.actor(
    queue_name="default", actor_name="ask_gated", services=["ai"], min_backoff=100, max_backoff=200
)
def ask_gated(key: str) -> None:
    note("start", key)
    ai.request("POST", f"/{key}", json={"key": key})
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="other")
def other(key: str) -> None:
    note("effect", key)

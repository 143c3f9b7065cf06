"""Actors behind the stories of the page: an outage is a file, a bank is a service."""

from __future__ import annotations

import os
from pathlib import Path

import dramatiq

from packhorse.calls import register_service
from tests.support.notes import nap, note

bank = register_service("bank", "http://127.0.0.1:9/", timeout=1000)


@dramatiq.actor(queue_name="default", actor_name="send_reply", max_retries=0)
def send_reply(key: str, text: str = "") -> None:
    note("start", key)
    if Path(os.environ["OUTAGE"]).exists():
        raise TimeoutError("the provider does not answer")
    note("effect", key)


@dramatiq.actor(queue_name="replies", actor_name="reply_in_order", max_retries=0)
def reply_in_order(key: str, text: str = "") -> None:
    send_reply.fn(key, text)


@dramatiq.actor(queue_name="default", actor_name="ask_bank", services=["bank"])
def ask_bank(key: str) -> None:
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="slow_reply")
def slow_reply(key: str, seconds: float) -> None:
    note("start", key)
    nap(seconds)
    note("effect", key)

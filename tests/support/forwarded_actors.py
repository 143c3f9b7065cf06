"""Actors of forwarded queues (tests/rabbit). Each start and each effect is one line in the ledger."""

from __future__ import annotations

import dramatiq

from tests.support.notes import nap, note


@dramatiq.actor(queue_name="default", actor_name="effect")
def effect(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    nap(seconds)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="talk")
def talk(conversation: str, number: int, seconds: float = 0.0) -> None:
    note("start", f"{conversation}:{number}")
    nap(seconds)
    note("effect", f"{conversation}:{number}")

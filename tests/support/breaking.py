"""Actors that break their own worker process, as bugs do: the loops of the runtime, from the inside."""

from __future__ import annotations

import time

import dramatiq

from tests.support.actors import effect  # noqa: F401
from tests.support.notes import note


def _block() -> float:
    time.sleep(3600)
    return 0.0


def _die() -> float:
    raise SystemExit  # not an Exception: the thread ends without a word


@dramatiq.actor(queue_name="default", actor_name="break")
def break_(what: str) -> None:
    """what: `block` or `kill`, a space, the name of a service of the runtime."""
    verb, name = what.split()
    service = getattr(dramatiq.get_broker().runtime, name)
    service.run_once = _block if verb == "block" else _die
    service.wake()
    note("start", what.replace(" ", "-"))


@dramatiq.actor(queue_name="default", actor_name="lose_wakeups")
def lose_wakeups() -> None:
    """No thread of the pool ever learns that messages are ready."""
    pool = dramatiq.get_broker().runtime.pool
    pool.wake = lambda count: None
    note("start", "lose_wakeups")

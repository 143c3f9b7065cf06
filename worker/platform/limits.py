"""How often something may happen per person or address: token buckets in rate_limiters, shared by all
processes, on the database's clock.
"""

from __future__ import annotations

from typing import Any

from packhorse.worker.errors import InvalidArgument, Snooze
from packhorse.worker.platform.running import Script, run, run_async

PER_MINUTE, BURST = 30, 10
ADDRESS_PER_MINUTE = 100


def take_turn(
    key: str, per_minute: float = ADDRESS_PER_MINUTE, burst: int | None = None, *, connection: Any = None
) -> float:
    """Take one turn of a key: 0.0 when there was one, else the seconds until there will be, and nothing is
    taken. For HTTP: else answer 429.

    key: 1 to 400 characters, an address say. per_minute: turns that come back in a minute, above 0. burst:
    most turns at once; None: per_minute. connection: as for get_or_create_session(). Raises InvalidArgument,
    StoreError.
    """
    return run(_take(key, per_minute, burst), connection)


async def take_turn_async(
    key: str, per_minute: float = ADDRESS_PER_MINUTE, burst: int | None = None, *, connection: Any = None
) -> float:
    """As take_turn(), awaited."""
    return await run_async(_take(key, per_minute, burst), connection)


def limit_person(
    user_phone: str, per_minute: float = PER_MINUTE, burst: int = BURST, *, connection: Any = None
) -> None:
    """Inside a handler: one turn of a person, or the message comes back later, without an attempt spent.
    Nothing is lost.

    With the person as conversation_key the messages keep their order. user_phone: in any form. per_minute,
    burst: as for take_turn(). connection: as for get_or_create_session(). Raises Snooze when there is no
    turn; InvalidArgument, StoreError.
    """
    _rest(take_turn(f"person:{user_phone}", per_minute, burst, connection=connection))


async def limit_person_async(
    user_phone: str, per_minute: float = PER_MINUTE, burst: int = BURST, *, connection: Any = None
) -> None:
    """As limit_person(), awaited."""
    _rest(await take_turn_async(f"person:{user_phone}", per_minute, burst, connection=connection))


def _rest(seconds: float) -> None:
    if seconds > 0:
        raise Snooze(seconds, "the person is above its limit")


def _take(key: str, per_minute: float, burst: int | None) -> Script[float]:
    if not isinstance(key, str) or not 1 <= len(key) <= 400:
        raise InvalidArgument("key: must have 1 to 400 characters", field="key")
    if not 0 < per_minute <= 6_000_000:
        raise InvalidArgument("per_minute: must be above 0 and at most 6,000,000", field="per_minute")
    most = max(1, round(per_minute)) if burst is None else burst
    if not 1 <= most <= 1_000_000:
        raise InvalidArgument("burst: must be 1 to 1,000,000", field="burst")
    interval_us = max(1, round(60_000_000 / per_minute))
    given = {
        "key": f"packhorse-turns:{key}",
        "interval_us": interval_us,
        "burst": most,
        "keep_seconds": interval_us * most / 1e6 + 60,
    }
    rows = yield "platform_take_turn", given
    return float(rows[0]["seconds"]) if rows else 0.0

"""What became of every message, compared with the ledger of effects (SPEC P1, P2)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Ledger

FINAL = {"done", "dead", "cancelled"}


def enqueue(database: Database, items: list[dict[str, Any]]) -> list[int]:
    """Commit messages (the objects of enqueue_messages; queue "default") as the worker role; their ids."""
    rows = database.query(
        "select message_id from enqueue_messages(%s)",
        json.dumps([{"queue": "default", **item} for item in items]),
        admin=False,
    )
    return [row[0] for row in rows]


def effects(
    database: Database, count: int, prefix: str = "m", message_type: str = "effect", **payload: Any
) -> list[int]:
    """Enqueue `count` messages whose payload has the key prefix0, prefix1 …"""
    return enqueue(
        database,
        [{"message_type": message_type, "payload": {"key": f"{prefix}{n}", **payload}} for n in range(count)],
    )


def allow_unreadable(database: Database) -> None:
    """Rows that no reader can read: as somebody has who took the limits away, or as another writer left
    them.
    """
    database.query("alter domain packhorse.message_json drop constraint message_json_readable")


def live(database: Database) -> int:
    return int(database.value("select count(*) from message_queue"))  # type: ignore[call-overload]


def wait_for_end(database: Database, timeout_seconds: float = 90.0) -> None:
    """Until no message is alive."""
    wait_until(lambda: live(database) == 0, timeout_seconds, "no live message")


def quick_backoff(database: Database, **settings: Any) -> None:
    """Retries and crashes wait for milliseconds; other settings of the queue as given."""
    wanted = {"backoff_initial": "20 milliseconds", "backoff_max": "200 milliseconds", **settings}
    database.query("select set_queue('default', %s)", json.dumps(wanted))


def assert_every_message_ended_once(database: Database, ids: list[int]) -> dict[int, str]:
    """Each id stands once, in a final state; the states by id."""
    rows = database.query("select id, state from all_messages")
    twice = [key for key, count in Counter(row[0] for row in rows).items() if count > 1]
    assert not twice, f"messages that stand twice: {twice[:10]}"
    states = {row[0]: row[1] for row in rows}
    missing = sorted(set(ids) - states.keys())
    assert not missing, f"{len(missing)} messages are lost: {missing[:10]}"
    unfinished = {key: state for key, state in states.items() if state not in FINAL}
    assert not unfinished, f"not ended: {list(unfinished.items())[:10]}"
    return states


def assert_effects_fit(database: Database, ledger: Ledger) -> None:
    """A done message had its effect; a second effect only where the history names a lost holder or a retry.

    Each entry of the history (crash, release after a crash, retry) allows one more run of the handler.
    """
    counts = ledger.counts("effect")
    for key, state, history in database.query(
        "select payload ->> 'key', state, history from all_messages where payload ? 'key'"
    ):
        if state == "done":
            assert counts[key] >= 1, f"{key} is done without its effect"
        allowed = 1 + len(history or [])
        assert counts[key] <= allowed, (
            f"{key} had {counts[key]} effects; its history explains {allowed}: {history}"
        )

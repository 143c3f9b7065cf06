"""Does a long queue behind, or a long conversation beside, slow down the messages that could run?

`with` and `without`: the oldest 50,000 messages, with a million younger ones pending or with none.
`one-conversation` and `distinct-keys`: 30,000 messages of as many conversations, with a million older ones of
one single conversation pending or with none. `one-conversation-unseen`: the same, and no worker has looked at
the million before, as after an outage. Everything becomes visible in one commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.processes import Workers
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import DRAIN_SECONDS, POLL_SECONDS, System
from benchmarks.systems.postgres_base import PostgresSystem

CASES = [
    Case("backlog/without"),
    Case("backlog/with"),
    Case("backlog/distinct-keys"),
    Case("backlog/one-conversation"),
    Case("backlog/one-conversation-unseen"),
]
OLDEST = 50_000
KEYED = 30_000


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Messages per second of the measured part, one worker process."""
    assert isinstance(system, PostgresSystem), "only systems on Postgres list these cases"
    variant = case.key.removeprefix("backlog/")
    workers = system.start(1)
    try:
        system.warm_up(workers)
        if variant in ("with", "without"):
            pending = settings.backlog if variant == "with" else 0
            count = settings.size(OLDEST)
            seconds = oldest_first(system, workers, count, pending)
        else:
            pending = settings.backlog if variant.startswith("one-conversation") else 0
            count = settings.size(KEYED)
            unseen = variant.endswith("unseen")
            seconds = beside_one_conversation(system, workers, count, pending, unseen=unseen)
    finally:
        workers.stop()
    yield Number("backlog", variant, 1, count / seconds, "messages/s")


def oldest_first(system: PostgresSystem, workers: Workers, count: int, pending: int) -> float:
    """Seconds until the `count` oldest of `count + pending` messages are completed."""
    with psycopg.connect(system.store_url()) as connection:
        system.fill(connection, count + pending)
        first = system.lowest_id(connection, 0)
        started = system.commit_quietly(connection)
    progress = system.progress()
    progress.lowest = first
    deadline = started + DRAIN_SECONDS
    while (lowest := progress.lowest_left()) is not None and lowest < first + count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{lowest - first} of {count} messages within {DRAIN_SECONDS:.0f} s")
        workers.check()
        time.sleep(POLL_SECONDS)  # observed from outside, so that no system spends time on telling
    return time.monotonic() - started


def beside_one_conversation(
    system: PostgresSystem, workers: Workers, count: int, pending: int, *, unseen: bool
) -> float:
    """Seconds until `count` messages of distinct conversations are completed beside `pending` of one."""
    with psycopg.connect(system.store_url()) as connection:
        if pending:
            system.fill_one_conversation(connection, pending, unseen=unseen)
        floor = system.highest_id(connection)
        system.fill_distinct_conversations(connection, count)
        started = system.commit_quietly(connection)
    return system.wait_drained_above(workers, floor) - started

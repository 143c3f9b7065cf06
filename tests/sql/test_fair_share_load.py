"""Fair share and limits per key beside many claims at once: nothing is lost, no limit is exceeded, no tenant
starves, conversations keep their order (SPEC P1, P4, Q8, Q8c).
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.sql.client import Sql
from tests.sql.parking import in_background
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

TENANTS, CLAIMERS, MESSAGES = 12, 8, 600
CLAIM = """
select id, lease_token, payload, extract(epoch from lease_expires_at)::float8 - 300
from complete_and_claim_messages(%s::bigint[], %s::bigint[], %s, '{q}', %s) where hints is null
"""
TOO_MANY = """
select concurrency_key, count(*) from message_queue where state = 'running' and concurrency_key is not null
group by concurrency_key having count(*) > %s
"""


def send(sql: Sql, chance: random.Random, count: int, producer: int) -> None:
    """Most of one tenant, some with keys, in conversations, late or without anything."""
    for _ in range(count):
        tenant = chance.choice(["big"] * TENANTS + [f"t{number}" for number in range(TENANTS)])
        key = chance.choice([None, f"k{chance.randint(0, 5)}"])
        talk = chance.choice([None, None, f"{tenant} {chance.randint(0, 9)} of {producer}"])
        named = chance.random() < 0.85
        sql.enqueue(
            payload={"tenant": tenant if named else None, "key": key, "talk": talk},
            fairness_key=tenant if named else None,
            concurrency_key=key,
            conversation_key=talk,
            priority=chance.choice([3, 5, 5, 8]),
            delay=chance.choice(["0", "0", "0", "30 milliseconds"]),
        )


def work(sql: Sql, chance: random.Random, over: Callable[[], bool], most: int | None) -> list[tuple]:
    """Claim, hand some back, complete the rest. What it started: token, id, payload, time."""
    started = []
    holder = uuid4()
    leases: list[tuple[int, int]] = []
    while True:
        rows = sql.rows(CLAIM, [i for i, _ in leases], [t for _, t in leases], holder, chance.randint(1, 12))
        started += [(row[1], row[0], row[2], row[3]) for row in rows]
        if most is not None:
            assert sql.rows(TOO_MANY, most) == []
        leases = []
        for ident, token, *_ in rows:
            fate = chance.random()
            if fate < 0.05:
                sql.value("select release_message(%s, %s)", ident, token)
            elif fate < 0.1:
                sql.value("select snooze_message(%s, %s, interval '5 milliseconds')", ident, token)
            else:
                leases.append((ident, token))
        if not rows and over():
            return started


def run(database: Database, seed: int, most: int | None = None, **settings: Any) -> tuple[Sql, list[tuple]]:
    """A load to its end; a client to look at what is left, and all starts in their order. most: that may run
    with one key, looked at after each claim."""
    clients = [Sql(database.connect()) for _ in range(CLAIMERS + 3)]
    watcher = clients[-1]
    watcher.rows("select declare_queue('q')")
    watcher.set_queue(**settings)
    sending = [
        in_background(send, client, random.Random(seed * 100 + number), MESSAGES // 2, number)
        for number, client in enumerate(clients[CLAIMERS : CLAIMERS + 2])
    ]
    lock = threading.Lock()
    stop = time.monotonic() + 120

    def over() -> bool:
        with lock:
            left = watcher.rows("select state, count(*) from message_queue group by 1")
        assert time.monotonic() < stop, left
        return not left and all(one.done() for one in sending)

    working = [
        in_background(work, client, random.Random(seed * 1000 + number), over, most)
        for number, client in enumerate(clients[:CLAIMERS])
    ]
    for one in sending:
        one.result(150)
    starts = sorted(start for one in working for start in one.result(150))
    for client in clients[:-1]:
        client.connection.close()
    return watcher, starts


def check_nothing_lost_and_order_kept(sql: Sql, starts: list[tuple]) -> None:
    assert sql.rows("select state, count(*) from all_messages group by state") == [("done", MESSAGES)]
    last: dict[str, int] = {}
    for _, ident, payload, _ in starts:
        if payload["talk"] is not None:
            assert last.get(payload["talk"], ident) <= ident
            last[payload["talk"]] = ident


@pytest.mark.parametrize("seed", range(3))
def test_tenants_with_and_without_limits_lose_nothing(any_database: Database, seed: int) -> None:
    check_nothing_lost_and_order_kept(*run(any_database, seed, fair_share=True))


@pytest.mark.parametrize("seed", range(3))
def test_no_limit_per_key_is_exceeded_by_eight_claimers(any_database: Database, seed: int) -> None:
    check_nothing_lost_and_order_kept(
        *run(any_database, seed, most=2, fair_share=seed % 2 == 0, max_concurrency_per_key=2)
    )


@pytest.mark.parametrize("seed", range(2))
def test_no_rate_per_key_is_exceeded_by_eight_claimers(any_database: Database, seed: int) -> None:
    """40 starts a second and 5 at once: in any 100 ms at most 5 + 4.

    A claim that has waited for the row of its queue bears the time at which it began to wait; the bucket
    takes the latest time it has seen. Lease tokens are drawn under that row: in their order the latest time
    so far is the one that counted.
    """
    sql, starts = run(any_database, seed, fair_share=True, rate_limit_per_key=40, rate_burst_per_key=5)
    check_nothing_lost_and_order_kept(sql, starts)
    times: dict[str, list[float]] = defaultdict(list)
    for _, _, payload, at in sorted(starts, key=lambda start: start[0]):
        if payload["key"] is not None:
            key = times[payload["key"]]
            key.append(max(at, key[-1]) if key else at)
    assert times
    for key in times.values():
        for first, at in enumerate(key):
            within = [later for later in key[first:] if later - at <= 0.1]
            assert len(within) <= 9, within

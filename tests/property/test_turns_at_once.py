"""Four claimers at once on a queue whose keys take turns, while keys come and go: nothing is lost or done
twice, no limit is exceeded, and who comes is served within two rounds of each claimer (SPEC P1, Q8, Q8c).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.property.test_turns_walk import BIG, MANY_BIG, OLD_KEYS
from tests.sql.client import Sql
from tests.sql.parking import in_background
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

CLAIMERS, GUESTS, MOST_CLAIMED, AT_ONCE, A_SECOND = 4, 80, 5, 2, 200
CLAIM = """
select id, lease_token, payload ->> 'turn', extract(epoch from lease_expires_at)::float8 - 300
from claim_messages(%s, '{q}', %s)
"""
NOW = "select extract(epoch from clock_timestamp())::float8"
TOO_MANY = f"""
select concurrency_key, count(*) from message_queue where state = 'running' and concurrency_key is not null
group by 1 having count(*) > {AT_ONCE}
"""


@dataclass
class Seen:
    """What the threads have seen. big: who always has much. starts: turn and time of each, by claimer."""

    big: list[tuple[str | None, str | None]]
    starts: list[list[tuple[str, float]]] = field(default_factory=lambda: [[] for _ in range(CLAIMERS)])
    done: list[int] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)  # to end while they ran
    piled: int = 0
    came: dict[str, float] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)


def claim(sql: Sql, chance: random.Random, seen: Seen, place: int, limited: bool) -> None:
    """Claim and end, until there is nothing left after the end."""
    holder = uuid4()
    while True:
        ending = seen.over.is_set()
        rows = sql.rows(CLAIM, holder, chance.choice([1, 1, 1, MOST_CLAIMED]))
        seen.starts[place] += [(turn, at) for _, _, turn, at in rows]
        assert not limited or sql.rows(TOO_MANY) == []
        for ident, token, _, _ in rows:
            fate = chance.random()
            if fate < 0.05:
                sql.value("select release_message(%s, %s)", ident, token)
            elif fate < 0.1:
                sql.value("select snooze_message(%s, %s, interval '5 milliseconds')", ident, token)
            else:
                seen.done += sql.value(
                    "select complete_messages(array[%s::bigint], array[%s::bigint])", ident, token
                )
        if ending and not rows and sql.rows("select id from message_queue limit 1") == []:
            return


def pile_up(sql: Sql, chance: random.Random, seen: Seen) -> None:
    """Those who always have much have so again; now and then one of them thinks better of it."""
    while not seen.over.is_set():
        waiting = dict(
            sql.rows(
                "select coalesce(fairness_key, concurrency_key, '-'), count(*) from message_queue where state <> 'running' group by 1"
            )
        )
        for tenant, key in seen.big:
            if waiting.get(tenant or key or "-", 0) < 30:
                talk = chance.choice([None, f"talk {chance.randint(0, 99)}"])
                seen.piled += sql.value(
                    "select enqueue_payloads('q', 'effect', %s, "
                    "p_priority => %s, p_conversation_key => %s, p_concurrency_key => %s, p_fairness_key => %s)",
                    Jsonb([{"turn": tenant or key or "-"}] * 30),
                    chance.choice([3, 5, 8]),
                    talk,
                    key,
                    tenant,
                )
        for (ident,) in sql.rows(
            "select id from message_queue where state = 'pending' and message_type = 'effect' order by id desc limit 1"
        ):
            answer = sql.value("select cancel_message(%s)", ident)
            {"cancelled": seen.cancelled, "requested": seen.asked}.get(answer, set()).add(ident)


def visit(sql: Sql, chance: random.Random, seen: Seen, limited: bool) -> None:
    """One guest after another, with two messages; none comes again."""
    for number in range(GUESTS):
        name = f"{chance.choice('aaceghz')} guest {number}"
        said: dict[str, Any] = {"message_type": "guest", "payload": {"turn": name}}
        said["concurrency_key" if limited and number % 2 else "fairness_key"] = name
        sql.enqueue(**said)
        sql.enqueue(**said, delay="20 milliseconds")
        seen.came[name] = sql.value(NOW)
        time.sleep(0.02)
    seen.over.set()


def run(database: Database, seed: int, limited: bool, **settings: Any) -> tuple[Sql, Seen]:
    clients = [Sql(database.connect()) for _ in range(CLAIMERS + 3)]
    watcher = clients[-1]
    watcher.rows("select declare_queue('q')")
    watcher.set_queue(**settings)
    seen = Seen(MANY_BIG if seed % 2 else BIG)
    works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        *[(claim, (place, limited)) for place in range(CLAIMERS)],
        (pile_up, ()),
        (visit, (limited,)),
    ]
    threads = [
        in_background(work, client, random.Random(seed * 100 + number), seen, *more)
        for number, (client, (work, more)) in enumerate(zip(clients, works, strict=False))
    ]
    try:
        for thread in as_completed(threads, 100):
            thread.result()
    finally:
        seen.over.set()
    for client in clients[:-1]:
        client.connection.close()
    return watcher, seen


def check(sql: Sql, seen: Seen) -> None:
    ended: dict[str, set[int]] = {"done": set(), "cancelled": set()}
    for ident, state in sql.rows("select id, state from all_messages"):
        ended[state].add(ident)
    assert len(seen.done) == len(ended["done"]) and set(seen.done) == ended["done"]
    assert seen.cancelled <= ended["cancelled"] <= seen.cancelled | seen.asked
    assert len(ended["done"] | ended["cancelled"]) == seen.piled + 2 * GUESTS
    first = {
        turn: min(at for starts in seen.starts for other, at in starts if other == turn) for turn in seen.came
    }
    for name, came in seen.came.items():
        beside = len(seen.big) + sum(
            came <= first[other] and seen.came[other] <= first[name] for other in seen.came
        )
        for starts in seen.starts:
            before = Counter(turn for turn, at in starts if came + OLD_KEYS < at < first[name])
            assert before.total() <= 2 * beside + MOST_CLAIMED, f"{name} waits while there start {before}"


KINDS: dict[str, dict[str, Any]] = {
    "fair share": {"fair_share": True},
    "limits": {"max_concurrency_per_key": AT_ONCE, "rate_limit_per_key": A_SECOND},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_who_comes_beside_much_of_others_is_served_within_two_rounds(
    any_database: Database, kind: str, seed: int
) -> None:
    check(*run(any_database, seed, kind == "limits", **KINDS[kind]))

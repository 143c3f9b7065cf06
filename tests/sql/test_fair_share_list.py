"""The list of keys that a session keeps between its claims (migrations/functions/claim_ring.sql): along it,
too, all keys have their turns, and what is new waits no longer than a list is good for (SPEC Q8c, Q8).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, Sql
from tests.sql.frozen import FrozenSql
from tests.sql.test_fair_share import fair, fill, taken

LISTED = "select (fresh_list('q', %s))[2]"


def listed(sql: FrozenSql) -> int | None:
    """How many turns the session's list has; None: it has none."""
    found: int | None = sql.value(LISTED, sql.now)
    return found


def tenants(count: int, messages: int) -> dict[str, int]:
    return {f"t{number:04}": messages for number in range(count)}


@pytest.mark.parametrize("limit", [1, 7, 40, 100])
def test_round_and_round_along_the_list_each_tenant_has_its_turn(frozen_sql: FrozenSql, limit: int) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(70, 6))
    served: Counter[str] = Counter(dict.fromkeys(tenants(70, 0), 0))
    for _ in range(70 * 5 // limit):
        served.update(taken(sql, limit))
        assert max(served.values()) - min(served.values()) <= 1
    assert listed(sql) is not None and sum(served.values()) == 70 * 5 // limit * limit


def test_a_ring_that_is_longer_than_the_list_is_walked_on_from_its_end(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(200, 2))
    lengths, order = [], []
    for _ in range(40):
        order += taken(sql, 5)
        lengths.append(listed(sql))
    assert order == sorted(order) and len(set(order)) == 200
    assert lengths[0] == 32 and max(lengths) > 64  # a session that takes many keeps more


def test_a_session_that_claims_seldom_walks_little(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(200, 9))
    for _ in range(200):
        taken(sql, 5)
    assert listed(sql) == 200
    for _ in range(3):
        sql.later("1 second")
        taken(sql, 1)
    assert listed(sql) == 32


def test_few_tenants_have_no_list_and_a_new_one_comes_at_once(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(15, 5))
    assert len(set(taken(sql, 15))) == 15
    fill(sql, {"new": 1})
    assert "new" in taken(sql, 16)


def test_a_new_tenant_waits_for_a_list_and_no_longer(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(40, 50))
    for _ in range(6):
        taken(sql, 20)
    assert listed(sql) == 40
    fill(sql, {"new": 1})
    assert "new" not in taken(sql, 100)
    sql.later("251 milliseconds")
    assert "new" in taken(sql, 41)


def test_a_claim_that_finds_less_than_it_wants_walks_at_once(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(40, 3))
    taken(sql, 40)
    fill(sql, {"new": 1, "-": 1})
    assert Counter(taken(sql, 100)) == Counter(dict.fromkeys(tenants(40, 0), 2) | {"new": 1, "-": 1})
    assert taken(sql, 1) == []


def test_keys_whose_messages_are_gone_or_later_give_their_turns_to_others(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(40, 5))
    taken(sql, 40)
    sql.rows("delete from message_queue where state = 'pending' and fairness_key < 't0010'")
    sql.rows(
        "update message_queue set run_at = run_at + interval '1 day' where state = 'pending' and fairness_key < 't0020'"
    )
    assert Counter(taken(sql, 40)) == Counter(dict.fromkeys([f"t{number:04}" for number in range(20, 40)], 2))


def test_a_later_priority_has_its_turn_when_the_first_is_gone(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(20, 1), priority=2)
    fill(sql, tenants(20, 3), priority=7)
    rows = sql.rows("select priority, count(*) from claim_messages(%s, '{q}', 20) group by 1", HOLDER)
    assert rows == [(2, 20)]
    assert listed(sql) == 20
    assert Counter(taken(sql, 20)) == Counter(tenants(20, 1))
    assert Counter(taken(sql, 40)) == Counter(tenants(20, 2))


def test_messages_without_a_key_have_one_share_beside_the_list(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, {"-": 12} | tenants(20, 12))
    assert Counter(taken(sql, 21 * 3)) == Counter(tenants(20, 3) | {"-": 3})
    served = Counter(key for _ in range(21 * 4) for key in taken(sql, 1))
    assert served == Counter(tenants(20, 4) | {"-": 4})


@pytest.mark.parametrize(
    "settings", [{"max_concurrency_per_key": 2}, {"rate_limit_per_key": 2, "rate_interval_per_key": "1 day"}]
)
def test_a_limit_per_key_holds_along_the_list(frozen_sql: FrozenSql, settings: dict) -> None:
    sql = frozen_sql
    sql.set_queue(**settings)
    fill(sql, tenants(30, 4), "concurrency_key")
    got = Counter(key for _ in range(12) for key in taken(sql, 5))
    assert got == Counter(tenants(30, 2))
    assert taken(sql, 5) == []


def test_what_a_session_takes_back_it_has_not_served(clients: Callable[..., Sql]) -> None:
    first, second = clients(), clients()
    fair(first)
    fill(first, tenants(40, 2))
    with first.connection.transaction(force_rollback=True):
        undone = taken(first, 30)
    assert taken(second, 40) == sorted(tenants(40, 0))
    assert sorted(taken(first, 40)) == sorted(tenants(40, 0)) and len(undone) == 30


def test_a_worker_of_other_types_finds_them_beside_a_list_of_keys_without(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    fill(sql, tenants(40, 50))
    taken(sql, 40)
    sql.enqueue("q", "report", fairness_key="z")
    claimed = "select id from claim_messages(%s, '{q}', 10, p_types => '{report}')"
    assert len(sql.rows(claimed, HOLDER)) == 1
    assert sql.rows(claimed, HOLDER) == []


@pytest.mark.parametrize("seed", range(3))
def test_several_sessions_along_their_lists_take_each_message_once(
    clients: Callable[..., Sql], seed: int
) -> None:
    chance = random.Random(seed)
    sessions = [clients() for _ in range(3)]
    fair(sessions[0])
    fill(sessions[0], tenants(60, 10) | {"-": 20})
    taken_ids: list[int] = []
    while len(taken_ids) < 620:
        session = chance.choice(sessions)
        got = [
            row[0]
            for row in session.rows(
                "select id from claim_messages(%s, '{q}', %s)", HOLDER, chance.randint(1, 50)
            )
        ]
        assert got or len(taken_ids) == 620
        taken_ids += got
    assert len(set(taken_ids)) == 620


def test_any_name_of_a_tenant_goes_through_the_list(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    fair(sql)
    odd = [
        '"',
        "\\",
        "a,b",
        "(c)",
        "{d}",
        "two\nlines",
        "tab\t",
        " ",
        "null",
        "\U0001f600" * 500,
        "'",
        "\\x",
        "ü",
        "NULL",
    ]
    fill(sql, tenants(10, 4) | dict.fromkeys(odd, 4))
    for _ in range(4):
        assert Counter(taken(sql, 12) + taken(sql, 12)) == Counter([*tenants(10, 1), *odd])
    assert listed(sql) is not None

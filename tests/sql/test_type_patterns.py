"""A claim by a pattern of types: `order.*` stands for all that begin so, but for what `!` excepts
(SPEC W8).
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.sql.client import Sql

SENT = ["order.created", "order.item.added", "order.refund", "orders", "Order.created", "order_x", "pay"]


def claimed(sql: Sql, types: list[str] | None) -> list[str]:
    return [lease.type for lease in sql.claim(10, types=types)]


def register(sql: Sql, *types: str, **policies: dict[str, object]) -> None:
    import json

    sql.rows(
        "select register_worker(%s, 'host', 1, '1', '{q}', %s, 1, '1 minute', p_policies => %s)",
        uuid4(),
        list(types),
        json.dumps({name: {"queue": "q", **said} for name, said in policies.items()}),
    )


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["order.*"], ["order.created", "order.item.added", "order.refund"]),
        (["order.*", "!order.item.*", "!order.refund"], ["order.created"]),
        (["!order.refund", "pay", "order.item.*"], ["order.item.added", "pay"]),
        (["pay", "order.*", "!order.*"], ["pay"]),
        (["order_*"], ["order_x"]),
        (["order%", "order.creat_d"], []),
        (["order.created", "!order.refund"], ["order.created"]),
        ([], []),
        (None, SENT),
    ],
)
def test_what_a_pattern_claims(sql: Sql, types: list[str] | None, expected: list[str]) -> None:
    for name in SENT:
        sql.enqueue(message_type=name)
    assert claimed(sql, types) == expected


@pytest.mark.parametrize("way", ["by its place", "by its id", "apart", "behind another of its conversation"])
def test_every_way_of_being_chosen_knows_patterns(sql: Sql, way: str) -> None:
    message = sql.enqueue(message_type="order.created", conversation_key="c")
    other = sql.enqueue(message_type="orders")
    if way == "apart":
        sql.rows("update message_queue set crashes = 2")
    if way == "behind another of its conversation":
        first = sql.claim(1, types=["order.created"])
        message = sql.enqueue(message_type="order.paid", conversation_key="c")
        sql.complete(*first)
    found = sql.rows(
        "select id from claim_story('{}', '{}', %s, '{q}', 10, p_types => '{order.*}', p_first => %s, p_cursor => %s, p_isolated => %s) "
        "where outcome = 'claimed'",
        uuid4(),
        [message, other] if way == "by its id" else [],
        ["2999-01-01"] * 10 if way == "by its id" else None,
        way == "apart",
    )
    assert found == [(message,)]


def test_a_promise_of_what_comes_next_is_for_those_who_take_it(sql: Sql) -> None:
    first = sql.enqueue(message_type="pay", conversation_key="c")
    second = sql.enqueue(message_type="order.created", conversation_key="c")
    lease = sql.claim(1, types=["pay"])[0]
    assert lease.id == first and claimed(sql, ["order.*"]) == [], "it waits behind that"
    statement = "select hints from complete_and_claim_messages(%s, %s, %s, '{q}', %s, p_types => %s) where hints is not null"
    hints = sql.rows(statement, [lease.id], [lease.token], uuid4(), 0, ["order.*"])
    assert hints == [({"promoted": [second]},)]


@pytest.mark.parametrize("scope", ["order.*", "order.created"])
def test_what_rests_is_not_claimed_by_either_name(sql: Sql, scope: str) -> None:
    for name in ("order.created", "order.paid", "pay"):
        sql.enqueue(message_type=name)
    sql.rows("select park_scope(%s, interval '1 hour')", f"actor:{scope}")
    free = ["pay"] if scope == "order.*" else ["order.paid", "pay"]
    assert claimed(sql, ["order.created", "pay"]) == ["pay"]
    assert claimed(sql, ["order.*", "pay"]) == [name for name in free if name != "pay"]


def test_one_probe_of_a_pattern_that_rests(sql: Sql) -> None:
    """For whoever claims it by the pattern, by a longer one, or by its name; what is excepted is no probe."""
    register(sql, "order.*", **{"order.*": {"services": ["shop"]}})
    for name in ("order.refund", "order.item.added", "order.created"):
        sql.enqueue(message_type=name)
    sql.rows("select park_scope('shop', interval '0', p_probing => true)")
    probe = sql.claim(10, types=["order.*", "!order.refund"])
    assert [lease.type for lease in probe] == ["order.item.added"]
    assert claimed(sql, ["order.*"]) == claimed(sql, ["order.created"]) == []
    sql.rows("select release_message(%s, %s)", probe[0].id, probe[0].token)
    probe = sql.claim(10, types=["order.item.*", "pay"])
    assert [lease.type for lease in probe] == ["order.item.added"]
    sql.rows("select lift_scope('shop')")
    assert sorted(claimed(sql, ["order.*"])) == ["order.created", "order.refund"]


def test_a_pattern_registers_its_types(sql: Sql) -> None:
    """For explain, for the retry policy, and for what buries types that nobody knows."""
    register(
        sql,
        "order.*",
        "order.item.*",
        **{"order.*": {"max_retries": 3, "services": ["shop"]}, "order.item.*": {"max_retries": 7}},
    )
    ids = {name: sql.enqueue(message_type=name, run_at="2000-01-01") for name in SENT}
    explained = {
        name: sql.value("select passed from explain_message(%s) where gate = 'worker'", message)
        for name, message in ids.items()
    }
    assert {name for name, passed in explained.items() if passed} == set(SENT[:3])
    policy = "select max_attempts from failure_policy(%s, '{}')"
    assert sql.value(policy, "order.created") == 4 and sql.value(policy, "order.item.added") == 8
    assert sql.value(policy, "pay") is None
    assert sql.value("select only_service('order.created')") == "shop"
    assert [sql.value("select types_instead(%s)", ids[name]) is None for name in SENT[:4]] == [True] * 3 + [
        False
    ]
    sql.rows("select bury_unknown_types('1 minute')")
    buried = sql.rows("select message_type from dead_letters order by 1")
    assert {name for (name,) in buried} == set(SENT[3:])


def test_a_pattern_is_no_type(sql: Sql) -> None:
    assert sql.enqueue_refused(message_type="order.*")[0] == "PH001"
    register(sql, "a*")
    with pytest.raises(Exception, match="message_types_name_format"):
        register(sql, "a*b")

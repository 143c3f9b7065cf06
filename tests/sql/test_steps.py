"""Steps: stored with the message, fenced, bounded, and where the message goes (SPEC W3c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, Lease, Sql
from tests.sql.parking import in_background


def store(sql: Sql, lease: Lease, name: str, value: Any) -> bool:
    return sql.value("select store_message_step(%s, %s, %s, %s)", lease.id, lease.token, name, Jsonb(value))


def store_many(sql: Sql, steps: list[tuple[Lease, str, Any]]) -> list[str]:
    return sql.value(
        "select store_message_steps(%s::bigint[], %s::bigint[], %s::text[], %s::jsonb[])",
        [lease.id for lease, _, _ in steps],
        [lease.token for lease, _, _ in steps],
        [name for _, name, _ in steps],
        [Jsonb(value) for _, _, value in steps],
    )


def steps(sql: Sql, message_id: int) -> list[tuple]:
    return sql.rows("select name, value, attempt from message_steps(%s)", message_id)


def test_a_worker_that_speaks_only_sql_stores_steps_and_the_next_attempt_gets_them_with_its_claim(
    sql: Sql,
) -> None:
    lease = sql.claimed()
    assert store(sql, lease, "answer", {"text": "yes", "price": 3}) is True
    assert store(sql, lease, "nothing", None) is True
    sql.fail(lease)
    sql.due_now()
    (again,) = sql.rows("select id, attempt, steps from get_next_queue_message('q', %s)", HOLDER)
    assert again[:2] == (lease.id, 2)
    assert {name: (step["value"], step["attempt"]) for name, step in again[2].items()} == {
        "answer": ({"text": "yes", "price": 3}, 1),
        "nothing": (None, 1),
    }
    assert sql.rows("select name, bytes from message_steps(%s)", lease.id) == [("answer", 27), ("nothing", 4)]


def test_most_messages_have_no_steps(sql: Sql) -> None:
    message_id = sql.enqueue()
    assert sql.rows("select steps from claim_messages(%s, '{q}')", HOLDER) == [(None,)]
    assert steps(sql, message_id) == []


def leave(verb: str) -> Callable[[Sql, Lease], None]:
    return lambda sql, lease: sql.rows("select " + verb.format(id=lease.id, token=lease.token)) and None


WAYS: dict[str, Callable[[Sql, Lease], None]] = {
    "retry": leave("fail_message({id}, {token}, 'E', 'm')"),
    "asked retry": leave("schedule_message_retry({id}, {token})"),
    "snooze": leave("snooze_message({id}, {token}, '1 second')"),
    "parked": leave("park_message({id}, {token}, '1 minute')"),
    "release": leave("release_message({id}, {token})"),
    "uncommitted": leave("return_uncommitted_message({id}, {token}, '1 second', 'r', 5)"),
    "rescue": Sql.crash,  # type: ignore[dict-item]
    "hard limit": leave("fail_overdue_message({id}, {token}, 'm')"),
    "refused completion": leave("mark_completion_refused(array[{id}::bigint], array[{token}::bigint], 'm')"),
    "dead": leave("fail_message({id}, {token}, 'E', 'm', p_max_attempts => 1)"),
    "buried": leave("bury_message({id}, {token})"),
    "cancelled": leave("cancel_message({id}, p_token => {token})"),
    "done": leave("complete_messages(array[{id}::bigint], array[{token}::bigint])"),
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_go_wherever_the_message_goes(sql: Sql, way: str) -> None:
    lease = sql.claimed(conversation_key="c")
    store(sql, lease, "answer", 42)
    WAYS[way](sql, lease)
    assert steps(sql, lease.id) == [("answer", 42, 1)]
    assert sql.value("select steps -> 'answer' -> 'value' from all_messages where id = %s", lease.id) == 42


def test_a_redrive_keeps_the_steps_and_a_fresh_one_forgets_them(sql: Sql) -> None:
    for fresh in (False, True):
        lease = sql.claimed()
        store(sql, lease, "answer", 42)
        sql.rows("select bury_message(%s, %s)", lease.id, lease.token)
        assert sql.value(
            "select redrive_dead_letters(array[%s::bigint], p_fresh => %s)", lease.id, fresh
        ) == [lease.id]
        assert steps(sql, lease.id) == ([] if fresh else [("answer", 42, 1)])
        assert sql.value(
            "select details -> 'fresh' from operator_actions where message_id = %s", lease.id
        ) == (True if fresh else None)
        assert store(sql, sql.claim_one(), "other", 1) is True


def test_a_letter_that_is_purged_takes_its_steps_along(sql: Sql) -> None:
    lease = sql.claimed()
    store(sql, lease, "answer", 42)
    sql.rows("select bury_message(%s, %s)", lease.id, lease.token)
    sql.rows("select purge_dead_letters(array[%s::bigint])", lease.id)
    assert steps(sql, lease.id) == []


def test_several_steps_of_one_message_in_one_call_are_all_kept(sql: Sql) -> None:
    first, second = sql.claimed(), sql.claimed()
    assert store_many(
        sql, [(second, "a", 1), (first, "a", 2), (second, "b", 3), (second, "a", 4), (first, "b", [5])]
    ) == ["stored", "stored", "stored", "exists", "stored"]
    assert steps(sql, first.id) == [("a", 2, 1), ("b", [5], 1)]
    assert steps(sql, second.id) == [("a", 1, 1), ("b", 3, 1)]


def test_a_lost_message_does_not_keep_the_others_from_storing(sql: Sql) -> None:
    lost, held = sql.claimed(), sql.claimed()
    sql.crash(lost)
    assert store_many(sql, [(lost, "a", 1), (held, "a", 1)]) == ["lost", "stored"]
    assert steps(sql, lost.id) == []


def test_the_same_value_again_is_stored_and_another_one_is_refused(sql: Sql) -> None:
    """The answer to the first call may have been lost; two meanings of one name may not."""
    lease = sql.claimed()
    assert [store(sql, lease, "a", {"x": 1}), store(sql, lease, "a", {"x": 1})] == [True, True]
    call = "select store_message_step(%s, %s, 'a', '2')"
    assert sql.refused(call, lease.id, lease.token) == ("PH001", "name")
    sql.fail(lease)
    sql.due_now()
    again = sql.claim_one()
    assert store_many(sql, [(again, "a", {"x": 1})]) == ["exists"], (
        "an attempt that had read its steps would not have done it again"
    )


def test_a_step_is_bounded(sql: Sql) -> None:
    lease = sql.claimed()
    call = "select store_message_step(%s, %s, %s, %s)"
    assert sql.refused(call, lease.id, lease.token, "large", Jsonb("x" * 262_143)) == ("PH001", "value")
    assert store(sql, lease, "just", "x" * 262_142)
    for name in ("", "x" * 101, None):
        assert sql.refused(call, lease.id, lease.token, name, Jsonb(1)) == ("PH001", "name")
    assert sql.refused(call, lease.id, lease.token, "a", None) == ("PH001", "value")
    assert store(sql, lease, "x" * 100, 1)
    assert [name for name, _, _ in steps(sql, lease.id)] == ["just", "x" * 100]


def test_all_steps_of_a_message_together_are_bounded(sql: Sql) -> None:
    lease = sql.claimed()
    answers = store_many(sql, [(lease, f"s{number}", "x" * 260_000) for number in range(5)])
    assert answers == ["stored"] * 4 + ["too_large"]
    assert store_many(sql, [(lease, "small", 1)]) == ["stored"]
    other = sql.claimed()
    answers = store_many(sql, [(other, f"s{number}", number) for number in range(101)])
    assert answers == ["stored"] * 100 + ["too_many"]
    assert sql.refused("select store_message_step(%s, %s, 'more', '1')", other.id, other.token) == (
        "PH001",
        "name",
    )


def test_arrays_of_different_lengths_are_refused(sql: Sql) -> None:
    for arguments in (
        "'{1}', '{}', '{}', '{}'",
        "'{1}', '{1}', '{a}', '{}'",
        "null, null, null, null",
        "'{1}', '{1}', '{a}', '{1,2}'",
    ):
        assert sql.refused(f"select store_message_steps({arguments})") == ("PH001", "values")
    assert sql.value("select store_message_steps('{}', '{}', '{}', '{}')") == []


def test_a_row_that_somebody_has_locked_holds_up_no_other(clients: Callable[..., Sql]) -> None:
    worker, somebody = clients(), clients()
    first, second = worker.claimed(), worker.claimed()
    with somebody.connection.transaction():
        somebody.rows("select from message_queue where id = %s for update", first.id)
        assert in_background(store_many, worker, [(first, "a", 1), (second, "a", 1)]).result(10) == [
            "busy",
            "stored",
        ]
    assert store_many(worker, [(first, "a", 1)]) == ["stored"]


def test_storing_a_step_touches_no_index(clients: Callable[..., Sql]) -> None:
    worker = clients()
    leases = [worker.claimed() for _ in range(5)]
    worker.rows(
        "select pg_stat_force_next_flush()"
    ) if worker.connection.info.server_version >= 150000 else None
    with worker.connection.transaction():
        before = worker.rows(
            "select pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c) from (select 'message_queue'::regclass::oid as c) t"
        )
        store_many(worker, [(lease, "a", {"x": 1}) for lease in leases])
        after = worker.rows(
            "select pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c) from (select 'message_queue'::regclass::oid as c) t"
        )
    updated, hot = (late - early for early, late in zip(before[0], after[0], strict=True))
    assert (updated, hot) == (5, 5)


def test_explain_names_the_steps(sql: Sql) -> None:
    lease = sql.claimed()
    gates = "select passed, detail from explain_message(%s) where gate = 'steps'"
    assert sql.rows(gates, lease.id) == []
    store(sql, lease, "answer", 42)
    store(sql, lease, "reply", 43)
    told = [(True, "2 stored, not run again: answer, reply")]
    assert sql.rows(gates, lease.id) == told
    sql.fail(lease)
    assert sql.rows(gates, lease.id) == told
    sql.rows("select bury_message(%s)", lease.id)
    assert sql.rows(gates, lease.id) == told


def test_what_shows_a_message_shows_values_only_when_asked_and_bounded(sql: Sql) -> None:
    lease = sql.claimed()
    store(sql, lease, "answer", "x" * 1000)
    described = "select describe_steps(steps, %s) from message_queue where id = %s"
    ((shown,),) = sql.rows(described, 0, lease.id)
    assert [set(step) for step in shown] == [{"name", "attempt", "at", "bytes"}] and shown[0]["bytes"] == 1002
    ((shown,),) = sql.rows(described, 10, lease.id)
    assert shown[0]["value"] == '"' + "x" * 9


@pytest.mark.parametrize(
    "odd", ["[]", "5", "null", '{"a": 5}', '{"a": {}}', '{"a": {"value": 1, "at": 7, "attempt": "x"}}']
)
def test_what_somebody_wrote_by_hand_ends_no_verb(sql: Sql, odd: str) -> None:
    lease = sql.claimed()
    sql.rows("update message_queue set steps = %s::jsonb where id = %s", odd, lease.id)
    assert store(sql, lease, "b", 1) is True
    sql.rows("select * from explain_message(%s)", lease.id)
    sql.rows("select describe_steps(steps, 10) from message_queue where id = %s", lease.id)
    assert sql.complete(lease) == [lease.id]

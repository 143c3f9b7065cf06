"""Dedup windows and webhook ids: one of many, also at the same instant; the window ends by time (SPEC Q6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.sql.client import Sql
from tests.sql.frozen import FrozenSql
from tests.sql.parking import blocked_behind, in_background


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Windows end when the test says so."""
    return frozen_sql


def test_a_second_enqueue_inside_the_window_returns_the_first_id(sql: Sql) -> None:
    first = sql.enqueue_row(dedup_key="k")
    assert sql.enqueue_row(dedup_key="k", payload={"other": 1}) == (first[0], True)
    assert sql.value("select count(*) from message_queue") == 1


def test_the_window_outlives_the_message(sql: Sql) -> None:
    message_id = sql.enqueue(dedup_key="k")
    sql.complete(sql.claim_one())
    assert sql.enqueue_row(dedup_key="k") == (message_id, True)


def test_the_window_ends_by_time_while_the_message_still_waits(sql: FrozenSql) -> None:
    first = sql.enqueue(dedup_key="k")
    sql.later("4 minutes 59.999 seconds")
    assert sql.enqueue_row(dedup_key="k") == (first, True)
    sql.later("1 millisecond")
    second = sql.enqueue_row(dedup_key="k")
    assert second[1] is False and second[0] != first
    assert sql.enqueue_row(dedup_key="k") == (second[0], True), "the second one has a window of its own"


def test_the_window_is_the_one_that_the_first_caller_asked_for(sql: FrozenSql) -> None:
    sql.enqueue(dedup_key="k", dedup_window="1 hour")
    sql.enqueue(dedup_key="k", dedup_window="2 hours")
    sql.enqueue(dedup_key="d")
    assert sql.rows("select dedup_key, expires_at - %s from message_dedup order by expires_at", sql.now) == [
        ("d", timedelta(minutes=5)),
        ("k", timedelta(hours=1)),
    ]


def test_a_window_of_zero_is_no_window(sql: Sql) -> None:
    assert [sql.enqueue_row(dedup_key="k", dedup_window="0")[1] for _ in range(2)] == [False, False]


def test_the_same_key_on_another_queue_is_another_message(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    assert sql.enqueue_row(dedup_key="k")[1] is False
    assert sql.enqueue_row("r", dedup_key="k")[1] is False


def test_two_transactions_at_the_same_instant_enqueue_one_message(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction():
        kept = first.enqueue_row(dedup_key="k")
        waiting = in_background(lambda: second.enqueue_row(dedup_key="k"))
        blocked_behind(watcher, second, first)
    assert waiting.result(10) == (kept[0], True)
    assert watcher.rows("select id from message_queue") == [(kept[0],)]


def test_when_the_first_transaction_rolls_back_the_second_one_enqueues(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction(force_rollback=True):
        lost = first.enqueue(dedup_key="k")
        waiting = in_background(lambda: second.enqueue_row(dedup_key="k"))
        blocked_behind(watcher, second, first)
    kept, duplicate = waiting.result(10)
    assert kept != lost and duplicate is False
    assert watcher.rows("select id from message_queue") == [(kept,)]


def test_ten_producers_at_once_agree_on_one_id(clients: Callable[..., Sql]) -> None:
    producers = [clients() for _ in range(10)]
    together = threading.Barrier(len(producers))

    def enqueue(producer: Sql) -> tuple[int, bool]:
        together.wait(10)
        return producer.enqueue_row(dedup_key="k")

    answers = [work.result(10) for work in [in_background(enqueue, producer) for producer in producers]]
    assert len({message_id for message_id, _ in answers}) == 1
    assert [duplicate for _, duplicate in answers].count(False) == 1


def test_a_webhook_is_new_once(sql: Sql) -> None:
    assert [sql.value("select is_new_message('w')") for _ in range(3)] == [True, False, False]


def test_a_webhook_that_was_never_marked_is_new_again_after_the_reclaim_time(sql: FrozenSql) -> None:
    sql.rows("select is_new_message('w')")
    sql.later("6 minutes")
    assert [sql.value("select is_new_message('w')") for _ in range(2)] == [True, False]


def test_a_webhook_that_was_marked_is_never_new_again(sql: FrozenSql) -> None:
    sql.rows("select is_new_message('w')")
    sql.rows("select mark_message_processed('w', 'corr', 12)")
    sql.later("6 minutes")
    assert sql.value("select is_new_message('w')") is False
    row = sql.row("select * from processed_messages where external_id = 'w'")
    assert (row["correlation_id"], row["processing_ms"]) == ("corr", 12) and row["processed_at"] is not None


def test_the_correlation_id_of_a_webhook_is_kept_and_a_later_one_comes_with_the_reclaim(
    sql: FrozenSql,
) -> None:
    def known() -> str | None:
        return sql.value("select correlation_id from processed_messages where external_id = 'w'")

    assert sql.value("select is_new_message('w', 'first')") is True
    assert (sql.value("select is_new_message('w', 'second')"), known()) == (False, "first")
    sql.later("6 minutes")
    assert (sql.value("select is_new_message('w')"), known()) == (True, "first")
    sql.later("6 minutes")
    assert (sql.value("select is_new_message('w', 'third')"), known()) == (True, "third")
    assert sql.refused("select is_new_message('x', %s)", "c" * 501) == ("PH001", "correlation_id")


def test_marking_twice_keeps_the_first_time_and_fills_what_was_missing(sql: Sql) -> None:
    sql.rows("select mark_message_processed('w', 'corr')")
    first = sql.value("select processed_at from processed_messages")
    sql.rows("select mark_message_processed('w', null, 7)")
    row = sql.row("select * from processed_messages where external_id = 'w'")
    assert (row["processed_at"], row["correlation_id"], row["processing_ms"]) == (first, "corr", 7)


def test_a_bad_webhook_id_is_refused_by_name(sql: Sql) -> None:
    for bad in ["", "x" * 501, None]:
        assert sql.refused("select is_new_message(%s)", bad) == ("PH001", "external_id")
        assert sql.refused("select mark_message_processed(%s)", bad) == ("PH001", "external_id")


def test_two_webhooks_at_the_same_instant_are_new_for_one(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction():
        assert first.value("select is_new_message('w')") is True
        waiting = in_background(lambda: second.value("select is_new_message('w')"))
        blocked_behind(watcher, second, first)
    assert waiting.result(10) is False

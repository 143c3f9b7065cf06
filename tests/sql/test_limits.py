"""Limits of a queue over the whole fleet: concurrency, per key, rate with burst (SPEC Q8)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.sql.client import HOLDER, Sql
from tests.sql.frozen import FrozenSql
from tests.sql.parking import in_background


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Buckets fill when the test says so."""
    return frozen_sql


def fill(sql: Sql, count: int, **arguments: object) -> list[int]:
    return [sql.enqueue(**arguments) for _ in range(count)]


def test_max_concurrency_counts_running_messages_of_all_holders(sql: Sql) -> None:
    sql.set_queue(max_concurrency=3)
    fill(sql, 10)
    first = sql.claim(2, holder=uuid4())
    assert (len(first), len(sql.claim(10, holder=uuid4()))) == (2, 1)
    assert sql.claim(10) == []
    sql.complete(first[0])
    assert len(sql.claim(10)) == 1


def test_max_concurrency_holds_when_eight_workers_claim_at_once(clients: Callable[..., Sql]) -> None:
    workers = [clients() for _ in range(8)]
    workers[0].set_queue(max_concurrency=5)
    fill(workers[0], 40)
    together = threading.Barrier(len(workers))

    def claim(worker: Sql) -> int:
        together.wait(10)
        return len(worker.claim(3, holder=uuid4()))

    assert sum(work.result(10) for work in [in_background(claim, worker) for worker in workers]) == 5


def test_concurrency_per_key_leaves_other_keys_and_messages_without_key_alone(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=2)
    fill(sql, 5, concurrency_key="a")
    fill(sql, 1, concurrency_key="b")
    fill(sql, 2)
    assert sorted(row[0] or "-" for row in claimed_keys(sql, 20)) == ["-", "-", "a", "a", "b"]
    assert claimed_keys(sql, 20) == []


def test_a_key_that_is_full_is_passed_over_even_with_a_limit_of_one(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    fill(sql, 15, concurrency_key="a")
    fill(sql, 1, concurrency_key="b")
    assert [claimed_keys(sql, 1) for _ in range(3)] == [[("a",)], [("b",)], []]


def test_concurrency_per_key_goes_on_when_one_finished(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    fill(sql, 2, concurrency_key="a")
    lease = sql.claim(10)[0]
    assert sql.claim(10) == []
    sql.complete(lease)
    assert len(sql.claim(10)) == 1


def test_a_message_that_runs_apart_waits_while_its_key_is_full(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    running = sql.claimed(concurrency_key="a")
    sql.rows(
        "insert into message_queue (queue, message_type, crashes, concurrency_key) select 'q', 'effect', 2, 'a' from generate_series(1, 2)"
    )

    def outcomes() -> list[tuple]:
        return sql.rows("select outcome from claim_story('{}', '{}', %s, '{q}', 1)", HOLDER)

    assert outcomes() == [] and sql.claim(10, isolated=True) == []
    sql.complete(running)
    assert outcomes() == [("isolated",)]
    assert [len(sql.claim(10, isolated=True)) for _ in range(2)] == [1, 0]


def claimed_keys(sql: Sql, limit: int) -> list[tuple]:
    return sql.rows(
        "select m.concurrency_key from claim_messages(%s, '{q}', %s) c join message_queue m using (id)",
        HOLDER,
        limit,
    )


def test_acquiring_one_message_respects_the_limit_of_its_key(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    first, second = fill(sql, 2, concurrency_key="a")
    assert sql.value("select acquire_message_lock(%s, %s)", first, HOLDER) is not None
    assert sql.value("select acquire_message_lock(%s, %s)", second, HOLDER) is None


def test_a_start_spends_a_token_of_its_own_queue_only(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    for queue in "q", "r":
        sql.set_queue(queue, rate_limit=1, rate_interval="100 seconds")
        sql.enqueue(queue)
    assert [len(sql.claim(10, queue)) for queue in ("q", "r")] == [1, 1]


def test_a_rate_limit_allows_its_burst_and_then_its_rate(sql: FrozenSql) -> None:
    sql.set_queue(rate_limit=2, rate_interval="100 seconds", rate_burst=5)
    fill(sql, 20)
    assert [len(sql.claim(10)) for _ in range(2)] == [5, 0]
    sql.later("51 seconds")
    assert [len(sql.claim(10)) for _ in range(2)] == [1, 0]
    sql.later("100 seconds")
    assert len(sql.claim(10)) == 2


def test_a_bucket_never_holds_more_than_the_burst(sql: FrozenSql) -> None:
    sql.set_queue(rate_limit=2, rate_interval="1 second", rate_burst=3)
    fill(sql, 20)
    sql.later("1000000 seconds")
    assert len(sql.claim(10)) == 3


def test_without_a_burst_the_bucket_holds_the_rate(sql: Sql) -> None:
    sql.set_queue(rate_limit=4, rate_interval="1 hour")
    fill(sql, 20)
    assert [len(sql.claim(10)) for _ in range(2)] == [4, 0]


def look_again_in(sql: FrozenSql) -> list[float]:
    """What an empty claim answers: seconds until it is worth another look."""
    statement = "select run_at - %s from claim_story('{}', '{}', %s, '{q}', 10) where outcome = 'next'"
    return [wait.total_seconds() for (wait,) in sql.rows(statement, sql.now, HOLDER)]


def test_an_empty_claim_says_when_the_rate_limit_allows_the_next_start(sql: FrozenSql) -> None:
    """Nobody wakes a worker for it; by its poll alone it would start a third of what is allowed."""
    sql.set_queue(rate_limit=2, rate_interval="2 hours")
    fill(sql, 3)
    assert len(sql.claim(10)) == 2
    sql.enqueue(delay="2 hours")
    assert look_again_in(sql) == [3600]
    sql.later("3540 seconds")
    assert look_again_in(sql) == [60]


def test_a_start_that_something_else_prevents_is_not_promised_for_a_token(sql: FrozenSql) -> None:
    sql.set_queue(rate_limit=2, rate_interval="1 hour", max_concurrency=1)
    fill(sql, 3)
    sql.claim_one()
    assert look_again_in(sql) == [], "there is a token, and it does not help"
    sql.set_queue(rate_limit=1)
    sql.rows("update queues set rate_tokens = 0")
    sql.rows("select pause_queue('q')")
    assert look_again_in(sql) == []


def test_a_claim_waits_for_one_limited_queue_at_most(clients: Callable[..., Sql]) -> None:
    """Claims begin with different queues: two that each had one and waited for the other's did so for half a
    second, again and again.
    """
    other, sql = clients(), clients()
    for queue in "q", "r":
        sql.rows("select declare_queue(%s)", queue)
        sql.set_queue(queue, max_concurrency=5)
        sql.enqueue(queue)
    call = "select outcome, queue from claim_story('{}', '{}', %s, %s::text[], 10)"
    with other.connection.transaction():
        assert len(other.claim(1, "q")) == 1
        assert sql.rows(call, HOLDER, ["r", "q"]) == [("claimed", "r")]
        assert sql.rows(call, HOLDER, ["r", "q"]) == [("next", None)], "not for long"


def test_acquiring_one_message_spends_a_start_of_the_rate_limit(sql: Sql) -> None:
    sql.set_queue(rate_limit=1, rate_interval="1 hour")
    first, second = fill(sql, 2)
    assert sql.value("select acquire_message_lock(%s, %s)", first, HOLDER) is not None
    assert sql.value("select acquire_message_lock(%s, %s)", second, HOLDER) is None
    assert sql.claim() == []


def test_changing_another_setting_does_not_refill_the_bucket(sql: Sql) -> None:
    sql.set_queue(rate_limit=1, rate_interval="1 hour")
    fill(sql, 2)
    assert len(sql.claim(10)) == 1
    sql.set_queue(max_attempts=5)
    assert sql.claim(10) == []


def test_limits_together_allow_the_smallest(sql: Sql) -> None:
    sql.set_queue(rate_limit=7, rate_interval="1 hour", max_concurrency=4, max_concurrency_per_key=2)
    fill(sql, 5, concurrency_key="a")
    fill(sql, 9)
    assert len(sql.claim(10)) == 4

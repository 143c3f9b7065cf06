"""Finish: complete, retry, snooze, release, extend, and the attempts they count (SPEC P2, Q3, Q5)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.sql.client import HOLDER, OTHER
from tests.sql.frozen import FrozenSql


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Delays are exact."""
    return frozen_sql


def wait_of(sql: FrozenSql, message_id: int) -> float:
    """How many seconds the message waits from now on."""
    return (sql.live(message_id)["run_at"] - sql.now).total_seconds()


def test_a_completed_message_moves_to_the_archive_whole(sql: FrozenSql) -> None:
    lease = sql.claimed(
        payload={"a": 1},
        options={"b": 2},
        priority=3,
        conversation_key="c",
        correlation_id="e",
        trace_context="f",
    )
    assert sql.complete(lease) == [lease.id]
    row = sql.row("select * from message_archive where id = %s", lease.id)
    assert [
        row[name]
        for name in (
            "state",
            "queue",
            "message_type",
            "payload",
            "options",
            "priority",
            "attempt",
            "conversation_key",
            "correlation_id",
            "trace_context",
            "lease_holder",
        )
    ] == ["done", "q", "effect", {"a": 1}, {"b": 2}, 3, 1, "c", "e", "f", HOLDER]
    assert sql.state(lease.id) == "done"
    assert row["created_at"] <= row["claimed_at"] <= row["finished_at"]


def test_a_queue_that_keeps_nothing_leaves_nothing(sql: FrozenSql) -> None:
    sql.set_queue(keep_done="0")
    lease = sql.claimed()
    assert sql.complete(lease) == [lease.id]
    assert sql.state(lease.id) is None


def test_a_batch_completes_what_is_held_and_names_nothing_else(sql: FrozenSql) -> None:
    held = [sql.claimed() for _ in range(3)]
    waiting = sql.enqueue()
    assert sorted(
        sql.value(
            "select complete_messages(%s::bigint[], %s::bigint[])",
            [lease.id for lease in held] + [waiting, 10**12],
            [lease.token for lease in held] + [0, 0],
        )
    ) == [lease.id for lease in held]
    assert sql.state(waiting) == "pending"


def test_completing_nothing_answers_nothing(sql: FrozenSql) -> None:
    assert sql.value("select complete_messages('{}', '{}')") == []


@pytest.mark.parametrize(
    "call",
    [
        "complete_messages('{1,2}', '{1}')",
        "complete_messages('{1}', null)",
        "complete_messages(array_fill(1::bigint, array[10001]), array_fill(1::bigint, array[10001]))",
    ],
)
def test_a_batch_with_unequal_or_too_many_tokens_is_refused(sql: FrozenSql, call: str) -> None:
    assert sql.refused(f"select {call}") == ("PH001", "tokens")


def test_a_missing_archive_partition_is_made_by_the_completion(own_clients, any_database) -> None:
    drop_archive_partitions(any_database)
    sql = own_clients()
    lease = sql.claimed()
    assert sql.complete(lease) == [lease.id]
    assert sql.state(lease.id) == "done"


def drop_archive_partitions(database) -> None:
    """The archive keeps only one old partition: nobody made today's."""
    for (name,) in database.query(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'message_archive'::regclass"
    ):
        database.query(f"drop table {name}")
    database.query(
        "create table message_archive_20200101 partition of message_archive for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
    )


@pytest.mark.parametrize("outcome", ["cancel_message(%s)", "expire_messages()"])
def test_a_missing_archive_partition_is_made_by_a_cancellation(
    own_clients, any_database, outcome: str
) -> None:
    drop_archive_partitions(any_database)
    sql = own_clients()
    message_id = sql.enqueue(expires_at="2020-01-01")
    sql.rows(f"select {outcome}", *([message_id] if "%s" in outcome else []))
    assert sql.state(message_id) == "cancelled"


def test_a_failure_waits_for_the_backoff_of_the_queue_and_keeps_the_attempt(sql: FrozenSql) -> None:
    sql.set_queue(
        backoff_initial="10 seconds", backoff_multiplier=3, backoff_max="50 seconds", max_attempts=10
    )
    message_id = sql.enqueue()
    for attempt, seconds in [(1, 10), (2, 30), (3, 50), (4, 50)]:
        lease = sql.claim_one()
        assert (lease.id, lease.attempt) == (message_id, attempt)
        assert sql.fail(lease) == "retry"
        assert wait_of(sql, message_id) == seconds
        sql.due_now()


def test_the_backoff_of_the_handler_overrides_the_queue(sql: FrozenSql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select fail_message(%s, %s, 'E', 'm', p_backoff_initial => '70 seconds', p_backoff_max => '90 seconds')",
        lease.id,
        lease.token,
    )
    assert wait_of(sql, lease.id) == 70


def test_a_given_delay_overrides_every_backoff(sql: FrozenSql) -> None:
    lease = sql.claimed()
    sql.rows("select schedule_message_retry(%s, %s, '200 seconds')", lease.id, lease.token)
    assert wait_of(sql, lease.id) == 200


def test_jitter_only_shortens_the_delay(sql: FrozenSql) -> None:
    sql.set_queue(backoff_initial="100 seconds", backoff_max="100 seconds", backoff_jitter=0.5)
    lease = sql.claimed()
    sql.fail(lease)
    assert 50 <= wait_of(sql, lease.id) <= 100


def test_a_retry_returns_when_the_message_will_run(sql: FrozenSql) -> None:
    lease = sql.claimed()
    run_at = sql.value(
        "select schedule_message_retry(%s, %s, '200 seconds', 'E', 'm')", lease.id, lease.token
    )
    row = sql.live(lease.id)
    assert (row["run_at"], row["error"]["class"], row["error"]["message"]) == (run_at, "E", "m")
    assert [(entry["attempt"], entry["event"], entry["error_class"]) for entry in row["history"]] == [
        (1, "retry", "E")
    ]


def test_a_long_error_is_stored_bounded(sql: FrozenSql) -> None:
    lease = sql.claimed()
    sql.fail(lease, message="x" * 1_000_000)
    row = sql.live(lease.id)
    assert len(row["error"]["message"]) == 2000 and len(row["history"][0]["error_message"]) == 500


def test_the_history_keeps_the_last_twenty_entries(sql: FrozenSql) -> None:
    sql.set_queue(max_attempts=1000)
    message_id = sql.enqueue()
    for _ in range(27):
        sql.fail(sql.claim_one())
        sql.due_now()
    assert [entry["attempt"] for entry in sql.live(message_id)["history"]] == list(range(8, 28))


@pytest.mark.parametrize(
    ("own", "handler", "queue", "starts"), [(None, None, 2, 2), (None, 4, 2, 4), (1, 4, 2, 1), (3, 1, 1, 3)]
)
def test_attempts_are_limited_by_the_message_then_the_handler_then_the_queue(
    sql: FrozenSql, own: int | None, handler: int | None, queue: int, starts: int
) -> None:
    sql.set_queue(max_attempts=queue)
    message_id = sql.enqueue(max_attempts=own)
    answers = []
    while sql.state(message_id) == "pending":
        lease = sql.claim_one()
        answers.append(
            sql.value(
                "select fail_message(%s, %s, 'E', 'm', p_max_attempts => %s)", lease.id, lease.token, handler
            )
        )
        sql.due_now()
    assert answers == ["retry"] * (starts - 1) + ["dead"]
    assert sql.dead(message_id)["attempt"] == starts


def test_a_snooze_gives_the_attempt_back_and_is_no_failure(sql: FrozenSql) -> None:
    lease = sql.claimed()
    assert sql.value("select snooze_message(%s, %s, '100 seconds', 'later')", lease.id, lease.token) is True
    row = sql.live(lease.id)
    assert (row["state"], row["attempt"], row["error"]) == ("pending", 0, None)
    assert [entry["event"] for entry in row["history"]] == ["snooze"]
    assert wait_of(sql, lease.id) == 100


def test_a_release_gives_the_attempt_back_and_the_message_is_due_as_before(sql: FrozenSql) -> None:
    lease = sql.claimed()
    run_at = sql.live(lease.id)["run_at"]
    assert sql.value("select release_message(%s, %s)", lease.id, lease.token) is True
    row = sql.live(lease.id)
    assert (row["state"], row["attempt"], row["run_at"], row["history"]) == ("pending", 0, run_at, None)
    assert sql.claim_one().attempt == 1


@pytest.mark.parametrize("verb", ["snooze_message(%s, %s, '0')", "release_message(%s, %s)"])
def test_a_message_that_is_given_back_a_hundred_times_keeps_its_attempts(sql: FrozenSql, verb: str) -> None:
    message_id = sql.enqueue(max_attempts=1)
    for _ in range(100):
        lease = sql.claim_one()
        sql.rows(f"select {verb}", lease.id, lease.token)
    assert sql.live(message_id)["attempt"] == 0 and sql.state(message_id) == "pending"


def test_releasing_several_says_how_many_were_held(sql: FrozenSql) -> None:
    held = [sql.claimed() for _ in range(3)]
    sql.complete(held[0])
    assert (
        sql.value(
            "select release_messages(%s::bigint[], %s::bigint[])",
            [lease.id for lease in held],
            [lease.token for lease in held],
        )
        == 2
    )


def test_of_a_claim_whose_answer_was_lost_what_its_holder_does_not_know_goes_back(sql: FrozenSql) -> None:
    known, unknown = sql.claimed(), sql.claimed()
    sql.enqueue()
    (of_another,) = sql.claim(1, holder=OTHER)
    assert sql.value("select release_unknown_messages(%s, array[%s::bigint])", HOLDER, known.id) == 1
    assert [sql.state(lease.id) for lease in (known, unknown, of_another)] == [
        "running",
        "pending",
        "running",
    ]


def test_extending_a_lease_moves_its_end(sql: FrozenSql) -> None:
    lease = sql.claimed()
    end = sql.value("select extend_message_lease(%s, %s, '1 hour')", lease.id, lease.token)
    assert sql.live(lease.id)["lease_expires_at"] == end
    assert end - sql.now == timedelta(hours=1)


@pytest.mark.parametrize("lease", ["0", "-1 minute", "2 days", None])
def test_an_absurd_lease_is_refused_by_name(sql: FrozenSql, lease: str | None) -> None:
    held = sql.claimed()
    assert sql.refused("select extend_message_lease(%s, %s, %s::interval)", held.id, held.token, lease) == (
        "PH001",
        "lease",
    )
    assert sql.refused(
        "select * from beat_worker(%s, %s::bigint[], %s::bigint[], %s::interval)",
        HOLDER,
        [held.id],
        [held.token],
        lease,
    ) == ("PH001", "lease")
    assert sql.refused("select acquire_message_lock(%s, %s, %s::interval)", held.id, HOLDER, lease) == (
        "PH001",
        "lease",
    )
    assert sql.refused("select * from get_next_queue_message('q', %s, %s::interval)", HOLDER, lease) == (
        "PH001",
        "lease",
    )


@pytest.mark.parametrize(
    "verb",
    [
        "schedule_message_retry(%s, %s, %s::interval)",
        "snooze_message(%s, %s, %s::interval)",
        "fail_message(%s, %s, 'E', 'm', p_delay => %s::interval)",
    ],
)
@pytest.mark.parametrize(
    ("delay", "expected"), [("200000 years", 3660 * 86400), ("-200000 years", 0), ("-1 second", 0)]
)
def test_an_absurd_delay_of_a_handler_is_bounded_and_never_loses_the_outcome(
    sql: FrozenSql, verb: str, delay: str, expected: int
) -> None:
    lease = sql.claimed()
    sql.rows(f"select {verb}", lease.id, lease.token, delay)
    assert sql.state(lease.id) == "pending"
    assert wait_of(sql, lease.id) == expected

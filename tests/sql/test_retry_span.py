"""How long an outage the retries of a queue outlast: the sum of the delays that are really waited (SPEC
Q3).
"""

from __future__ import annotations

import pytest

from packhorse.worker.ops.retries import span_sentence
from tests.sql.client import Sql

SPAN = "select extract(epoch from retry_span(%s, %s::interval, %s, %s::interval, %s))::float8"


@pytest.mark.parametrize(
    ("attempts", "initial", "multiplier", "longest"),
    [
        (3, "1 hour", 2, "30 hours"),
        (6, "1 hour", 3, "10 hours"),
        (4, "2 hours", 1, "2 hours"),
        (1, "1 hour", 2, "2 hours"),
    ],
)
def test_it_is_the_sum_of_the_delays_that_are_waited(
    sql: Sql, attempts: int, initial: str, multiplier: int, longest: str
) -> None:
    sql.rows(
        "select set_queue('q', jsonb_build_object('max_attempts', %s, 'backoff_max', %s::text, 'backoff_initial', %s::text, 'backoff_multiplier', %s))",
        attempts,
        longest,
        initial,
        multiplier,
    )
    message, waited = sql.enqueue(), 0.0
    for _ in range(attempts):
        lease = sql.claim_one()
        if (
            sql.value("select fail_message(%s, %s, 'ConnectionError', 'refused')", lease.id, lease.token)
            == "retry"
        ):
            waited += sql.value(
                "select extract(epoch from run_at - clock_timestamp())::float8 from message_queue where id = %s",
                message,
            )
            sql.rows("update message_queue set run_at = clock_timestamp() where id = %s", message)
    assert sql.state(message) == "dead"
    assert sql.value(SPAN, attempts, initial, multiplier, longest, 0) == pytest.approx(waited, rel=0.01)


def test_what_jitter_may_take_off_is_taken_off(sql: Sql) -> None:
    assert sql.value(SPAN, 3, "1 second", 2, "30 seconds", 0.25) == pytest.approx(2.25)
    assert sql.value(SPAN, 3, "1 second", 2, "30 seconds", 1) == 0


def test_the_largest_settings_are_no_error(sql: Sql) -> None:
    assert sql.value(SPAN, 1_000_000, "366 days", 1000, "366 days", 0) == 3e11
    assert sql.value(SPAN, 1_000_000, "1 second", 1, "1 second", 0) == pytest.approx(999_999)
    assert sql.value(SPAN, 2, "10 seconds", 2, "1 second", 0) == 10, (
        "as a retry has it: never below the first delay"
    )


@pytest.mark.parametrize(
    ("attempts", "seconds", "breaker", "sentence"),
    [
        (3, 3.0, False, "3 attempts over 3 s: an outage that lasts longer makes dead letters"),
        (
            8,
            91.0,
            True,
            "8 attempts over 91 s: an outage that lasts longer makes dead letters, unless the failure breaker parks it first",
        ),
        (20, 37_515.0, False, "20 attempts over 10.4 h: an outage that lasts longer makes dead letters"),
        (1, 0.0, False, "1 attempt, no retry: every failure makes a dead letter"),
        (2, 0.25, False, "2 attempts over 0.25 s: an outage that lasts longer makes dead letters"),
    ],
)
def test_it_is_said_in_one_sentence(attempts: int, seconds: float, breaker: bool, sentence: str) -> None:
    assert span_sentence({"attempts": attempts, "seconds": seconds, "breaker": breaker}) == sentence

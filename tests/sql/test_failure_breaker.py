"""Failure breaker: what fails again and again for one reason rests, and spends no attempts (SPEC Q8d)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.test_scopes import let_it_end, scope_gates


def set_breaker(sql: Sql, limit: int | None, message_type: str = "effect") -> None:
    """A worker registers the type, with this option of its actor."""
    policy = {"queue": "q"} | ({"failure_breaker": limit} if limit is not None else {})
    sql.rows(
        "select register_worker(%s, 'h', 1, '0', '{q}', %s, 1, interval '1 minute', p_policies => %s)",
        uuid4(),
        [message_type],
        Jsonb({message_type: policy}),
    )


def fill(sql: Sql, count: int, message_type: str = "effect") -> list[int]:
    return [sql.enqueue(message_type=message_type) for _ in range(count)]


def fail_in_a_row(sql: Sql, count: int, message: str = "no answer from 10.0.0.7") -> list[str]:
    """Claim one and fail it, `count` times; what became of each."""
    return [sql.fail(sql.claim_one(), "ConnectionError", message) for _ in range(count)]


def tripped(sql: Sql, limit: int = 3, waiting: int = 5) -> None:
    """The actor has failed so often, and its time is over: it is probing."""
    set_breaker(sql, limit)
    fill(sql, limit + waiting)
    assert fail_in_a_row(sql, limit)[-1] == "parked"
    let_it_end(sql, "actor:effect")


def seconds_parked(sql: Sql, scope: str = "actor:effect") -> float:
    return float(
        sql.value(
            "select round(extract(epoch from parked_until - last_failed_at), 2) from scopes where name = %s",
            scope,
        )
    )


def test_so_many_failures_of_one_cause_park_the_actor_and_the_last_spends_no_attempt(sql: Sql) -> None:
    set_breaker(sql, 3)
    fill(sql, 4)
    other = sql.enqueue(message_type="other", delay="1 hour")
    assert fail_in_a_row(sql, 3) == ["retry", "retry", "parked"]
    assert sql.rows("select message_type, attempt from message_queue order by id") == [
        ("effect", n) for n in (1, 1, 0, 0)
    ] + [("other", 0)]
    sql.due_now()
    assert [lease.id for lease in sql.claim(10)] == [other]


def test_a_success_between_them_starts_the_count_over(sql: Sql) -> None:
    set_breaker(sql, 3)
    fill(sql, 10)
    fail_in_a_row(sql, 2)
    sql.complete(sql.claim_one())
    assert fail_in_a_row(sql, 3) == ["retry", "retry", "parked"]


def test_the_success_of_another_actor_does_not(sql: Sql) -> None:
    set_breaker(sql, 3)
    fill(sql, 10)
    fail_in_a_row(sql, 2)
    sql.enqueue(message_type="other")
    sql.complete(sql.claim(1, types=["other"])[0])
    assert fail_in_a_row(sql, 1) == ["parked"]


def test_another_cause_starts_it_over(sql: Sql) -> None:
    set_breaker(sql, 3)
    fill(sql, 10)
    fail_in_a_row(sql, 2)
    assert fail_in_a_row(sql, 1, "certificate expired") == ["retry"]
    assert fail_in_a_row(sql, 3) == ["retry", "retry", "parked"]


def test_numbers_in_a_text_make_no_other_cause(sql: Sql) -> None:
    set_breaker(sql, 2)
    fill(sql, 3)
    assert [
        *fail_in_a_row(sql, 1, "no answer from 10.0.0.7"),
        *fail_in_a_row(sql, 1, "no answer from 10.0.0.8"),
    ] == ["retry", "parked"]


def test_what_was_in_flight_when_it_tripped_spends_no_attempt_and_makes_no_dead_letter(sql: Sql) -> None:
    set_breaker(sql, 3)
    sql.set_queue(max_attempts=1)
    fill(sql, 100)
    leases = sql.claim(100)
    answers = [sql.fail(lease, "ConnectionError", "no answer") for lease in leases]
    assert answers == ["dead", "dead", "parked", *["snooze"] * 97]
    assert sql.rows("select distinct state, attempt from message_queue") == [("pending", 0)]


def test_another_cause_fails_as_usual_while_it_is_parked(sql: Sql) -> None:
    set_breaker(sql, 2)
    fill(sql, 3)
    leases = sql.claim(3)
    assert [sql.fail(lease, "ConnectionError", "no answer") for lease in leases[:2]] == ["retry", "parked"]
    assert sql.fail(leases[2], "KeyError", "phone") == "retry"


def test_a_probe_that_fails_parks_it_for_twice_as_long_up_to_a_minute(sql: Sql) -> None:
    tripped(sql, 2)
    found = []
    for _ in range(8):
        (probe,) = sql.claim(10)
        assert sql.fail(probe, "ConnectionError", "no answer from 10.0.0.7") == "parked"
        found.append(seconds_parked(sql))
        let_it_end(sql, "actor:effect")
    assert found == [2, 4, 8, 16, 32, 60, 60, 60]
    assert (
        sql.value(
            "select max(attempt) from message_queue where state = 'pending' and run_at <= clock_timestamp()"
        )
        == 0
    )


def test_a_probe_that_succeeds_lets_all_go_on(sql: Sql) -> None:
    tripped(sql)
    (probe,) = sql.claim(10)
    sql.complete(probe)
    assert len(sql.claim(10)) >= 5
    assert sql.rows("select parked_until, ends_at, failures, next_park from scopes") == [
        (None, None, 0, None)
    ]


def test_one_that_was_in_flight_and_succeeds_is_no_probe(sql: Sql) -> None:
    set_breaker(sql, 2)
    fill(sql, 4)
    leases = sql.claim(3)
    for lease in leases[:2]:
        sql.fail(lease, "ConnectionError", "no answer")
    sql.complete(leases[2])
    assert sql.claim(10) == []


def test_a_probe_that_fails_for_another_reason_parks_too_and_the_next_one_is_free(sql: Sql) -> None:
    tripped(sql)
    (probe,) = sql.claim(10)
    assert sql.fail(probe, "HTTPError", "bad gateway") == "retry"
    assert sql.claim(10) == []
    let_it_end(sql, "actor:effect")
    (probe,) = sql.claim(10)
    assert sql.fail(probe, "HTTPError", "bad gateway") == "parked"


def test_a_probe_that_is_snoozed_says_nothing(sql: Sql) -> None:
    tripped(sql)
    (probe,) = sql.claim(10)
    sql.rows("select snooze_message(%s, %s, interval '1 hour')", probe.id, probe.token)
    assert len(sql.claim(10)) == 1


def test_what_cannot_be_retried_counts_and_rests_as_well(sql: Sql) -> None:
    set_breaker(sql, 2)
    fill(sql, 3)
    answers = [
        sql.value(
            "select reject_message(%s, %s, 'rejected', 'AuthenticationError', 'key revoked')",
            lease.id,
            lease.token,
        )
        for lease in sql.claim(3)
    ]
    assert answers == ["dead", "parked", "snooze"]


def test_a_hard_time_limit_counts(sql: Sql) -> None:
    set_breaker(sql, 1)
    lease = sql.claimed()
    assert sql.value("select fail_overdue_message(%s, %s, 'too long')", lease.id, lease.token) == "parked"


def test_a_crash_does_not(sql: Sql) -> None:
    set_breaker(sql, 1)
    sql.crash(sql.claimed())
    assert sql.rows("select * from scopes") == []


def test_one_whose_cancellation_was_requested_is_cancelled(sql: Sql) -> None:
    set_breaker(sql, 1)
    lease = sql.claimed()
    sql.rows("select cancel_message(%s)", lease.id)
    assert sql.fail(lease) == "cancelled"


def test_a_queue_of_many_types_that_fail_for_one_reason_is_parked_whole(sql: Sql) -> None:
    sql.set_queue(failure_breaker=3)
    for name in ("ask", "pay", "send", "other"):
        sql.enqueue(message_type=name)
    assert fail_in_a_row(sql, 3) == ["retry", "retry", "parked"]
    assert sql.claim(10) == []
    let_it_end(sql, "queue:q")
    (probe,) = sql.claim(10)
    assert probe.type == "send", "it kept its place"
    sql.complete(probe)
    assert sql.claim_one().type == "other"


def test_nobody_is_parked_who_has_not_asked_for_it(sql: Sql) -> None:
    set_breaker(sql, None)
    fill(sql, 20)
    assert set(fail_in_a_row(sql, 20)) == {"retry"}
    assert sql.rows("select * from scopes") == []


@pytest.mark.parametrize("said", [Jsonb("3"), Jsonb(None), Jsonb([3])])
def test_an_option_of_another_kind_counts_as_not_said(sql: Sql, said: Jsonb) -> None:
    sql.rows(
        "insert into message_types (name, queue, policy) values ('effect', 'q', jsonb_build_object('failure_breaker', %s::jsonb))",
        said,
    )
    fill(sql, 5)
    assert set(fail_in_a_row(sql, 5)) == {"retry"}


@pytest.mark.parametrize("value", [0, -1, 1_000_001, "x", 1.5])
def test_a_setting_out_of_range_is_refused(sql: Sql, value: object) -> None:
    assert sql.refused("select set_queue('q', %s)", Jsonb({"failure_breaker": value})) == (
        "PH001",
        "failure_breaker",
    )


def test_without_the_setting_what_it_had_parked_is_lifted(sql: Sql) -> None:
    sql.set_queue(failure_breaker=1)
    fill(sql, 2)
    fail_in_a_row(sql, 1)
    sql.set_queue(failure_breaker=None)
    assert len(sql.claim(10)) == 2


def test_an_actor_that_no_longer_asks_for_it_is_lifted_when_it_registers(sql: Sql) -> None:
    tripped(sql)
    set_breaker(sql, None)
    assert len(sql.claim(10)) >= 5


def test_a_park_by_hand_ends_it(sql: Sql) -> None:
    """An operator's word counts: at the end of his park all go on, and the count begins anew."""
    tripped(sql, 2)
    (probe,) = sql.claim(10)
    sql.rows("select park_scope('actor:effect', interval '1 hour', p_operator => 'ann')")
    assert sql.fail(probe, "ConnectionError", "no answer from 10.0.0.7") == "retry"
    assert sql.value("select parked_until > clock_timestamp() + interval '50 minutes' from scopes") is True
    let_it_end(sql, "actor:effect")
    assert len(sql.claim(1)) == 1 and len(sql.claim(1)) == 1


def test_explain_says_that_the_failure_breaker_did_it_and_why(sql: Sql) -> None:
    set_breaker(sql, 1)
    first, second = fill(sql, 2)
    fail_in_a_row(sql, 1)
    for message in (first, second):
        ((passed, detail, _),) = scope_gates(sql, message)
        assert passed is False and "by failure breaker: ConnectionError: no answer" in detail


def test_what_nobody_has_used_for_a_day_is_forgotten(sql: Sql) -> None:
    set_breaker(sql, 3)
    fill(sql, 3)
    fail_in_a_row(sql, 1)
    sql.rows("select park_scope('api', interval '1 minute'), park_scope('busy', interval '1 hour')")
    sql.rows("update scopes set last_failed_at = last_failed_at - interval '2 days'")
    sql.rows(
        "update scopes set parked_until = clock_timestamp() - interval '2 days', ends_at = clock_timestamp() - interval '2 days' where name = 'api'"
    )
    sql.rows("select cleanup_expired_windows()")
    assert sql.rows("select name from scopes") == [("busy",)]


def test_failures_of_two_connections_at_once_are_all_counted(clients: Callable[..., Sql]) -> None:
    one, two = clients(), clients()
    set_breaker(one, 4)
    fill(one, 6)
    first, second = one.claim(3), two.claim(3)
    with one.connection.transaction():
        assert [one.fail(lease) for lease in first] == ["retry"] * 3
        assert two.fail(second[0]) == "retry", "who cannot count in half a second does not wait for longer"
    assert two.fail(second[1]) == "parked"
    assert two.fail(second[2]) == "snooze"


STALE = {
    "a lease that is over": lambda mine, other: (mine.id, mine.token),
    "the token of another message": lambda mine, other: (mine.id, other.token),
    "the id of another message": lambda mine, other: (other.id, mine.token),
}


@pytest.mark.parametrize("breaker", ["of the actor", "of the queue"])
@pytest.mark.parametrize(
    "call", ["fail_message(%s, %s, 'E', 'm')", "reject_message(%s, %s, 'rejected', 'E', 'm')"]
)
@pytest.mark.parametrize("stale", STALE)
def test_the_failure_of_a_stale_holder_is_not_counted(sql: Sql, stale: str, call: str, breaker: str) -> None:
    if breaker == "of the actor":
        set_breaker(sql, 1)
    else:
        sql.set_queue(failure_breaker=1)
    mine, other = sql.claimed(), sql.claimed()
    if stale == "a lease that is over":
        sql.crash(mine)
        sql.due_now()
        assert [again.id for again in sql.claim(1)] == [mine.id]
    assert sql.value(f"select {call}", *STALE[stale](mine, other)) == "lost"
    assert sql.value("select count(*) from scopes") == 0


def test_the_rejection_of_one_whose_cancellation_was_requested_is_not_counted(sql: Sql) -> None:
    set_breaker(sql, 1)
    lease = sql.claimed()
    sql.rows("select cancel_message(%s)", lease.id)
    assert sql.value("select reject_message(%s, %s, 'rejected', 'E', 'm')", lease.id, lease.token) == "dead"
    assert sql.value("select count(*) from scopes") == 0

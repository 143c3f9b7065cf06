"""Due reminders become messages of the queue, each once, in the same transaction (SPEC C6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tests.sql.client import Sql
from tests.sql.parking import in_background

pytestmark = [pytest.mark.slow, pytest.mark.calendar]

ENQUEUE = "select enqueue_due_reminders()"


def remind(sql: Sql, due: str = "-1 minute", **columns: Any) -> int:
    row = {"phone": "250788000456", "queue": "q", "message_type": "send_reminder"} | columns
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    return sql.value(
        f"insert into reminders (remind_at, {names}) values (clock_timestamp() + %s::interval, {marks}) returning id",
        due,
        *row.values(),
    )


def state(sql: Sql, reminder: int) -> tuple[Any, ...]:
    return sql.rows(
        "select status, message_id is not null, error is not null, finished_at is not null from reminders where id = %s",
        reminder,
    )[0]


def test_a_due_reminder_becomes_a_message_with_its_payload(sql: Sql) -> None:
    reminder = remind(sql, payload='{"text": "tomorrow at 9"}', conversation_key="wa:1")
    later = remind(sql, "1 hour")
    assert sql.value(ENQUEUE) == 1
    assert state(sql, reminder) == ("enqueued", True, False, False) and state(sql, later)[0] == "pending"
    message = sql.live(sql.value("select message_id from reminders where id = %s", reminder))
    assert message["payload"] == {"text": "tomorrow at 9", "reminder_id": reminder, "phone": "250788000456"}
    assert (
        message["queue"],
        message["message_type"],
        message["conversation_key"],
        message["correlation_id"],
    ) == ("q", "send_reminder", "wa:1", f"reminder:{reminder}")


def test_reminders_and_messages_are_written_together_or_not_at_all(clients: Callable[..., Sql]) -> None:
    sql = clients()
    remind(sql)
    with sql.connection.transaction(force_rollback=True):
        assert sql.value(ENQUEUE) == 1
    assert (
        sql.rows("select status from reminders") == [("pending",)]
        and sql.value("select count(*) from message_queue") == 0
    )


def test_many_callers_at_the_same_instant_enqueue_each_reminder_once(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(4)]
    for _ in range(40):
        remind(callers[0])
    work = [
        in_background(lambda c=caller: sum(c.value("select enqueue_due_reminders(5)") for _ in range(12)))
        for caller in callers
    ]
    assert sum(future.result(20) for future in work) == 40
    assert callers[0].rows(
        "select count(*), count(distinct payload ->> 'reminder_id') from message_queue"
    ) == [(40, 40)]


@pytest.mark.parametrize(
    ("column", "value"), [("queue", "nowhere"), ("message_type", "no spaces please"), ("queue", "bad name")]
)
def test_a_reminder_that_the_queue_refuses_is_set_aside_and_holds_up_no_other(
    sql: Sql, column: str, value: str
) -> None:
    bad, good = remind(sql, "-1 hour", **{column: value}), remind(sql)
    assert sql.value(ENQUEUE) == 1
    assert state(sql, bad) == ("failed", False, True, True) and state(sql, good)[0] == "enqueued"


def test_a_reminder_that_comes_too_late_is_not_sent(sql: Sql) -> None:
    reminder = remind(sql)
    sql.rows("update reminders set expires_at = clock_timestamp() - interval '1 second'")
    assert sql.value(ENQUEUE) == 0 and state(sql, reminder)[0] == "expired"


def test_those_that_are_too_late_hold_up_no_other(sql: Sql) -> None:
    """After an outage the oldest are expired: counted by hundreds, they would hold the others back for an
    hour.
    """
    for _ in range(25):
        remind(sql, "-1 hour", expires_at="2026-01-01Z")
    good = [remind(sql) for _ in range(7)]
    assert sql.value("select enqueue_due_reminders(5)") == 5
    assert sql.value("select count(*) from reminders where status = 'expired'") == 25
    assert sql.value("select enqueue_due_reminders(5)") == 2 and {
        state(sql, reminder)[0] for reminder in good
    } == {"enqueued"}
    for _ in range(30):
        remind(sql, "-1 hour", expires_at="2026-01-01Z")
    assert sql.value("select enqueue_due_reminders(1)") == 0
    assert sql.value("select count(*) from reminders where status = 'pending'") == 10  # one call is bounded


def test_the_message_expires_with_the_reminder(sql: Sql) -> None:
    remind(sql)
    sql.rows("update reminders set expires_at = clock_timestamp() + interval '1 hour'")
    sql.rows(ENQUEUE)
    assert (
        sql.value(
            "select m.expires_at = r.expires_at from message_queue m join reminders r on r.message_id = m.id"
        )
        is True
    )


@pytest.mark.parametrize(
    ("status", "answer"), [("confirmed", "enqueued"), ("cancelled", "cancelled"), ("completed", "cancelled")]
)
def test_nobody_is_reminded_of_a_booking_that_is_over(sql: Sql, status: str, answer: str) -> None:
    booking = sql.value(
        "insert into bookings (company_id, service_id, customer_id, datetime, status) values (1, 1, %s, now(), %s) returning id",
        UUID(int=1),
        status,
    )
    reminder = remind(sql, booking_id=booking)
    assert sql.value(ENQUEUE) == (1 if answer == "enqueued" else 0)
    assert state(sql, reminder)[0] == answer


def test_a_reminder_goes_with_its_booking(sql: Sql) -> None:
    booking = sql.value(
        "insert into bookings (company_id, service_id, customer_id, datetime) values (1, 1, %s, now()) returning id",
        UUID(int=1),
    )
    remind(sql, booking_id=booking)
    sql.rows("delete from bookings")
    assert sql.value("select count(*) from reminders") == 0


def test_the_phone_is_the_reminders_else_the_clients_else_the_guests(sql: Sql) -> None:
    sql.rows("insert into clients (id, company_id, phone) values (1, 1, '+111')")
    guest = sql.value(
        "insert into guest_sessions (email, full_name, phone) values ('e@x', 'Ann', '+222') returning id"
    )
    client_booking = sql.value(
        "insert into bookings (company_id, client_id, service_id, staff_id, datetime, duration) values (1, 1, 1, 1, now(), 30) returning id"
    )
    guest_booking = sql.value("insert into bookings (guest_session_id) values (%s) returning id", guest)
    nobody = sql.value("insert into bookings (customer_id) values (%s) returning id", UUID(int=7))
    own = remind(sql, phone="+999", booking_id=client_booking)
    others = [
        remind(sql, phone=None, booking_id=booking) for booking in (client_booking, guest_booking, nobody)
    ]
    assert sql.value(ENQUEUE) == 3
    told = dict(
        sql.rows("select (payload ->> 'reminder_id')::bigint, payload ->> 'phone' from message_queue")
    )
    assert told == {own: "999", others[0]: "111", others[1]: "222"}
    assert state(sql, others[2]) == ("failed", False, True, True)

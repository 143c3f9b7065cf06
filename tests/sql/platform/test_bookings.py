"""Bookings, guests who become users, and what cannot be deleted (SPEC C5, C6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background
from tests.sql.platform.test_catalogue import RELATIONS

pytestmark = pytest.mark.slow

CONVERT = "select convert_guest_to_user(%s, %s)"
USER = UUID(int=7)


def guest(sql: Sql, expires: str = "1 day") -> UUID:
    return sql.value("insert into guest_sessions (expires_at) values (clock_timestamp() + %s::interval) returning id", expires)


def book(sql: Sql, hours: int = 1, **columns: Any) -> int:
    row = {"company_id": 1, "service_id": 1} | columns
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    return sql.value(
        f"insert into bookings (starts_at, ends_at, {names}) values (now() + %s * interval '1 hour', now() + 9 * interval '1 hour', {marks}) "
        "returning id",
        hours,
        *row.values(),
    )


def refused_booking(sql: Sql, **columns: Any) -> str | None:
    with pytest.raises(psycopg.Error) as caught, sql.connection.transaction():
        book(sql, **columns)
    return caught.value.diag.constraint_name


def test_a_booking_has_exactly_one_owner(sql: Sql) -> None:
    book(sql, customer_id=USER)
    session = guest(sql)
    book(sql, guest_session_id=session)
    assert refused_booking(sql) == "bookings_customer_or_guest"
    assert refused_booking(sql, customer_id=USER, guest_session_id=session) == "bookings_customer_or_guest"


def test_a_guest_that_registers_takes_its_bookings_along(sql: Sql) -> None:
    session, other = guest(sql), guest(sql)
    for hours in (1, 2):
        book(sql, hours, guest_session_id=session)
    book(sql, guest_session_id=other)
    assert sql.value(CONVERT, session, USER) == 2
    assert sql.rows("select customer_id, guest_session_id from bookings order by id") == [(USER, None), (USER, None), (None, other)]
    assert sql.value(CONVERT, session, USER) == 0, "safe to repeat"
    assert sql.refused(CONVERT, session, uuid4()) == ("PH005", "guest_session_id")


def test_what_was_booked_while_the_guest_registered_is_moved_as_well(clients: Callable[..., Sql]) -> None:
    booker, registrar, watcher = clients(), clients(), clients()
    session = guest(booker)
    with booker.connection.transaction():
        book(booker, guest_session_id=session)
        answer = in_background(registrar.value, CONVERT, session, USER)
        blocked_behind(watcher, registrar, booker)
    assert answer.result(10) == 1


def test_a_guest_that_is_unknown_or_expired_is_not_converted(sql: Sql) -> None:
    assert sql.refused(CONVERT, uuid4(), USER) == ("PH004", "guest_session_id")
    assert sql.refused(CONVERT, guest(sql, "-1 second"), USER) == ("PH005", "guest_session_id")
    assert sql.refused(CONVERT, None, USER) == ("PH001", "guest_session_id")
    assert sql.refused(CONVERT, guest(sql), None) == ("PH001", "user_id")


def test_an_expired_guest_stays_for_its_booking_and_is_met_once(sql: Sql) -> None:
    kept, gone = guest(sql, "-2 days"), guest(sql, "-1 day")
    book(sql, guest_session_id=kept)
    assert sql.value("select cleanup_expired_guest_sessions()") == 2
    assert sql.rows("select id, expired_at is not null from guest_sessions") == [(kept, True)]
    assert sql.value("select cleanup_expired_guest_sessions()") == 0
    assert sql.value("select count(*) from guest_sessions where id = %s", gone) == 0


def test_a_guest_that_is_booking_right_now_is_passed_by(clients: Callable[..., Sql]) -> None:
    booker, sweeper = clients(), clients()
    session = guest(booker, "-1 day")
    with booker.connection.transaction():
        book(booker, guest_session_id=session)
        assert sweeper.value("select cleanup_expired_guest_sessions()") == 0
    assert sweeper.value("select cleanup_expired_guest_sessions()") == 1
    assert sweeper.value("select count(*) from bookings b join guest_sessions g on g.id = b.guest_session_id") == 1


@pytest.mark.parametrize("table", ["companies", "clients", "services", "staff", "guest_sessions"])
def test_nothing_that_a_booking_names_can_be_deleted(sql: Sql, table: str) -> None:
    client = sql.value("insert into clients (company_id, phone) values (1, '1') returning id")
    book(sql, client_id=client, staff_id=1, guest_session_id=guest(sql))
    assert sql.refused(f"delete from {table}")[0] in ("23001", "23503")


def test_a_client_of_one_company_cannot_stand_in_the_booking_of_another(sql: Sql) -> None:
    sql.rows("insert into companies (id, name) values (2, 'Barber')")
    client = sql.value("insert into clients (company_id, phone) values (2, '1') returning id")
    assert refused_booking(sql, customer_id=USER, client_id=client) == "bookings_client_fkey"
    sql.rows("insert into services (id, company_id, name) values (2, 2, 'Shave')")
    assert refused_booking(sql, customer_id=USER, service_id=2) == "bookings_service_fkey"


def test_somebody_is_booked_once_per_time_unless_the_booking_was_cancelled(sql: Sql) -> None:
    first = book(sql, customer_id=USER, staff_id=1)
    assert refused_booking(sql, customer_id=USER, staff_id=1) == "bookings_staff_start_key"
    sql.rows("update bookings set status = 'cancelled', finished_at = now() where id = %s", first)
    book(sql, customer_id=USER, staff_id=1)


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"status": "maybe"}, "bookings_status_known"),
        ({"status": "completed"}, "bookings_finished_when_over"),
        ({"price": -1}, "bookings_price_range"),
        ({"currency": "rwf"}, "bookings_currency_format"),
        ({"hours": 10}, "bookings_ends_after_start"),
    ],
)
def test_a_booking_that_makes_no_sense_is_refused(sql: Sql, columns: dict[str, Any], constraint: str) -> None:
    assert refused_booking(sql, customer_id=USER, **columns) == constraint


@pytest.mark.parametrize(
    "statement",
    [
        "insert into services (company_id, name, duration) values (1, 'x', '0')",
        "insert into services (company_id, name, price) values (1, 'x', -1)",
        "insert into staff_schedules (staff_id, starts_at, ends_at) values (1, now(), now())",
        "insert into companies (name) values ('')",
        "insert into sync_status (company_id, resource, status) values (1, 'x', 'lost')",
        "insert into clients (company_id, phone) values (1, '')",
        "insert into guest_sessions (converted_at) values (now())",
    ],
)
def test_rows_that_make_no_sense_are_refused(sql: Sql, statement: str) -> None:
    assert sql.refused(statement)[0] == "23514"


def test_every_table_with_updated_at_keeps_it(sql: Sql) -> None:
    without = sql.rows(
        "select c.relname::text from pg_attribute a join pg_class c on c.oid = a.attrelid where a.attname = 'updated_at' "
        "and c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and not exists "
        "(select from pg_trigger t join pg_proc p on p.oid = t.tgfoid where t.tgrelid = c.oid and p.proname = 'touch_updated_at')"
    )
    assert {row[0] for row in without} & RELATIONS == set()
    sql.rows("update companies set updated_at = '2000-01-01'")
    assert sql.value("select updated_at >= created_at from companies")

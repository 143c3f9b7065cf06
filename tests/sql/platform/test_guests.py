"""Guests: sessions by a token, the step from guest to user, what cannot be deleted under a booking (SPEC C5,
PLATFORM 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

CONVERT = "select convert_guest_to_user(%s, %s)"
CLAIM = "select claim_guest_bookings(%s)"
USER = UUID(int=7)


def guest(sql: Sql, expires: str = "1 day") -> UUID:
    statement = "insert into guest_sessions (email, full_name, expires_at) values ('ann@example.com', 'Ann', clock_timestamp() + %s::interval) returning id"
    return sql.value(statement, expires)


def book(sql: Sql, **columns: Any) -> int:
    row = {"company_id": 1} | columns
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    return sql.value(f"insert into bookings ({names}) values ({marks}) returning id", *row.values())


def test_a_session_is_made_with_a_token_and_found_by_it(sql: Sql) -> None:
    made = sql.row(
        "select *, expires_at - now() as lives from create_guest_session('ann@example.com', 'Ann', '+250 788', '{\"from\": \"ad\"}')"
    )
    assert len(made["session_token"]) == 64 and round(made["lives"].total_seconds()) == 86400
    found = sql.row("select * from get_guest_session(%s)", made["session_token"])
    assert (found["id"], found["email"], found["full_name"], found["phone"], found["metadata"]) == (
        made["id"],
        "ann@example.com",
        "Ann",
        "250788",
        {"from": "ad"},
    )
    assert "session_token" not in found
    assert (
        sql.rows("select * from get_guest_session(%s)", "x" * 64)
        == []
        == sql.rows("select * from get_guest_session(null)")
    )
    sql.rows("update guest_sessions set expires_at = clock_timestamp()")
    assert sql.rows("select * from get_guest_session(%s)", made["session_token"]) == []


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        (("", "Ann"), "email"),
        ((None, "Ann"), "email"),
        (("no address", "Ann"), "email"),
        (("a@b" + "c" * 320, "Ann"), "email"),
        (("a@b", ""), "full_name"),
        (("a@b", None), "full_name"),
        (("a@b", "Ann", " "), "phone"),
        (("a@b", "Ann", None, Jsonb([])), "metadata"),
        (("a@b", "Ann", None, Jsonb({"converted_to_user_id": str(USER)})), "metadata"),
        (("a@b", "Ann", None, Jsonb({"converted_at": "now"})), "metadata"),
        (("a@b", "Ann", None, Jsonb({"x": list(range(40000))})), "metadata"),
    ],
)
def test_a_session_of_nobody_is_refused(sql: Sql, arguments: tuple[Any, ...], column: str) -> None:
    marks = ", ".join(["%s"] * len(arguments))
    assert sql.refused(f"select * from create_guest_session({marks})", *arguments) == ("PH001", column)


def test_a_guest_that_registers_takes_its_bookings_along(sql: Sql) -> None:
    session, other = guest(sql), guest(sql)
    for _ in range(2):
        book(sql, guest_session_id=session)
    book(sql, guest_session_id=other)
    assert sql.value(CONVERT, session, USER) == 2
    assert sql.rows("select customer_id, guest_session_id from bookings order by id") == [
        (USER, None),
        (USER, None),
        (None, other),
    ]
    metadata = sql.value("select metadata from guest_sessions where id = %s", session)
    assert metadata["converted_to_user_id"] == str(USER) and set(metadata) == {
        "converted_to_user_id",
        "converted_at",
    }
    assert sql.value(CONVERT, session, USER) == 0, "safe to repeat"
    assert sql.value("select metadata from guest_sessions where id = %s", session) == metadata
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


@pytest.fixture
def registered(shared_database: Database) -> Iterator[Callable[[str | None], Sql]]:
    """The owner's client as PostgREST has it for a user; rolled back."""
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows("insert into companies (id, name) values (1, 'Salon')")

        def log_in(subject: str | None) -> Sql:
            claims = "" if subject is None else f'{{"sub": "{subject}"}}'
            admin.rows("select set_config('request.jwt.claims', %s, true)", claims)
            return admin

        yield log_in


def test_a_user_that_has_just_registered_claims_its_bookings_by_the_token(
    registered: Callable[[str | None], Sql],
) -> None:
    sql = registered(None)
    session = guest(sql)
    token = sql.value("select session_token from guest_sessions where id = %s", session)
    book(sql, guest_session_id=session)
    assert sql.refused(CLAIM, token) == ("42501", None)
    assert registered("no uuid").refused(CLAIM, token) == ("42501", None)
    assert registered(str(USER)).refused(CLAIM, "x" * 64) == ("PH004", "session_token")
    assert [sql.value(CLAIM, token) for _ in range(2)] == [1, 0]
    assert sql.rows("select customer_id from bookings") == [(USER,)]
    assert registered(str(uuid4())).refused(CLAIM, token) == ("PH005", "guest_session_id")


def test_a_guest_that_is_booking_right_now_is_passed_by(clients: Callable[..., Sql]) -> None:
    booker, sweeper = clients(), clients()
    session = guest(booker, "-1 day")
    with booker.connection.transaction():
        book(booker, guest_session_id=session)
        assert sweeper.value("select cleanup_expired_guest_sessions()") == 0
    assert sweeper.value("select cleanup_expired_guest_sessions()") == 1
    assert (
        sweeper.value("select count(*) from bookings b join guest_sessions g on g.id = b.guest_session_id")
        == 1
    )

"""platform_events, webhook_events, audit_events: counts, funnel, credits, and what is never deleted (SPEC C2, C5, M4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

ANN, BOB, EVE = UUID(int=1), UUID(int=2), UUID(int=3)
NOW = datetime.now(UTC)


def event(sql: Sql, kind: str, *, user: UUID | None = None, session: UUID | None = None, ago: int = 60, **properties: Any) -> None:
    sql.rows(
        "insert into platform_events (event_type, user_id, session_id, properties, created_at) values (%s, %s, %s, %s, %s)",
        kind,
        user,
        session,
        Jsonb(properties),
        NOW - timedelta(minutes=ago),
    )


def test_events_are_counted_by_type_in_a_period(sql: Sql) -> None:
    for user, session in ((ANN, None), (ANN, None), (None, EVE)):
        event(sql, "page_view", user=user, session=session)
    event(sql, "signup", user=BOB)
    event(sql, "signup", user=BOB, ago=60 * 24 * 40)
    assert sql.rows("select event_type, events, users, sessions from get_event_counts_by_type()") == [("page_view", 3, 1, 1), ("signup", 1, 1, 0)]
    assert sql.rows("select event_type, events from get_event_counts_by_type(now() - interval '60 days') where event_type = 'signup'") == [
        ("signup", 2)
    ]
    assert sql.rows("select * from get_event_counts_by_type(now() - interval '2 days', now() - interval '1 day')") == []


def test_a_period_holds_its_beginning_and_not_its_end(sql: Sql) -> None:
    event(sql, "a", ago=10)
    at = NOW - timedelta(minutes=10)
    assert sql.rows("select events from get_event_counts_by_type(%s, %s)", at, at + timedelta(seconds=1)) == [(1,)]
    assert sql.rows("select events from get_event_counts_by_type(%s, %s)", at - timedelta(seconds=1), at) == []


@pytest.mark.parametrize(
    "call", ["get_event_counts_by_type(%s::timestamptz, %s::timestamptz)", "get_conversion_funnel('{a}', %s::timestamptz, %s::timestamptz)"]
)
def test_a_period_that_is_none_is_refused(sql: Sql, call: str) -> None:
    assert sql.refused(f"select {call}", None, NOW) == ("PH001", "since")
    for until in (NOW, NOW - timedelta(days=1), None):
        assert sql.refused(f"select {call}", NOW, until) == ("PH001", "until")


def funnel(sql: Sql, steps: str = "{a,b,c}") -> list[tuple]:
    return sql.rows("select people, share_of_first, share_of_previous from get_conversion_funnel(%s)", steps)


def test_a_funnel_counts_people_that_took_the_steps_in_order(sql: Sql) -> None:
    for ago, kind in ((50, "a"), (40, "b"), (30, "c")):
        event(sql, kind, user=ANN, ago=ago)
    for ago, kind in ((50, "b"), (40, "a"), (30, "a")):  # b came before a: it does not count
        event(sql, kind, user=BOB, ago=ago)
    for ago, kind in ((50, "a"), (40, "b"), (35, "b"), (30, "a")):
        event(sql, kind, session=EVE, ago=ago)
    event(sql, "a")  # nobody's
    assert funnel(sql) == [(3, 1.0, 1.0), (2, 2 / 3, 2 / 3), (1, 1 / 3, 0.5)]
    assert sql.rows("select step, event_type from get_conversion_funnel('{a,b}')") == [(1, "a"), (2, "b")]


def test_a_guest_that_became_a_user_is_one_person_over_all_its_sessions(sql: Sql) -> None:
    session = sql.value("insert into guest_sessions default values returning id")
    event(sql, "a", session=session, ago=50)
    event(sql, "b", session=session, ago=40)
    sql.rows("select convert_guest_to_user(%s, %s)", session, ANN)
    event(sql, "c", user=ANN, ago=30)
    assert [row[0] for row in funnel(sql)] == [1, 1, 1]


def test_a_funnel_with_a_step_twice_wants_it_twice(sql: Sql) -> None:
    event(sql, "a", user=ANN, ago=50)
    event(sql, "a", user=ANN, ago=40)
    event(sql, "a", user=BOB, ago=40)
    assert [row[0] for row in funnel(sql, "{a,a}")] == [2, 1]


def test_a_funnel_that_nobody_entered_has_no_shares(sql: Sql) -> None:
    assert funnel(sql) == [(0, None, None)] * 3


@pytest.mark.parametrize("steps", [None, "{}", "{a,NULL}", "{" + ",".join("abcdefghijklmnopqrstu") + "}"])
def test_steps_that_make_no_funnel_are_refused(sql: Sql, steps: str | None) -> None:
    assert sql.refused("select get_conversion_funnel(%s::text[])", steps) == ("PH001", "steps")


def test_credits_are_what_was_earned_less_what_was_spent(sql: Sql) -> None:
    credits = "select get_user_referral_credits(%s)"
    assert sql.value(credits, ANN) == 0
    event(sql, "referral_credit_earned", user=ANN, amount=15.5)
    event(sql, "referral_credit_earned", user=ANN, amount=10)
    event(sql, "referral_credit_spent", user=ANN, amount=5.25)
    event(sql, "referral_credit_earned", user=BOB, amount=1)
    assert float(sql.value(credits, ANN)) == 20.25
    assert sql.refused(credits, None) == ("PH001", "user_id")


@pytest.mark.parametrize(("user", "properties"), [(None, {"amount": 1}), (ANN, {}), (ANN, {"amount": "1"})])
def test_a_credit_without_user_or_amount_is_refused(sql: Sql, user: UUID | None, properties: dict[str, Any]) -> None:
    statement = "insert into platform_events (event_type, user_id, properties) values ('referral_credit_earned', %s, %s)"
    assert sql.refused(statement, user, Jsonb(properties))[0] == "23514"


def test_a_webhook_is_kept_once_per_source_and_id(sql: Sql) -> None:
    insert = "insert into webhook_events (source, external_id) values (%s, %s)"
    sql.rows(insert, "whatsapp", "wamid.1")
    sql.rows(insert, "stripe", "wamid.1")
    assert sql.refused(insert, "whatsapp", "wamid.1")[0] == "23505"
    for _ in range(2):
        sql.rows(insert, "whatsapp", None)
    assert sql.refused("update webhook_events set status = 'processed'")[0] == "23514", "an end has a time"


def audit(sql: Sql, category: str = "security") -> int:
    return sql.value("insert into audit_events (category, actor, action) values (%s, 'ann', 'login') returning id", category)


def test_a_worker_cannot_change_a_record_nor_delete_one_of_security(sql: Sql) -> None:
    audit(sql)
    audit(sql, "data")
    assert sql.refused("update audit_events set category = 'data'")[0] == "42501"
    assert sql.refused("update audit_events set id = id + 1000")[0] == "42501"
    assert sql.refused("truncate audit_events")[0] == "42501"
    sql.rows("delete from audit_events")
    assert sql.rows("select category from audit_events") == [("security",)]


@pytest.mark.parametrize(
    "statement",
    [
        "delete from audit_events",
        "truncate audit_events",
        "update audit_events set category = 'data'",
        "delete from audit_events where category = 'security'",
    ],
)
def test_the_owner_and_superuser_is_refused_as_well(shared_database: Database, statement: str) -> None:
    with shared_database.connect(admin=True) as connection:
        admin = Sql(connection)
        with connection.transaction(force_rollback=True):
            audit(admin)
            assert admin.refused(statement)[0] == "42501"


@pytest.mark.parametrize(("without", "refused"), [(None, True), ("drop trigger audit_events_protect on audit_events", False)])
def test_without_the_trigger_the_owner_could(shared_database: Database, without: str | None, refused: bool) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        audit(admin)
        if without:
            admin.rows(without)
        if refused:
            assert admin.refused("delete from audit_events")[0] == "42501"
        else:
            admin.rows("delete from audit_events")
            assert admin.value("select count(*) from audit_events") == 0


@pytest.mark.parametrize(("category", "action"), [("Security", "x"), ("", "x"), ("1", "x"), ("data", "")])
def test_a_record_without_category_or_action_is_refused(sql: Sql, category: str, action: str) -> None:
    assert sql.refused("insert into audit_events (category, actor, action) values (%s, 'ann', %s)", category, action)[0] == "23514"


def test_two_users_in_one_session_are_two_people(sql: Sql) -> None:
    event(sql, "a", user=uuid4(), session=EVE)
    event(sql, "a", user=uuid4(), session=EVE)
    assert funnel(sql, "{a}") == [(2, 1.0, 1.0)]

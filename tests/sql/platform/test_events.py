"""platform_events and referrals: counts, funnel, credits; audit_events are written once (SPEC C2, C5,
PLATFORM 3.3).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.calendar]

ANN, BOB, EVE = UUID(int=1), UUID(int=2), "session-3"
NOW = datetime.now(UTC)


def event(
    sql: Sql,
    kind: str,
    *,
    user: UUID | None = None,
    session: str | None = None,
    ago: int = 60,
    **properties: Any,
) -> None:
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
    assert sql.rows("select * from get_event_counts_by_type()") == [
        ("page_view", 3, 1, 1),
        ("signup", 1, 1, 0),
    ]
    since = "select event_count from get_event_counts_by_type(now() - interval '60 days') where event_type = 'signup'"
    assert sql.value(since) == 2
    assert (
        sql.rows(
            "select * from get_event_counts_by_type(now() - interval '2 days', now() - interval '1 day')"
        )
        == []
    )


def test_a_period_holds_both_its_ends(sql: Sql) -> None:
    event(sql, "a", ago=10)
    at = NOW - timedelta(minutes=10)
    count = "select event_count from get_event_counts_by_type(%s, %s)"
    assert [sql.rows(count, *period) for period in ((at, at), (at, NOW), (at - timedelta(days=1), at))] == [
        [(1,)]
    ] * 3
    assert sql.rows("select unique_users from get_conversion_funnel(%s, %s, '{a}')", at, at) == [(0,)], (
        "nobody's event"
    )


@pytest.mark.parametrize(
    "call",
    [
        "get_event_counts_by_type(%s::timestamptz, %s::timestamptz)",
        "get_conversion_funnel(%s::timestamptz, %s::timestamptz, '{a}')",
    ],
)
def test_a_period_that_is_none_is_refused(sql: Sql, call: str) -> None:
    assert sql.refused(f"select {call}", None, NOW) == ("PH001", "start_date")
    for until in (NOW - timedelta(days=1), None):
        assert sql.refused(f"select {call}", NOW, until) == ("PH001", "end_date")


def test_the_funnel_has_four_stages_each_counted_by_itself(sql: Sql) -> None:
    for user in (ANN, BOB):
        event(sql, "SearchStarted", user=user)
    event(sql, "SearchStarted", session=EVE)
    # before the first stage, and without the second: it counts
    event(sql, "CheckoutStarted", user=BOB, ago=90)
    event(sql, "CheckoutStarted", user=BOB)
    event(sql, "BookingConfirmed")
    assert sql.rows("select * from get_conversion_funnel()") == [
        ("SearchStarted", 3, Decimal("100.00")),
        ("ProfessionalViewed", 0, Decimal("0.00")),
        ("CheckoutStarted", 1, Decimal("33.33")),
        ("BookingConfirmed", 0, Decimal("0.00")),
    ]


def test_a_person_is_a_user_else_a_session(sql: Sql) -> None:
    event(sql, "a", user=ANN, session=EVE)
    event(sql, "a", user=BOB, session=EVE)
    event(sql, "a", session=str(ANN))
    assert sql.rows("select unique_users from get_conversion_funnel(p_stages => '{a}')") == [(3,)]


def test_a_funnel_that_nobody_entered_has_no_rates(sql: Sql) -> None:
    event(sql, "b", user=ANN)
    assert sql.rows("select * from get_conversion_funnel(p_stages => '{a,b}')") == [
        ("a", 0, None),
        ("b", 1, None),
    ]


@pytest.mark.parametrize("stages", [None, "{}", "{a,NULL}", "{" + ",".join("abcdefghijklmnopqrstu") + "}"])
def test_stages_that_make_no_funnel_are_refused(sql: Sql, stages: str | None) -> None:
    assert sql.refused("select get_conversion_funnel(p_stages => %s::text[])", stages) == ("PH001", "stages")


def test_credits_are_what_was_rewarded_to_the_one_who_referred(sql: Sql) -> None:
    credits = "select get_user_referral_credits(%s)"
    assert sql.value(credits, ANN) == 0 and sql.value(credits, None) == 0
    refer = "insert into referrals (referrer_id, referee_id, referrer_credit_amount, status) values (%s, %s, %s, %s)"
    for amount, status in ((1500, "rewarded"), (700, "rewarded"), (900, "qualified"), (400, "pending")):
        sql.rows(refer, ANN, uuid4(), amount, status)
    sql.rows(refer, BOB, ANN, 50, "rewarded")
    assert (sql.value(credits, ANN), sql.value(credits, BOB)) == (2200, 50)


def audit(sql: Sql, category: str = "security") -> None:
    sql.rows(
        "insert into audit_events (event_category, event_type, action) values (%s, 'login', 'view')", category
    )


def test_a_worker_cannot_change_a_record_nor_delete_one_of_security(sql: Sql) -> None:
    audit(sql)
    audit(sql, "system")
    sql.rows("set local packhorse_platform.audit_exception = 'erasure'")
    assert sql.refused("update audit_events set event_category = 'system'")[0] == "42501"
    assert sql.refused("update audit_events set id = gen_random_uuid()")[0] == "42501"
    assert sql.refused("truncate audit_events")[0] == "42501"
    sql.rows("delete from audit_events")
    assert sql.rows("select event_category from audit_events") == [("security",)]


@pytest.mark.parametrize(
    "statement",
    [
        "delete from audit_events",
        "truncate audit_events",
        "update audit_events set event_category = 'system'",
    ],
)
def test_the_owner_is_refused_as_well(shared_database: Database, statement: str) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        audit(admin)
        assert admin.refused(statement)[0] == "42501"

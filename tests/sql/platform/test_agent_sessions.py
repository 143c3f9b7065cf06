"""agent_chat_sessions: one active per phone and agent whoever asks at once, 24 hours, a bounded history (SPEC
C1, PLATFORM 3.1).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.sql.client import Sql
from tests.sql.mutations import break_function
from tests.sql.parking import blocked_behind, in_background
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

PHONE = "+250788000456"
SAY = "select add_agent_message(%s, %s, %s)"
STATUS = "select set_agent_session_status(%s, %s)"


def session(sql: Sql, phone: str | None = PHONE, agent: str | None = "booking", **arguments: Any) -> UUID:
    extra = "".join(f", p_{name} => %s" for name in arguments)
    return sql.value(f"select get_or_create_agent_session(%s, %s{extra})", phone, agent, *arguments.values())


def end_its_time(sql: Sql, session_id: UUID) -> None:
    sql.rows(
        "update agent_chat_sessions set expires_at = clock_timestamp() - interval '1 second' where id = %s",
        session_id,
    )


def row_of(sql: Sql, session_id: UUID) -> dict[str, Any]:
    return sql.row("select * from agent_chat_sessions where id = %s", session_id)


def said(sql: Sql, session_id: UUID, limit: int = 20) -> list[tuple[str, str]]:
    found = sql.value("select get_agent_conversation(%s, %s)", session_id, limit)
    return [(entry["role"], entry["content"]) for entry in found["messages"]]


def test_the_first_call_makes_a_session_of_24_hours_and_the_second_finds_it(sql: Sql) -> None:
    first = session(sql)
    made = row_of(sql, first)
    assert session(sql) == first
    row = row_of(sql, first)
    assert (
        row["user_phone"],
        row["agent_type"],
        row["status"],
        row["context"],
        row["conversation_history"],
    ) == (PHONE, "booking", "active", {}, [])
    assert round((row["expires_at"] - row["created_at"]).total_seconds()) == 86400
    assert row["expires_at"] == made["expires_at"] and row["last_message_at"] > made["last_message_at"], (
        "set once; touched"
    )


def test_one_person_has_one_session_whatever_the_form_of_the_phone(sql: Sql) -> None:
    forms = (
        "+250 788 000-456",
        "00250788000456",
        "whatsapp:+250788000456",
        "250788000456:12@s.whatsapp.net",
        PHONE,
    )
    assert len({session(sql, form) for form in forms}) == 1
    assert sql.rows("select user_phone from agent_chat_sessions") == [("+250 788 000-456",)], (
        "kept as it was given"
    )


def test_phones_and_agents_have_sessions_of_their_own(sql: Sql) -> None:
    assert len({session(sql), session(sql, agent="support"), session(sql, phone="other")}) == 3


def test_a_session_whose_time_is_over_is_expired_and_followed_by_a_new_one(sql: Sql) -> None:
    old = session(sql)
    end_its_time(sql, old)
    new = session(sql)
    assert new != old and row_of(sql, old)["status"] == "expired" and row_of(sql, old)["ended_at"] is not None


def test_a_session_without_an_end_goes_on(sql: Sql) -> None:
    made = sql.value(
        "insert into agent_chat_sessions (user_phone, agent_type, expires_at) values (%s, 'booking', null) returning id",
        PHONE,
    )
    assert session(sql) == made and sql.value(SAY, made, "user", "x") is True


def test_user_and_agent_are_filled_in_once_known_and_not_changed(sql: Sql) -> None:
    user, other = (sql.value("insert into whatsapp_users default values returning id") for _ in range(2))
    agent = uuid4()
    made = session(sql)
    session(sql, user_id=user)
    session(sql, user_id=other, agent_id=agent)
    session(sql, agent_id=uuid4())
    assert (row_of(sql, made)["user_id"], row_of(sql, made)["agent_id"]) == (user, agent)


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        (("", "a"), "user_phone"),
        (("  ", "a"), "user_phone"),
        ((None, "a"), "user_phone"),
        (("1" * 101, "a"), "user_phone"),
        (("1", ""), "agent_type"),
        (("1", None), "agent_type"),
        (("1", "a" * 101), "agent_type"),
    ],
)
def test_a_session_without_a_name_is_refused(sql: Sql, arguments: tuple[str, str], column: str) -> None:
    assert sql.refused("select get_or_create_agent_session(%s, %s)", *arguments) == ("PH001", column)
    assert sql.refused("select get_or_create_agent_session('1', 'a', %s)", uuid4()) == ("PH001", "user_id")


def test_fifty_callers_at_the_same_instant_get_one_session(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(50)]
    for old in (False, True):
        if old:
            end_its_time(callers[0], session(callers[0]))
        barrier = threading.Barrier(len(callers))

        def call(caller: Sql, barrier: threading.Barrier = barrier) -> UUID:
            barrier.wait(20)
            return session(caller)

        answers = [future.result(30) for future in [in_background(call, caller) for caller in callers]]
        assert len(set(answers)) == 1
    assert callers[0].rows("select status, count(*) from agent_chat_sessions group by 1 order by 1") == [
        ("active", 1),
        ("expired", 1),
    ]


@pytest.mark.parametrize("commits", [True, False])
def test_a_caller_waits_for_one_that_is_making_the_session(
    clients: Callable[..., Sql], commits: bool
) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction(force_rollback=not commits):
        made = session(first)
        answer = in_background(session, second)
        blocked_behind(watcher, second, first)
    assert (answer.result(10) == made) is commits


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_conflict_clause_the_second_caller_gets_an_error(
    own_database: Database, broken: bool
) -> None:
    if broken:
        clause = "on conflict (platform.normalize_phone(user_phone), agent_type) where status = 'active' do nothing"
        break_function(own_database, "get_or_create_agent_session", clause, "")
    with (
        own_database.connect() as one,
        own_database.connect() as two,
        own_database.connect(admin=True) as three,
    ):
        first, second, watcher = Sql(one), Sql(two), Sql(three)
        with one.transaction():
            made = session(first)
            answer = in_background(session, second)
            blocked_behind(watcher, second, first)
        if broken:
            assert getattr(answer.exception(10), "sqlstate", None) == "23505"
        else:
            assert answer.result(10) == made


def test_messages_come_back_in_order_with_the_context(sql: Sql) -> None:
    made = session(sql)
    for role, text in [("user", "Muraho"), ("assistant", "Hello"), ("tool", "{}"), ("system", "be kind")]:
        assert sql.value(SAY, made, role, text) is True
    sql.rows("""update agent_chat_sessions set context = '{"language": "rw"}'""")
    assert said(sql, made) == [
        ("user", "Muraho"),
        ("assistant", "Hello"),
        ("tool", "{}"),
        ("system", "be kind"),
    ]
    assert said(sql, made, 1) == [("system", "be kind")]
    found = sql.value("select get_agent_conversation(%s, 1)", made)
    assert found["context"] == {"language": "rw"} and set(found["messages"][0]) == {
        "role",
        "content",
        "timestamp",
        "metadata",
    }
    assert datetime.fromisoformat(found["messages"][0]["timestamp"]) == row_of(sql, made)["last_message_at"]


def test_the_history_keeps_the_last_hundred_and_the_count_all(sql: Sql) -> None:
    made = session(sql)
    for number in range(1, 104):
        sql.rows(SAY, made, "user", f"m{number}")
    found = said(sql, made, 100)
    assert (len(found), found[0][1], found[-1][1], row_of(sql, made)["message_count"]) == (
        100,
        "m4",
        "m103",
        103,
    )


@pytest.mark.parametrize(
    ("stored", "before"),
    [("null", 0), ("'null'", 0), ('\'{"role": "user"}\'', 1), ("jsonb_build_array(1, 2)", 2)],
)
def test_a_history_of_a_clients_own_making_takes_a_message_and_loses_nothing(
    sql: Sql, stored: str, before: int
) -> None:
    made = session(sql)
    sql.rows(f"update agent_chat_sessions set conversation_history = {stored}")
    assert sql.value(SAY, made, "user", "x") is True
    assert sql.value("select jsonb_array_length(conversation_history) from agent_chat_sessions") == before + 1


def test_a_message_does_not_lengthen_the_life_of_a_session(sql: Sql) -> None:
    made = session(sql)
    before = row_of(sql, made)["expires_at"]
    sql.rows(SAY, made, "user", "still there?")
    assert row_of(sql, made)["expires_at"] == before


def test_concurrent_messages_are_all_kept_in_the_order_of_their_times(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(4)]
    made = session(callers[0])
    for future in [
        in_background(lambda c=caller: [c.value(SAY, made, "user", "x") for _ in range(10)])
        for caller in callers
    ]:
        assert future.result(20) == [True] * 10
    assert callers[0].rows(
        "select message_count, jsonb_array_length(conversation_history) from agent_chat_sessions"
    ) == [(40, 40)]
    times = [
        row[0]
        for row in callers[0].rows(
            "select e ->> 'timestamp' from agent_chat_sessions, jsonb_array_elements(conversation_history) e"
        )
    ]
    assert times == sorted(times)


def test_a_session_that_is_over_or_unknown_takes_no_message_and_a_paused_one_does(sql: Sql) -> None:
    assert sql.value(SAY, uuid4(), "user", "x") is False
    made = session(sql)
    sql.rows(STATUS, made, "paused")
    assert sql.value(SAY, made, "user", "x") is True
    sql.rows(STATUS, made, "completed")
    assert sql.value(SAY, made, "user", "x") is False
    late = session(sql)
    end_its_time(sql, late)
    assert sql.value(SAY, late, "user", "x") is False
    assert row_of(sql, late)["conversation_history"] == []


@pytest.mark.parametrize(
    ("role", "content", "column"),
    [
        ("bot", "x", "role"),
        (None, "x", "role"),
        ("user", "", "content"),
        ("user", None, "content"),
        ("user", "x" * 32769, "content"),
    ],
)
def test_a_message_that_says_nothing_or_too_much_is_refused(
    sql: Sql, role: str, content: str, column: str
) -> None:
    assert sql.refused(SAY, session(sql), role, content) == ("PH001", column)
    assert sql.refused("select add_agent_message(%s, 'user', 'x', '[]')", session(sql)) == (
        "PH001",
        "metadata",
    )


def test_a_conversation_is_asked_for_in_bounds(sql: Sql) -> None:
    made = session(sql)
    assert sql.value("select get_agent_conversation(%s)", made) == {"messages": [], "context": {}}
    assert sql.value("select get_agent_conversation(%s)", uuid4()) is None
    for limit in (0, 101, None):
        assert sql.refused("select get_agent_conversation(%s, %s::integer)", made, limit) == (
            "PH001",
            "limit",
        )


def test_a_paused_session_stands_aside_and_cannot_come_back_over_another(sql: Sql) -> None:
    paused = session(sql)
    assert [sql.value(STATUS, paused, "paused") for _ in range(2)] == [True, False]
    other = session(sql)
    assert other != paused
    assert sql.refused(STATUS, paused, "active") == ("PH005", "session_id")
    assert sql.value(STATUS, other, "completed") is True
    assert sql.value(STATUS, paused, "active") is True and session(sql) == paused
    assert sql.refused(STATUS, other, "active") == ("PH005", "session_id")
    assert sql.refused(STATUS, other, "expired") == ("PH001", "status")
    assert sql.refused(STATUS, uuid4(), "paused") == ("PH004", "session_id")
    end_its_time(sql, paused)
    assert sql.refused(STATUS, paused, "paused") == ("PH005", "session_id")

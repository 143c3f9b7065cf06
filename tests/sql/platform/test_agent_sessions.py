"""agent_chat_sessions: one active per phone and agent whoever asks at once, 24 hours, a bounded history (SPEC C1)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.mutations import break_function
from tests.sql.parking import blocked_behind, in_background
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

PHONE = "250788000456"
SAY = "select add_agent_message(%s, %s, %s)"


def session(sql: Sql, phone: str = PHONE, agent: str = "booking", **arguments: Any) -> tuple[UUID, bool]:
    extra = "".join(f", p_{name} => %s" for name in arguments)
    values = [Jsonb(value) if isinstance(value, dict) else value for value in arguments.values()]
    return sql.rows(f"select session_id, created from get_or_create_agent_session(%s, %s{extra})", phone, agent, *values)[0]


def end_its_time(sql: Sql, session_id: UUID) -> None:
    sql.rows("update agent_chat_sessions set expires_at = clock_timestamp() - interval '1 second' where id = %s", session_id)


def status(sql: Sql, session_id: UUID) -> str:
    return sql.value("select status from agent_chat_sessions where id = %s", session_id)


def test_the_first_call_makes_a_session_and_the_second_finds_it(sql: Sql) -> None:
    first, created = session(sql, context={"language": "rw"})
    assert created and session(sql, context={"language": "en"}) == (first, False)
    row = sql.row("select *, expires_at - created_at as lives from agent_chat_sessions where id = %s", first)
    assert row["context"] == {"language": "rw"} and row["status"] == "active" and round(row["lives"].total_seconds()) == 86400


def test_phones_and_agents_have_sessions_of_their_own(sql: Sql) -> None:
    assert len({session(sql), session(sql, agent="support"), session(sql, phone="other")}) == 3


def test_a_session_whose_time_is_over_is_expired_and_followed_by_a_new_one(sql: Sql) -> None:
    old, _ = session(sql)
    end_its_time(sql, old)
    new, created = session(sql)
    assert created and new != old and status(sql, old) == "expired"


def test_the_user_is_filled_in_once_known_and_not_changed(sql: Sql) -> None:
    user = uuid4()
    session_id, _ = session(sql)
    session(sql, user_id=user)
    session(sql, user_id=uuid4())
    assert sql.value("select user_id from agent_chat_sessions where id = %s", session_id) == user


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        (("", "a"), "phone"),
        ((None, "a"), "phone"),
        (("1" * 101, "a"), "phone"),
        (("1", ""), "agent_type"),
        (("1", None), "agent_type"),
        (("1", "a" * 101), "agent_type"),
    ],
)
def test_a_session_without_a_name_is_refused(sql: Sql, arguments: tuple[str, str], column: str) -> None:
    assert sql.refused("select get_or_create_agent_session(%s, %s)", *arguments) == ("PH001", column)


@pytest.mark.parametrize("context", ["[]", "1", None])
def test_a_context_that_is_no_object_is_refused(sql: Sql, context: str | None) -> None:
    assert sql.refused("select get_or_create_agent_session('1', 'a', p_context => %s::jsonb)", context) == ("PH001", "context")


def test_two_active_sessions_of_a_phone_with_an_agent_cannot_be(sql: Sql) -> None:
    session(sql)
    assert sql.refused("insert into agent_chat_sessions (phone, agent_type) values (%s, 'booking')", PHONE)[0] == "23505"


def test_many_callers_at_the_same_instant_get_one_session(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(6)]
    for old in (False, True):
        if old:
            end_its_time(callers[0], session(callers[0])[0])
        barrier = threading.Barrier(len(callers))

        def call(caller: Sql, barrier: threading.Barrier = barrier) -> tuple[UUID, bool]:
            barrier.wait(10)
            return session(caller)

        answers = [future.result(20) for future in [in_background(call, caller) for caller in callers]]
        assert len({answer[0] for answer in answers}) == 1 and sum(answer[1] for answer in answers) == 1
    assert callers[0].value("select count(*) from agent_chat_sessions where status = 'active'") == 1


@pytest.mark.parametrize("commits", [True, False])
def test_a_caller_waits_for_one_that_is_making_the_session(clients: Callable[..., Sql], commits: bool) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction(force_rollback=not commits):
        made = session(first)
        answer = in_background(session, second)
        blocked_behind(watcher, second, first)
    found = answer.result(10)
    assert (found == (made[0], False)) if commits else (found[1] and found[0] != made[0])


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_conflict_clause_the_second_caller_gets_an_error(own_database: Database, broken: bool) -> None:
    if broken:
        break_function(own_database, "get_or_create_agent_session", "on conflict (phone, agent_type) where status = 'active' do nothing", "")
    with own_database.connect() as one, own_database.connect() as two, own_database.connect(admin=True) as three:
        first, second, watcher = Sql(one), Sql(two), Sql(three)
        with one.transaction():
            made = session(first)
            answer = in_background(session, second)
            blocked_behind(watcher, second, first)
        if broken:
            assert getattr(answer.exception(10), "sqlstate", None) == "23505"
        else:
            assert answer.result(10) == (made[0], False)


def test_messages_come_back_in_order_with_their_place_in_the_session(sql: Sql) -> None:
    session_id, _ = session(sql)
    assert [sql.value(SAY, session_id, role, text) for role, text in [("user", "Muraho"), ("assistant", "Hello"), ("tool", "{}")]] == [1, 2, 3]
    rows = sql.rows('select "position", role, content, metadata from get_agent_conversation(%s)', session_id)
    assert rows == [(1, "user", "Muraho", {}), (2, "assistant", "Hello", {}), (3, "tool", "{}", {})]
    assert sql.rows('select "position", content from get_agent_conversation(%s, 1)', session_id) == [(3, "{}")]


def test_the_history_keeps_the_last_hundred(sql: Sql) -> None:
    session_id, _ = session(sql)
    for number in range(1, 104):
        sql.rows(SAY, session_id, "user", f"m{number}")
    rows = sql.rows('select "position", content from get_agent_conversation(%s, 100)', session_id)
    assert (len(rows), rows[0], rows[-1]) == (100, (4, "m4"), (103, "m103"))


def test_a_message_lets_the_session_live_another_24_hours(sql: Sql) -> None:
    session_id, _ = session(sql)
    sql.rows("update agent_chat_sessions set expires_at = clock_timestamp() + interval '1 minute'")
    sql.rows(SAY, session_id, "user", "still there?")
    assert sql.value("select expires_at > clock_timestamp() + interval '23 hours' from agent_chat_sessions")


def test_concurrent_messages_are_all_kept(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(4)]
    session_id, _ = session(callers[0])
    for future in [in_background(lambda c=caller: [c.value(SAY, session_id, "user", "x") for _ in range(10)]) for caller in callers]:
        future.result(20)
    assert callers[0].rows("select message_count, jsonb_array_length(history) from agent_chat_sessions") == [(40, 40)]


def test_a_session_that_is_over_or_unknown_or_paused_takes_no_message(sql: Sql) -> None:
    assert sql.refused(SAY, uuid4(), "user", "x") == ("PH004", "session_id")
    session_id, _ = session(sql)
    sql.rows("select set_agent_session_status(%s, 'paused')", session_id)
    assert sql.refused(SAY, session_id, "user", "x") == ("PH005", "session_id")
    sql.rows("select set_agent_session_status(%s, 'active')", session_id)
    end_its_time(sql, session_id)
    assert sql.refused(SAY, session_id, "user", "x") == ("PH005", "session_id")


@pytest.mark.parametrize(
    ("role", "content", "column"),
    [("bot", "x", "role"), (None, "x", "role"), ("user", "", "content"), ("user", None, "content"), ("user", "x" * 32769, "content")],
)
def test_a_message_that_says_nothing_or_too_much_is_refused(sql: Sql, role: str, content: str, column: str) -> None:
    assert sql.refused(SAY, session(sql)[0], role, content) == ("PH001", column)


def test_a_conversation_is_asked_for_in_bounds(sql: Sql) -> None:
    session_id, _ = session(sql)
    assert sql.rows("select * from get_agent_conversation(%s)", session_id) == []
    for limit in (0, 101, None):
        assert sql.refused("select get_agent_conversation(%s, %s::integer)", session_id, limit) == ("PH001", "limit")
    assert sql.refused("select get_agent_conversation(%s)", uuid4()) == ("PH004", "session_id")


def test_a_paused_session_stands_aside_and_cannot_come_back_over_another(sql: Sql) -> None:
    paused, _ = session(sql)
    set_status = "select set_agent_session_status(%s, %s)"
    assert sql.value(set_status, paused, "paused") is True and sql.value(set_status, paused, "paused") is False
    other, created = session(sql)
    assert created
    assert sql.refused(set_status, paused, "active") == ("PH005", "session_id")
    assert sql.value(set_status, other, "completed") is True
    assert sql.value(set_status, paused, "active") is True and session(sql) == (paused, False)
    assert sql.refused(set_status, other, "active") == ("PH005", "session_id")
    assert sql.refused(set_status, other, "expired") == ("PH001", "status")
    assert sql.refused(set_status, uuid4(), "paused") == ("PH004", "session_id")

"""ai_conversation_memory: the last 20 messages, a session of 30 minutes, one row whoever asks at once (SPEC
C7, PLATFORM 3.1).
"""

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

PHONE = "+250788000456"
GET = "select * from get_or_create_conversation_memory(%s, %s, %s::uuid)"
UPDATE = "select update_conversation_memory(%s, %s, %s)"


def get(sql: Sql, phone: str = PHONE, agent: str = "shop", session: UUID | None = None) -> dict[str, Any]:
    return sql.row(GET, phone, agent, session)


def say(
    sql: Sql, memory: UUID, content: str = "x", context: dict[str, Any] | None = None, **message: Any
) -> bool:
    given = {"role": "user", "content": content} | message
    return sql.value(UPDATE, memory, Jsonb(given), None if context is None else Jsonb(context))


def quiet_for(sql: Sql, minutes: float) -> None:
    sql.rows(
        "update ai_conversation_memory set last_interaction = last_interaction - %s::float8 * interval '1 minute'",
        minutes,
    )


def test_memory_is_made_once_and_found_again_by_any_form_of_the_phone(sql: Sql) -> None:
    first = get(sql)
    assert (first["conversation_history"], first["context"], first["message_count"], first["user_phone"]) == (
        [],
        {},
        0,
        PHONE,
    )
    again = get(sql, "00250 788 000 456")
    assert (again["id"], again["session_id"]) == (first["id"], first["session_id"]) and again[
        "last_interaction"
    ] > first["last_interaction"]


def test_agents_and_people_remember_apart(sql: Sql) -> None:
    assert len({get(sql)["id"], get(sql, agent="support")["id"], get(sql, "other")["id"]}) == 3


def test_after_thirty_quiet_minutes_a_new_row_and_session_begin(sql: Sql) -> None:
    first = get(sql)
    quiet_for(sql, 29.9)
    assert get(sql)["id"] == first["id"]
    quiet_for(sql, 30)
    second = get(sql)
    assert second["id"] != first["id"] and second["session_id"] != first["session_id"]
    assert get(sql)["id"] == second["id"], "the newest"


def test_a_session_that_is_named_starts_anew_in_its_row(sql: Sql) -> None:
    session = uuid4()
    first = get(sql, session=session)
    assert first["session_id"] == session
    say(sql, first["id"], context={"a": 1})
    kept = get(sql, "250788000456", session=session)
    assert (kept["id"], len(kept["conversation_history"]), kept["context"]) == (first["id"], 1, {"a": 1})
    quiet_for(sql, 31)
    anew = get(sql, session=session)
    assert (anew["id"], anew["conversation_history"], anew["context"]) == (first["id"], [], {})
    assert get(sql, session=uuid4())["id"] != first["id"]


def test_the_last_twenty_messages_stay_in_order_and_the_count_is_of_all(sql: Sql) -> None:
    memory = get(sql)["id"]
    assert all(say(sql, memory, f"m{number}") for number in range(1, 24))
    row = get(sql)
    assert [entry["content"] for entry in row["conversation_history"]] == [
        f"m{number}" for number in range(4, 24)
    ]
    assert row["message_count"] == 23


def test_a_message_gets_the_time_of_the_database_and_keeps_what_else_it_says(sql: Sql) -> None:
    memory = get(sql)["id"]
    say(sql, memory, "hi", timestamp="1999-01-01", tokens=3)
    (entry,) = get(sql)["conversation_history"]
    assert (entry["role"], entry["content"], entry["tokens"]) == ("user", "hi", 3) and not entry[
        "timestamp"
    ].startswith("1999")


def test_keys_are_put_into_the_context_and_null_removes_one(sql: Sql) -> None:
    memory = get(sql)["id"]
    say(sql, memory, context={"a": 1, "b": {"c": None}})
    say(sql, memory, context={"a": None, "d": 2})
    assert get(sql)["context"] == {"b": {"c": None}, "d": 2}
    say(sql, memory)
    assert get(sql)["context"] == {"b": {"c": None}, "d": 2}


def test_no_memory_no_update(sql: Sql) -> None:
    assert say(sql, uuid4()) is False


@pytest.mark.parametrize(
    ("message", "column"),
    [
        ("[]", "message"),
        ("{}", "role"),
        ('{"role": "bot", "content": "x"}', "role"),
        ('{"role": "user"}', "content"),
        ('{"role": "user", "content": ""}', "content"),
        (None, "message"),
    ],
)
def test_a_message_that_is_none_is_refused(sql: Sql, message: str | None, column: str) -> None:
    memory = get(sql)["id"]
    assert sql.refused("select update_conversation_memory(%s, %s::jsonb)", memory, message) == (
        "PH001",
        column,
    )
    assert sql.refused(
        """select update_conversation_memory(%s, '{"role": "user", "content": "x"}', '[]')""", memory
    ) == ("PH001", "context")


@pytest.mark.parametrize(
    ("phone", "agent", "column"),
    [("", "a", "user_phone"), (None, "a", "user_phone"), ("1", "", "agent_type"), ("1", None, "agent_type")],
)
def test_bad_arguments_are_refused_by_name(
    sql: Sql, phone: str | None, agent: str | None, column: str
) -> None:
    assert sql.refused(GET, phone, agent, None) == ("PH001", column)


@pytest.mark.parametrize("session", [None, UUID(int=9)])
def test_fifty_callers_at_the_same_instant_get_one_memory(
    clients: Callable[..., Sql], session: UUID | None
) -> None:
    callers = [clients() for _ in range(50)]
    forms = (PHONE, "00250788000456", "whatsapp:+250788000456")
    for _ in range(2):  # the second time all of them find one that is over
        barrier = threading.Barrier(len(callers))

        def call(number: int, barrier: threading.Barrier = barrier) -> UUID:
            barrier.wait(20)
            return get(callers[number], forms[number % 3], session=session)["id"]

        answers = [future.result(30) for future in [in_background(call, number) for number in range(50)]]
        assert len(set(answers)) == 1
        quiet_for(callers[0], 31)
    assert callers[0].value("select count(*) from ai_conversation_memory") == (2 if session is None else 1)


@pytest.mark.parametrize("broken", [False, True])
def test_without_its_lock_two_callers_make_two_memories(own_database: Database, broken: bool) -> None:
    if broken:
        lock = "perform pg_advisory_xact_lock(hashtext('packhorse memory'), hashtext(v_phone || ' ' || p_agent_type));"
        break_function(own_database, "get_or_create_conversation_memory", lock, "null;")
    with (
        own_database.connect() as one,
        own_database.connect() as two,
        own_database.connect(admin=True) as three,
    ):
        first, second, watcher = Sql(one), Sql(two), Sql(three)
        with one.transaction():
            made = get(first)["id"]
            answer = in_background(get, second)
            if not broken:
                blocked_behind(watcher, second, first)
            else:
                answer.result(10)
        assert (answer.result(10)["id"] == made) is not broken


def test_concurrent_messages_are_all_kept(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(4)]
    memory = get(callers[0])["id"]
    for future in [in_background(lambda c=caller: [say(c, memory) for _ in range(10)]) for caller in callers]:
        assert future.result(20) == [True] * 10
    row = get(callers[0])
    assert (row["message_count"], len(row["conversation_history"])) == (40, 20)
    times = [entry["timestamp"] for entry in row["conversation_history"]]
    assert times == sorted(times)

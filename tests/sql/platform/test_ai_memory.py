"""ai_conversation_memory: the last 20 messages, a session of 30 minutes, one row whoever asks at once (SPEC C7)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background

pytestmark = pytest.mark.slow

GET = "select session_id, is_new_session, messages, context, message_count from get_or_create_ai_memory(%s)"
SAY = "select add_ai_memory_message(%s, %s, %s)"


def get(sql: Sql, key: str = "wa:1") -> tuple[Any, ...]:
    return sql.rows(GET, key)[0]


def quiet_for(sql: Sql, minutes: int) -> None:
    sql.rows("update ai_conversation_memory set last_activity_at = clock_timestamp() - %s * interval '1 minute'", minutes)


def test_memory_is_made_once_and_found_again(sql: Sql) -> None:
    first = get(sql)
    assert first[1:] == (True, [], {}, 0)
    assert get(sql) == (first[0], False, [], {}, 0)


def test_agents_remember_apart(sql: Sql) -> None:
    sql.rows("select add_ai_memory_message('wa:1', 'user', 'x', 'booking')")
    assert sql.value("select messages from get_or_create_ai_memory('wa:1', 'support')") == []


def test_the_last_twenty_messages_stay_in_order(sql: Sql) -> None:
    assert [sql.value(SAY, "wa:1", "user", f"m{number}") for number in range(1, 24)] == list(range(1, 24))
    messages = get(sql)[2]
    assert [message["content"] for message in messages] == [f"m{number}" for number in range(4, 24)]
    assert set(messages[0]) == {"role", "content", "metadata", "sent_at"}


@pytest.mark.parametrize(("minutes", "forgotten"), [(29, False), (31, True)])
def test_after_thirty_quiet_minutes_a_new_session_begins_with_nothing(sql: Sql, minutes: int, forgotten: bool) -> None:
    sql.rows(SAY, "wa:1", "user", "x")
    sql.rows("select merge_ai_memory_context('wa:1', '{\"name\": \"Ann\"}')")
    before = get(sql)
    quiet_for(sql, minutes)
    after = get(sql)
    assert after[1] is forgotten and (after[0] != before[0]) is forgotten
    assert (after[2] == [] and after[3] == {}) is forgotten
    assert sql.value("select session_count from ai_conversation_memory") == (2 if forgotten else 1)


def test_looking_counts_as_activity(sql: Sql) -> None:
    sql.rows(SAY, "wa:1", "user", "x")
    quiet_for(sql, 20)
    get(sql)
    assert sql.value("select last_activity_at > clock_timestamp() - interval '1 minute' from ai_conversation_memory")


def test_a_message_after_a_quiet_time_starts_the_session_itself(sql: Sql) -> None:
    sql.rows(SAY, "wa:1", "user", "before")
    quiet_for(sql, 31)
    assert sql.value(SAY, "wa:1", "user", "after") == 2
    assert [message["content"] for message in get(sql)[2]] == ["after"]


def test_the_context_is_merged_and_null_takes_a_key_away(sql: Sql) -> None:
    merge = "select merge_ai_memory_context('wa:1', %s::jsonb)"
    assert sql.value(merge, '{"a": 1, "b": 2}') == {"a": 1, "b": 2}
    assert sql.value(merge, '{"b": null, "c": 3}') == {"a": 1, "c": 3}
    assert sql.refused(merge, "[1]") == ("PH001", "context")


def test_many_callers_at_the_same_instant_get_one_session_and_one_is_told_it_is_new(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(6)]
    for quiet in (False, True):
        if quiet:
            quiet_for(callers[0], 31)
        barrier = threading.Barrier(len(callers))

        def call(caller: Sql, barrier: threading.Barrier = barrier) -> tuple[Any, ...]:
            barrier.wait(10)
            return get(caller)

        answers = [future.result(20) for future in [in_background(call, caller) for caller in callers]]
        assert len({answer[0] for answer in answers}) == 1 and sum(answer[1] for answer in answers) == 1


def test_a_caller_waits_for_one_that_writes_and_sees_what_it_wrote(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction():
        first.rows(SAY, "wa:1", "user", "x")
        answer = in_background(get, second)
        blocked_behind(watcher, second, first)
    assert [message["content"] for message in answer.result(10)[2]] == ["x"]


@pytest.mark.parametrize(
    ("statement", "column"),
    [
        ("select get_or_create_ai_memory('')", "conversation_key"),
        ("select get_or_create_ai_memory(null)", "conversation_key"),
        ("select get_or_create_ai_memory(repeat('x', 501))", "conversation_key"),
        ("select get_or_create_ai_memory('k', '')", "agent_type"),
        ("select add_ai_memory_message('k', 'bot', 'x')", "role"),
        ("select add_ai_memory_message('k', 'user', '')", "content"),
        ("select add_ai_memory_message('k', 'user', 'x', p_metadata => '[]')", "metadata"),
        ("select merge_ai_memory_context('k', null)", "context"),
    ],
)
def test_bad_arguments_are_refused_by_name(sql: Sql, statement: str, column: str) -> None:
    assert sql.refused(statement) == ("PH001", column)


def test_no_writer_can_make_it_remember_more_than_twenty(sql: Sql) -> None:
    get(sql)
    assert sql.refused("update ai_conversation_memory set messages = (select jsonb_agg(n) from generate_series(1, 21) n)")[0] == "23514"

"""The health checks that look at the conversation platform: healthy, warning and failing data (SPEC O1)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.test_health_checks import check

pytestmark = pytest.mark.slow

PHONE = "250788000456"


def memory(sql: Sql, phone: str = PHONE, *said: tuple[str, int | None]) -> Any:
    """What an agent remembers of a conversation in which roles spoke so many seconds ago; None: a client that
    writes no time.
    """
    history = [
        {
            "role": role,
            "content": "x",
            **(
                {}
                if ago is None
                else {
                    "timestamp": sql.value(
                        "select to_jsonb(clock_timestamp() - %s * interval '1 second') #>> '{}'", ago
                    )
                }
            ),
        }
        for role, ago in said
    ]
    last = next((ago for _, ago in reversed(said) if ago is not None), 0)
    return sql.value(
        "insert into ai_conversation_memory (user_phone, agent_type, conversation_history, last_interaction) "
        "values (%s, 'booking', %s, clock_timestamp() - %s * interval '1 second') returning id",
        phone,
        Jsonb(history),
        last,
    )


def session(sql: Sql, phone: str = PHONE, status: str = "active", messages: int = 0) -> Any:
    return sql.value(
        "insert into agent_chat_sessions (user_phone, agent_type, status, message_count, created_at) "
        "values (%s, 'booking', %s, %s, clock_timestamp() - interval '1 minute') returning id",
        phone,
        status,
        messages,
    )


def workflows(sql: Sql, status: str, count: int, kind: str = "w") -> None:
    sql.rows(
        "insert into workflow_states (workflow_type, current_step, status) select %s, 's', %s from generate_series(1, %s)",
        kind,
        status,
        count,
    )


def test_an_empty_platform_is_healthy(sql: Sql) -> None:
    found = dict(sql.rows("select check_name, status from health_checks()"))
    assert found.pop("circuit_breakers") == "absent"
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    ("ago", "count", "expected"),
    [
        ("-1 hour", 9, "ok"),
        ("5 seconds", 9, "ok"),
        ("5 minutes", 1, "warn"),
        ("5 minutes", 4, "warn"),
        ("5 minutes", 5, "fail"),
        ("1 hour", 1, "fail"),
    ],
)
def test_workflows_past_their_timeout_are_stuck(sql: Sql, ago: str, count: int, expected: str) -> None:
    workflows(sql, "active", count)
    sql.rows("update workflow_states set timeout_at = clock_timestamp() - %s::interval", ago)
    found = check(sql, "stuck_workflows")
    assert found.status == expected
    over = 0 if ago.startswith("-") else count
    assert found.details["overdue"] == over
    assert [(row["workflow_type"], row["overdue"]) for row in found.details["types"]] == (
        [("w", over)] if over else []
    )
    assert len(found.details["oldest"] or []) == min(over, 5)
    sql.rows("update workflow_states set status = 'timeout'")
    assert check(sql, "stuck_workflows").details["overdue"] == 0


@pytest.mark.parametrize(
    ("ago", "expected"), [("29 minutes", "ok"), ("35 minutes", "warn"), ("2 hours", "fail")]
)
def test_a_workflow_without_a_timeout_is_stuck_when_nothing_happens_to_it(
    sql: Sql, ago: str, expected: str
) -> None:
    """Clients of the source set none at times."""
    workflows(sql, "active", 1)
    assert (
        check(sql, "stuck_workflows", no_timeout=f"{ago.split()[0]} {ago.split()[1]}").details["overdue"] == 0
    )
    # the trigger sets updated_at: what passed is told by asking for less
    shift = sql.value("select (interval '30 minutes' - %s::interval)::text", ago)
    assert check(sql, "stuck_workflows", no_timeout=shift).status == expected


@pytest.mark.parametrize(("failed", "timeout", "expected"), [(0, 0, "ok"), (2, 1, "warn"), (15, 15, "fail")])
def test_workflow_completion_is_judged_by_type(sql: Sql, failed: int, timeout: int, expected: str) -> None:
    for status, count in (
        ("completed", 20),
        ("failed", failed),
        ("timeout", timeout),
        ("cancelled", 50),
        ("active", 3),
        ("paused", 1),
    ):
        workflows(sql, status, count)
    found = check(sql, "workflow_completion")
    (row,) = found.details["types"]
    assert found.status == expected
    assert (row["completed"], row["failed"], row["timeout"], row["cancelled"], row["active"]) == (
        20,
        failed,
        timeout,
        50,
        4,
    )
    assert row["completion_rate_percent"] == pytest.approx(100 * 20 / (20 + failed + timeout), abs=0.01)


def test_a_type_with_few_ends_is_not_judged(sql: Sql) -> None:
    workflows(sql, "failed", 3)
    assert check(sql, "workflow_completion").status == "ok"
    assert check(sql, "workflow_completion", least=3).status == "fail"


@pytest.mark.parametrize(("took", "expected"), [(5, "ok"), (60, "warn"), (180, "fail")])
def test_agents_are_judged_by_the_time_until_they_answer(sql: Sql, took: int, expected: str) -> None:
    memory(sql, PHONE, ("user", 600), ("assistant", 598), ("user", 300), ("assistant", 300 - took))
    memory(sql, "+" + PHONE, ("user", 250), ("assistant", 250 - took))
    found = check(sql, "agent_performance")
    (agent,) = found.details["agents"]
    assert found.status == expected
    assert (
        agent["agent_type"],
        agent["people"],
        agent["conversations"],
        agent["replies"],
        agent["unanswered"],
    ) == ("booking", 1, 2, 3, 0)
    assert (agent["messages_each"], agent["active_last_hour"], agent["active_last_day"]) == (3.0, 2, 2)
    assert PHONE not in json.dumps(found)


@pytest.mark.parametrize(("unanswered", "expected"), [(0, "ok"), (2, "warn"), (8, "fail")])
def test_conversations_whose_last_word_is_the_users_are_unanswered(
    sql: Sql, unanswered: int, expected: str
) -> None:
    for number in range(10):
        memory(sql, str(number), ("assistant", 900), ("user" if number < unanswered else "assistant", 600))
    memory(sql, "just now", ("user", 10))
    found = check(sql, "agent_performance")
    assert (found.status, found.details["agents"][0]["unanswered"]) == (expected, unanswered)


def test_what_clients_write_without_a_time_or_with_another_word_for_it_is_no_failure(sql: Sql) -> None:
    memory(sql, PHONE, ("user", None), ("assistant", 5))
    history = [
        {"role": "user", "timestamp": "yesterday"},
        {"role": "user", "timestamp": "2026-13-45T99:00:00Z"},
        {"timestamp": 5},
        "text",
        7,
        None,
    ]
    sql.rows(
        "insert into ai_conversation_memory (user_phone, agent_type, conversation_history) values ('2', 'booking', %s)",
        Jsonb(history),
    )
    found = check(sql, "agent_performance")
    assert found.status == "ok"
    assert (found.details["agents"][0]["conversations"], found.details["agents"][0]["replies"]) == (2, 0)


def test_agents_of_yesterday_are_left_out(sql: Sql) -> None:
    memory(sql, PHONE, ("user", 2 * 86400))
    assert check(sql, "agent_performance").details["agents"] == []


@pytest.mark.parametrize(("ago", "expected"), [("10 minutes", "ok"), ("2 hours", "warn"), ("2 days", "fail")])
def test_sessions_that_are_over_and_not_marked_are_overdue(sql: Sql, ago: str, expected: str) -> None:
    session(sql, messages=4)
    old = session(sql, "2")
    session(sql, "3", "completed", 6)
    session(sql, "4", "completed", 2)
    sql.rows(
        "update agent_chat_sessions set expires_at = clock_timestamp() - %s::interval where id = %s", ago, old
    )
    found = check(sql, "agent_sessions")
    assert (found.status, found.details["open"], found.details["overdue"]) == (expected, 1, 1)
    rows = {
        row["status"]: (row["agent_type"], row["sessions"], row["messages"])
        for row in found.details["agents"]
    }
    assert rows == {"active": ("booking", 1, 4), "overdue": ("booking", 1, 0), "completed": ("booking", 2, 8)}
    assert all(59 < row["average_seconds"] < 600 for row in found.details["agents"])


def test_conversations_are_told_by_state_with_their_idle_time_and_locks(sql: Sql) -> None:
    insert = "insert into conversations (conversation_key, phone, status, last_message_at, lock_holder, locked_at, lock_expires_at) values "
    lock = "clock_timestamp(), clock_timestamp() + interval '1 minute'"
    sql.rows(
        f"{insert} ('a', '1', 'open', clock_timestamp() - interval '1 hour', null, null, null), ('b', '1', 'open', clock_timestamp(), 'ann', {lock}), ('c', '1', 'closed', clock_timestamp(), null, null, null)"
    )
    rows = {row["status"]: row for row in check(sql, "conversation_state").details["conversations"]}
    assert {name: (row["conversations"], row["held_locks"]) for name, row in rows.items()} == {
        "open": (2, 1),
        "closed": (1, 0),
    }
    assert 3599 < rows["open"]["idle_most_seconds"] < 3700


def test_the_summary_tells_stuck_workflows_and_active_sessions(sql: Sql) -> None:
    session(sql)
    session(sql, "2", "paused")
    workflows(sql, "active", 3)
    sql.rows(
        "update workflow_states set timeout_at = clock_timestamp() - interval '1 minute' where id = (select id from workflow_states limit 1)"
    )
    glance = check(sql, "system_summary").details["glance"]
    assert (glance["stuck_workflows"], glance["active_sessions"], glance["error_ratio"]) == (1, 1, None)


def test_locks_of_conversations_that_are_over_are_counted(sql: Sql) -> None:
    sql.rows(
        "insert into conversations (conversation_key, phone, lock_holder, locked_at, lock_expires_at) "
        "values ('c', %s, 'ann', clock_timestamp(), clock_timestamp() + interval '1 minute')",
        PHONE,
    )
    assert check(sql, "stale_locks").details["platform_locks_over"] == 0
    sql.rows("update conversations set lock_expires_at = clock_timestamp() - interval '1 minute'")
    assert check(sql, "stale_locks").details["platform_locks_over"] == 1

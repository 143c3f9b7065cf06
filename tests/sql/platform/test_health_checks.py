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


def session(sql: Sql, phone: str = PHONE, *said: tuple[str, int]) -> Any:
    """A session in which roles spoke so many seconds ago."""
    found = sql.value("select session_id from get_or_create_agent_session(%s, 'booking')", phone)
    now = sql.value("select clock_timestamp()")
    history = [
        {"role": role, "content": "x", "metadata": {}, "sent_at": sql.value("select (%s::timestamptz - %s * interval '1 second')::text", now, ago)}
        for role, ago in said
    ]
    sql.rows("update agent_chat_sessions set history = %s, message_count = %s where id = %s", Jsonb(history), len(history), found)
    return found


def workflows(sql: Sql, status: str, count: int) -> None:
    sql.rows(
        "insert into workflow_states (workflow_type, step, status, timeout_at, finished_at) select 'w', 's', %s, clock_timestamp(), "
        "clock_timestamp() from generate_series(1, %s)",
        status,
        count,
    )


def test_an_empty_platform_is_healthy(sql: Sql) -> None:
    found = dict(sql.rows("select check_name, status from health_checks()"))
    assert found.pop("circuit_breakers") == "absent"
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(("ago", "expected"), [("-1 hour", "ok"), ("5 seconds", "ok"), ("5 minutes", "warn"), ("1 hour", "fail")])
def test_workflows_past_their_timeout_are_stuck(sql: Sql, ago: str, expected: str) -> None:
    workflow = sql.value("select start_workflow('w', 's')")
    sql.rows("update workflow_states set timeout_at = clock_timestamp() - %s::interval", ago)
    found = check(sql, "stuck_workflows")
    assert found.status == expected
    assert found.details["overdue"] == (0 if ago.startswith("-") else 1)
    assert ago.startswith("-") or found.details["oldest"][0]["id"] == str(workflow)
    sql.rows("select mark_timed_out_workflows()")
    assert check(sql, "stuck_workflows").details["overdue"] == 0


@pytest.mark.parametrize(("failed", "timed_out", "expected"), [(0, 0, "ok"), (2, 1, "warn"), (15, 15, "fail")])
def test_workflow_completion_is_judged_by_type(sql: Sql, failed: int, timed_out: int, expected: str) -> None:
    for status, count in (("completed", 20), ("failed", failed), ("timed_out", timed_out), ("cancelled", 50)):
        workflows(sql, status, count)
    found = check(sql, "workflow_completion")
    (row,) = found.details["types"]
    assert found.status == expected
    assert (row["completed"], row["failed"], row["timed_out"], row["cancelled"]) == (20, failed, timed_out, 50)


def test_a_type_with_few_ends_is_not_judged(sql: Sql) -> None:
    workflows(sql, "failed", 3)
    assert check(sql, "workflow_completion").status == "ok"
    assert check(sql, "workflow_completion", least=3).status == "fail"


@pytest.mark.parametrize(("took", "expected"), [(5, "ok"), (60, "warn"), (180, "fail")])
def test_agents_are_judged_by_the_time_until_they_answer(sql: Sql, took: int, expected: str) -> None:
    session(sql, PHONE, ("user", 600), ("assistant", 598), ("user", 300), ("assistant", 300 - took))
    session(sql, "2", ("user", 250), ("assistant", 250 - took))
    found = check(sql, "agent_performance")
    (agent,) = found.details["agents"]
    assert found.status == expected
    assert (agent["agent_type"], agent["sessions"], agent["replies"], agent["unanswered"]) == ("booking", 2, 3, 0)
    assert PHONE not in json.dumps(found)


@pytest.mark.parametrize(("unanswered", "expected"), [(0, "ok"), (2, "warn"), (8, "fail")])
def test_sessions_whose_last_word_is_the_users_are_unanswered(sql: Sql, unanswered: int, expected: str) -> None:
    for number in range(10):
        session(sql, str(number), ("assistant", 900), ("user" if number < unanswered else "assistant", 600))
    session(sql, "just now", ("user", 10))
    found = check(sql, "agent_performance")
    assert (found.status, found.details["agents"][0]["unanswered"]) == (expected, unanswered)


@pytest.mark.parametrize(("ago", "expected"), [("10 minutes", "ok"), ("2 hours", "warn"), ("2 days", "fail")])
def test_sessions_that_are_over_and_not_marked_are_overdue(sql: Sql, ago: str, expected: str) -> None:
    session(sql)
    old = session(sql, "2")
    sql.rows("update agent_chat_sessions set expires_at = clock_timestamp() - %s::interval where id = %s", ago, old)
    found = check(sql, "agent_sessions")
    assert (found.status, found.details["open"], found.details["overdue"]) == (expected, 1, 1)
    assert found.details["agents"] == [{"agent_type": "booking", "active": 1, "paused": 0}]


def test_locks_of_conversations_that_are_over_are_counted(sql: Sql) -> None:
    conversation = sql.value("select conversation_id from get_or_create_conversation('c', %s)", PHONE)
    sql.rows("select lock_conversation(%s, 'ann')", conversation)
    assert check(sql, "stale_locks").details["platform_locks_over"] == 0
    sql.rows("update conversations set lock_expires_at = clock_timestamp() - interval '1 minute'")
    assert check(sql, "stale_locks").details["platform_locks_over"] == 1

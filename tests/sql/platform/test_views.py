"""The views that people look at (PLATFORM 4): columns, and what they count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, Sql
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

COLUMNS = {
    "workflow_health": [
        ("workflow_type", "text"),
        ("status", "text"),
        ("count", "bigint"),
        ("avg_duration_seconds", "double precision"),
        ("max_idle_seconds", "double precision"),
        ("completion_rate_percent", "numeric"),
    ],
    "ai_agent_usage": [
        ("agent_type", "text"),
        ("unique_users", "bigint"),
        ("total_conversations", "bigint"),
        ("avg_messages_per_conversation", "numeric"),
        ("last_used", "timestamp with time zone"),
        ("active_last_hour", "bigint"),
    ],
    "message_queue_by_status": [
        ("status", "text"),
        ("count", "bigint"),
        ("avg_retries", "numeric"),
        ("max_retries", "integer"),
        ("oldest_message", "timestamp with time zone"),
        ("locked_count", "bigint"),
    ],
}


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_the_columns_that_its_readers_know(sql: Sql, view: str) -> None:
    rows = sql.rows(
        "select attname::text, format_type(atttypid, null) from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum",
        view,
    )
    assert rows == COLUMNS[view]


def test_workflows_of_a_day_are_counted_by_type_and_status(sql: Sql) -> None:
    insert = "insert into workflow_states (workflow_type, current_step, status, started_at, completed_at) values (%s, 's', %s, {0}, {1})"
    started = "clock_timestamp() - interval '1 hour'"
    for status, count in (("completed", 3), ("failed", 1), ("active", 2)):
        for _ in range(count):
            end = "clock_timestamp() - interval '30 minutes'" if status != "active" else "null"
            sql.rows(insert.format(started, end), "order", status)
    sql.rows(insert.format("clock_timestamp() - interval '25 hours'", "null"), "order", "active")
    sql.rows(insert.format(started, "null"), "payment", "active")
    rows = {(row[0], row[1]): row[2:] for row in sql.rows("select * from workflow_health")}
    assert {key: row[0] for key, row in rows.items()} == {
        ("order", "completed"): 3,
        ("order", "failed"): 1,
        ("order", "active"): 2,
        ("payment", "active"): 1,
    }
    assert {row[3] for key, row in rows.items() if key[0] == "order"} == {75} and rows["payment", "active"][
        3
    ] is None
    assert 1799 < rows["order", "completed"][1] < 1860 and 3599 < rows["order", "active"][1] < 3660


def test_agents_are_counted_from_what_they_remember_of_a_day(sql: Sql) -> None:
    insert = "insert into ai_conversation_memory (user_phone, agent_type, conversation_history, message_count, created_at, last_interaction) values "
    now = "clock_timestamp()"
    sql.rows(f"{insert} ('+1', 'a', %s, 0, {now}, {now})", Jsonb([{}] * 4))  # a client that counts nothing
    sql.rows(f"{insert} ('1', 'a', '[]', 30, {now}, {now} - interval '2 hours')")
    sql.rows(f"{insert} ('2', 'a', '[]', 5, {now} - interval '25 hours', {now})")
    ((agent, users, conversations, messages, recent),) = sql.rows(
        "select agent_type, unique_users, total_conversations, avg_messages_per_conversation, active_last_hour from ai_agent_usage"
    )
    assert (agent, users, conversations, messages, recent) == ("a", 1, 2, 17, 1)


def test_messages_of_a_day_are_counted_by_status(sql: Sql) -> None:
    sql.rows("select enqueue_message('q', 'x')")
    sql.rows(
        "select enqueue_message('q', 'x', p_conversation_key => 'c'), enqueue_message('q', 'x', p_conversation_key => 'c')"
    )
    sql.rows("update message_queue set state = 'blocked' where id = (select max(id) from message_queue)")
    for attempt in (2, 4):
        sql.rows("select enqueue_message('q', 'retried')")
        sql.rows(
            "update message_queue set attempt = %s where id = (select max(id) from message_queue)", attempt
        )
    sql.rows("select enqueue_message('q', 'old')")
    sql.rows(
        "update message_queue set created_at = clock_timestamp() - interval '25 hours' where message_type = 'old'"
    )
    sql.rows("select claim_messages(%s, '{q}', 1)", HOLDER)
    rows = {
        row[0]: row[1:]
        for row in sql.rows(
            "select status, count, avg_retries, max_retries, locked_count from message_queue_by_status"
        )
    }
    assert {name: row[0] for name, row in rows.items()} == {
        "pending": 1,
        "processing": 1,
        "blocked": 1,
        "retry": 2,
    }
    assert rows["retry"] == (2, 2, 3, 0) and rows["processing"][3] == 1
    sql.rows(
        "select complete_messages(array_agg(id), array_agg(lease_token)) from message_queue where state = 'running'"
    )
    sql.rows(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "values (nextval('message_queue_id_seq'), 'q', 'x', '{}', '{}', 5, 'failed', 'f', 3, 0, clock_timestamp())"
    )
    rows = {
        row[0]: row[1:] for row in sql.rows("select status, count, max_retries from message_queue_by_status")
    }
    assert rows["completed"] == (1, 0) and rows["failed"] == (1, 2) and "processing" not in rows


def test_old_partitions_of_the_archive_are_not_opened(own_database: Database) -> None:
    own_database.query(
        "create table packhorse.message_archive_old partition of packhorse.message_archive for values from ('2020-01-01') to ('2020-01-02')"
    )
    plan = "\n".join(row[0] for row in own_database.query("explain select * from message_queue_by_status"))
    assert "message_archive_2" in plan and "message_archive_old" not in plan


def test_the_questions_of_the_page_are_answered(sql: Sql) -> None:
    page = (Path(__file__).parents[3] / "docs/platform.md").read_text()
    block = re.findall(r"## Watch marketplace and assistant\n\n```sql\n(.*?)```", page, re.DOTALL)[0]
    questions = [part.strip() for part in block.split(";") if part.strip()]
    sql.rows("insert into amara_conversations (user_id) values (gen_random_uuid())")
    sql.rows(
        "insert into amara_messages (conversation_id, role, content) select id, 'user', 'x' from amara_conversations, generate_series(1, 3)"
    )
    sql.rows(
        "insert into guest_sessions (email, full_name, metadata) values ('a', 'a', '{\"converted_to_user_id\": 1}'), ('b', 'b', '{}')"
    )
    sql.rows("insert into platform_events (event_type, session_id) values ('SearchStarted', 's')")
    answers = [sql.rows(question) for question in questions]
    assert answers[0][0][1:] == (1, 3) and answers[1] == [(2, 1, 0, 0)]
    assert answers[3][0][1:] == ("SearchStarted", 1) and answers[4][0] == ("SearchStarted", 1, 100)
    assert {row[0] for row in answers[5]} == {
        "amara_conversations",
        "amara_messages",
        "guest_sessions",
        "platform_events",
    }

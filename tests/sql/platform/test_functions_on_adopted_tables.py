"""The functions answer in the types of the contract on tables of a host, which has varchar and integer in
their place (PLATFORM 1, rule 11).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.sql.client import Sql
from tests.sql.platform.test_adopt_tables import ADOPTED, theirs
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

PHONE = "+250 788 000-111"


@pytest.fixture
def adopted(any_database: Database) -> Iterator[Sql]:
    """The worker's client of a database whose tables were there before."""
    for table in ADOPTED:
        any_database.query(theirs(table))
    connection = connect(any_database.admin_url, deadline_seconds=120)
    migrate.up(connection, sets=["platform"])
    connection.close()
    with any_database.connect() as made:
        yield Sql(made)


def test_each_function_works_there(adopted: Sql) -> None:
    sql = adopted
    sql.rows("select declare_queue('q')")
    session = sql.value("select get_or_create_agent_session(%s, 'shop')", PHONE)
    assert sql.value("select get_or_create_agent_session('00250788000111', 'shop')") == session
    assert sql.value("select add_agent_message(%s, 'user', 'x')", session) is True
    assert len(sql.value("select get_agent_conversation(%s)", session)["messages"]) == 1
    memory = sql.row("select * from get_or_create_conversation_memory(%s, 'shop')", PHONE)
    assert (
        sql.value(
            """select update_conversation_memory(%s, '{"role": "user", "content": "x"}')""", memory["id"]
        )
        is True
    )
    workflow = sql.value("select start_workflow('order', 'menu', p_user_phone => %s)", PHONE)
    assert (
        sql.value("select advance_workflow(%s, 'next')", workflow) == 2
        and sql.value("select finish_workflow(%s)", workflow) is True
    )
    guest = sql.row("select * from create_guest_session('ann@example.com', 'Ann', %s)", PHONE)
    assert sql.row("select * from get_guest_session(%s)", guest["session_token"])["full_name"] == "Ann"
    sql.rows("insert into companies (id, name) values (1, 'Salon')")
    sql.rows("insert into bookings (guest_session_id) values (%s)", guest["id"])
    assert sql.value("select convert_guest_to_user(%s, gen_random_uuid())", guest["id"]) == 1
    sql.rows(
        "insert into messages (phone, company_id, direction, message) values (%s, 1, 'inbound', 'x')", PHONE
    )
    assert [row[2] for row in sql.rows("select * from get_recent_messages(%s, 1)", PHONE)] == ["x"]
    sql.rows("insert into platform_events (event_type, session_id) values ('SearchStarted', 's')")
    assert sql.rows("select * from get_event_counts_by_type()") == [("SearchStarted", 1, 0, 1)]
    assert sql.rows("select unique_users from get_conversion_funnel()")[0] == (1,)
    sql.rows("insert into reminders (remind_at, phone, queue) values (now(), %s, 'q')", PHONE)
    assert sql.value("select enqueue_due_reminders()") == 1
    sql.rows(
        "insert into webhook_events (event_category, event_type, destination) values ('delivery', 'x', %s)",
        PHONE,
    )
    data = sql.value("select export_person_data(p_phone => %s)", PHONE)
    assert {name for name, rows in data.items() if rows} >= {
        "agent_chat_sessions",
        "messages",
        "guest_sessions",
        "reminders",
        "webhook_events",
    }
    done = dict((row[0], row[2]) for row in sql.rows("select * from erase_person_data(p_phone => %s)", PHONE))
    assert (done["messages"], done["agent_chat_sessions"], done["webhook_events"]) == (1, 1, 1)
    for function in (
        "cleanup_expired_dialog_contexts",
        "cleanup_expired_appointments_cache",
        "cleanup_expired_whatsapp_keys",
        "cleanup_expired_guest_sessions",
        "cleanup_old_conversations",
        "cleanup_old_platform_events",
        "cleanup_old_webhook_events",
        "cleanup_old_audit_events",
    ):
        assert sql.value(f"select {function}()") == 0, function

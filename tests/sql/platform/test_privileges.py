"""Who may do what with the platform: least privilege by role, row by row where it must be (SPEC O9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.sql.client import Sql
from tests.sql.platform.conftest import seed
from tests.sql.platform.test_catalogue import FUNCTIONS, RELATIONS
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

DENIED = "42501"
SECRET = {"whatsapp_auth", "whatsapp_keys"}
TOLD = {"platform_events", "webhook_events", "audit_events"}
READ = {
    "check_text",
    "check_span",
    "check_period",
    "platform_rights",
    "refuse_agent_session",
    "get_agent_conversation",
    "get_event_counts_by_type",
    "get_conversion_funnel",
    "get_user_referral_credits",
    "get_messages_stats",
    "get_recent_messages",
    "get_database_stats",
}


@pytest.fixture
def as_role(shared_database: Database) -> Iterator[Callable[[str], Sql]]:
    """Clients in a role, each in a transaction that is rolled back, on the seeded schema."""
    made: list[psycopg.Connection] = []

    def connect(role: str) -> Sql:
        connection = shared_database.connect(admin=True)
        connection.autocommit = False
        made.append(connection)
        client = Sql(connection)
        seed(client)
        client.rows(f"set local role {role}")
        return client

    yield connect
    for connection in made:
        connection.rollback()
        connection.close()


def callable_by(sql: Sql) -> set[str]:
    rows = sql.rows("select proname::text from pg_proc where pronamespace = 'public'::regnamespace and has_function_privilege(oid, 'execute')")
    return {row[0] for row in rows} & FUNCTIONS


def granted(sql: Sql, privilege: str) -> set[str]:
    rows = sql.rows(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v') "
        "and not relispartition and has_table_privilege(oid, %s)",
        privilege,
    )
    return {row[0] for row in rows} & RELATIONS


def test_a_producer_tells_what_happened_and_reads_nothing(as_role: Callable[[str], Sql]) -> None:
    producer = as_role("packhorse_producer")
    assert callable_by(producer) == set()
    assert granted(producer, "insert") == TOLD
    assert [granted(producer, privilege) for privilege in ("select", "update", "delete", "truncate")] == [set()] * 4
    producer.rows("insert into platform_events (event_type) values ('page_view')")
    producer.rows("insert into webhook_events (source, external_id) values ('whatsapp', 'w')")
    producer.rows("insert into audit_events (category, actor, action) values ('security', 'ann', 'login')")
    assert producer.refused("select * from audit_events")[0] == DENIED
    assert producer.refused("delete from platform_events")[0] == DENIED


def test_a_reader_sees_all_but_secrets_and_changes_nothing(as_role: Callable[[str], Sql]) -> None:
    reader = as_role("packhorse_reader")
    assert callable_by(reader) == READ
    assert granted(reader, "select") == RELATIONS - SECRET - {"phone_number"}
    assert [granted(reader, privilege) for privilege in ("insert", "update", "delete", "truncate")] == [set()] * 4
    assert reader.rows("select name from companies") == [("Salon",)]
    for secret in SECRET:
        assert reader.refused(f"select * from {secret}")[0] == DENIED
    assert reader.refused("select get_whatsapp_auth_stats()")[0] == DENIED


@pytest.mark.parametrize(
    "call",
    [
        "get_event_counts_by_type()",
        "get_conversion_funnel()",
        "get_user_referral_credits(gen_random_uuid())",
        "get_messages_stats()",
        "get_recent_messages('1')",
        "get_database_stats()",
    ],
)
def test_a_reader_can_call_what_it_may(as_role: Callable[[str], Sql], call: str) -> None:
    as_role("packhorse_reader").rows(f"select * from {call}")


def test_a_reader_is_told_what_was_wrong_with_its_arguments(as_role: Callable[[str], Sql]) -> None:
    reader = as_role("packhorse_reader")
    assert reader.refused("select get_recent_messages('')") == ("PH001", "phone")
    assert reader.refused("select get_agent_conversation(gen_random_uuid())") == ("PH004", "session_id")


def test_a_worker_works_on_everything_and_owns_nothing(as_role: Callable[[str], Sql]) -> None:
    worker = as_role("packhorse_worker")
    assert callable_by(worker) == FUNCTIONS
    tables = RELATIONS - {"phone_number", "workflow_health", "ai_agent_usage"}
    assert granted(worker, "select") >= tables and granted(worker, "insert") == tables and granted(worker, "delete") == tables
    assert granted(worker, "update") == tables - {"platform_events", "audit_events"}
    assert granted(worker, "truncate") == set()
    for statement in (
        "drop table bookings",
        "alter table audit_events disable trigger all",
        "truncate messages",
        "alter table messages disable row level security",
        "update platform_events set event_type = 'x'",
    ):
        assert worker.refused(statement)[0] == DENIED, statement


def test_a_worker_cannot_lock_or_move_what_is_guarded(as_role: Callable[[str], Sql]) -> None:
    """What a bulk delete passes by is not even seen by FOR UPDATE, so a retention of one's own does not stumble over it."""
    worker = as_role("packhorse_worker")
    worker.rows("insert into audit_events (category, actor, action) values ('security', 'a', 'x'), ('data', 'a', 'y')")
    worker.rows(
        "insert into platform_events (event_type, user_id, properties) values ('referral_credit_spent', gen_random_uuid(), '{\"amount\": 1}'), "
        "('page_view', null, '{}')"
    )
    assert worker.rows("select action from audit_events for update") == [("y",)]
    assert worker.rows("select event_type from platform_events for update") == [("page_view",)]
    assert worker.refused("update platform_events set id = id + 1000000")[0] == DENIED


def test_a_stranger_can_do_nothing(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        stranger = Sql(connection)
        stranger.rows("create role platform_stranger")
        stranger.rows("set local role platform_stranger")
        assert callable_by(stranger) == set() and granted(stranger, "select") == set()

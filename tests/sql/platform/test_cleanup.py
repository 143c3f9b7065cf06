"""Every function of the upkeep: what is over goes, oldest first and in bounds; what lives, or is locked,
stays (SPEC M3, M4, M4b).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.sql.client import Sql
from tests.sql.mutations import break_function
from tests.support.postgres import Database

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Upkeep:
    """One function; `insert` makes a row that has the name %(key)s and was over %(age)s ago, when that is
    positive.
    """

    function: str
    insert: str
    left: str  # the names of the rows that the function has not dealt with
    index: str
    most: int = 100_000


UPKEEP = [
    Upkeep(
        "cleanup_expired_appointments_cache",
        "insert into appointments_cache (company_id, cache_key, appointments, expires_at) "
        "values (1, %(key)s, '[]', clock_timestamp() - %(age)s::interval)",
        "select cache_key from appointments_cache",
        "idx_appointments_cache_expires",
    ),
    Upkeep(
        "cleanup_expired_guest_sessions",
        "insert into guest_sessions (email, full_name, expires_at) values (%(key)s, 'Ann', clock_timestamp() - %(age)s::interval)",
        "select email from guest_sessions",
        "idx_guest_sessions_expires_at",
    ),
    Upkeep(
        "expire_agent_chat_sessions",
        "insert into agent_chat_sessions (user_phone, agent_type, expires_at) values (%(key)s, 'a', clock_timestamp() - %(age)s::interval)",
        "select user_phone from agent_chat_sessions where status = 'active'",
        "idx_agent_chat_sessions_expires_at",
    ),
    Upkeep(
        "cleanup_old_conversations",
        "insert into ai_conversation_memory (user_phone, agent_type, last_interaction) "
        "values (%(key)s, 'a', clock_timestamp() - interval '7 days' - %(age)s::interval)",
        "select user_phone from ai_conversation_memory",
        "idx_ai_memory_last_interaction",
    ),
    Upkeep(
        "mark_timed_out_workflows",
        "insert into workflow_states (workflow_type, current_step, timeout_at) values (%(key)s, 's', clock_timestamp() - %(age)s::interval)",
        "select workflow_type from workflow_states where status = 'active'",
        "idx_workflow_timeout",
    ),
    Upkeep(
        "release_stuck_conversations",
        "insert into conversations (conversation_key, phone, lock_holder, locked_at, lock_expires_at) values "
        "(%(key)s, '1', 'ann', clock_timestamp() - interval '1 minute' - %(age)s::interval, clock_timestamp() - %(age)s::interval)",
        "select conversation_key from conversations where lock_holder is not null",
        "conversations_locked_idx",
    ),
    Upkeep(
        "cleanup_old_platform_events",
        "insert into platform_events (event_type, created_at) values (%(key)s, clock_timestamp() - interval '90 days' - %(age)s::interval)",
        "select event_type from platform_events",
        "idx_platform_events_created_at",
    ),
    Upkeep(
        "cleanup_old_webhook_events",
        "insert into webhook_events (event_category, event_type, webhook_id, status, created_at, delivered_at) values ('incoming', 's', %(key)s, 'processed', "
        "clock_timestamp() - interval '31 days' - %(age)s::interval, clock_timestamp() - interval '30 days' - %(age)s::interval)",
        "select webhook_id from webhook_events",
        "idx_webhook_events_created",
    ),
    Upkeep(
        "cleanup_old_audit_events",
        "insert into audit_events (event_category, event_type, action, created_at) "
        "values ('system', 'login', %(key)s, clock_timestamp() - interval '365 days' - %(age)s::interval)",
        "select action from audit_events",
        "idx_audit_events_retention",
    ),
    Upkeep(
        "cleanup_expired_dialog_contexts",
        "insert into dialog_contexts (phone, company_id, expires_at) values (%(key)s, 1, clock_timestamp() - %(age)s::interval)",
        "select phone from dialog_contexts",
        "idx_dialog_contexts_expires",
    ),
    Upkeep(
        "cleanup_expired_whatsapp_keys",
        "insert into whatsapp_keys (company_id, key_type, key_id, value, expires_at) "
        "values (1, 't', %(key)s, '{}', clock_timestamp() - %(age)s::interval)",
        "select key_id from whatsapp_keys",
        "idx_whatsapp_keys_expires",
    ),
    Upkeep(
        "enqueue_due_reminders",
        "insert into reminders (phone, queue, remind_at) values (%(key)s, 'q', clock_timestamp() - %(age)s::interval)",
        "select phone from reminders where status = 'pending'",
        "idx_reminders_remind_at",
        10_000,
    ),
]
each = pytest.mark.parametrize("upkeep", UPKEEP, ids=lambda upkeep: upkeep.function)
older = pytest.mark.parametrize(
    "function",
    [
        "cleanup_old_conversations",
        "cleanup_old_platform_events",
        "cleanup_old_webhook_events",
        "cleanup_old_audit_events",
    ],
)


def insert(sql: Sql, upkeep: Upkeep, key: str, age: str) -> None:
    sql.connection.execute(upkeep.insert, {"key": key, "age": age})


def left(sql: Sql, upkeep: Upkeep) -> set[str]:
    return {row[0] for row in sql.rows(upkeep.left)}


@each
def test_what_is_over_goes_and_what_lives_stays(sql: Sql, upkeep: Upkeep) -> None:
    for key, age in {
        "over": "1 hour",
        "just_over": "1 second",
        "live": "-30 seconds",
        "long_live": "-20 hours",
    }.items():
        insert(sql, upkeep, key, age)
    assert sql.value(f"select {upkeep.function}()") == 2
    assert left(sql, upkeep) == {"live", "long_live"}
    assert sql.value(f"select {upkeep.function}()") == 0


@each
def test_a_batch_is_bounded_and_takes_the_oldest_first(sql: Sql, upkeep: Upkeep) -> None:
    for key, age in {"c": "1 hour", "a": "9 hours", "d": "1 minute", "b": "5 hours"}.items():
        insert(sql, upkeep, key, age)
    assert sql.value(f"select {upkeep.function}(p_limit => 3)") == 3
    assert left(sql, upkeep) == {"d"}
    assert sql.value(f"select {upkeep.function}(p_limit => 3)") == 1


@each
def test_a_limit_out_of_range_is_refused(sql: Sql, upkeep: Upkeep) -> None:
    for limit in (0, -1, upkeep.most + 1):
        assert sql.refused(f"select {upkeep.function}(p_limit => %s::integer)", limit) == ("PH001", "limit")


@each
def test_a_row_that_somebody_works_on_is_passed_by_and_not_waited_for(
    clients: Callable[..., Sql], upkeep: Upkeep
) -> None:
    owner, worker = clients(admin=True), clients()
    worker.rows("set statement_timeout = '5s'")
    for key, age in {"held": "9 hours", "free": "1 hour"}.items():
        insert(worker, upkeep, key, age)
    with owner.connection.transaction():
        table = re.search(r"insert into (\w+)", upkeep.insert)
        column = re.match(r"select (\w+)", upkeep.left)
        assert table and column
        assert len(owner.rows(f"select 1 from {table[1]} where {column[1]} = 'held' for update")) == 1
        assert worker.value(f"select {upkeep.function}(p_limit => 1)") == 1
        assert left(worker, upkeep) == {"held"}
    assert worker.value(f"select {upkeep.function}(p_limit => 1)") == 1


@each
def test_the_batch_is_found_by_its_index_in_the_order_of_the_index(sql: Sql, upkeep: Upkeep) -> None:
    body = sql.value("select prosrc from pg_proc where proname = %s", upkeep.function)
    batch = re.search(r"(?:as materialized|array)\s*\(\s*(select .*?for update skip locked)", body, re.DOTALL)
    assert batch, f"{upkeep.function} has no batch that skips what is locked"
    text = batch[1]
    for name, value in {
        "v_now": "now()",
        "v_before": "now() - interval '1 year'",
        "p_after": "interval '5 minutes'",
        "p_limit": "10",
        "v_count": "0",
    }.items():
        text = re.sub(rf"\b{name}\b", value, text)
    sql.rows("set local enable_seqscan = off")
    sql.rows("set local enable_bitmapscan = off")
    sql.rows("set local enable_sort = off")  # an empty table is sorted as cheaply
    plan = json.dumps(sql.value("explain (format json) " + text))
    assert f'"Index Name": "{upkeep.index}"' in plan and '"Node Type": "Sort"' not in plan, plan


@older
def test_an_age_that_would_meet_living_rows_or_none_is_refused(sql: Sql, function: str) -> None:
    for age in ("0", "29 minutes", "-1 day", "11 years", None):
        assert sql.refused(f"select {function}(p_older_than => %s::interval)", age) == ("PH001", "older_than")
    assert sql.value(f"select {function}(p_older_than => '31 days')") == 0


def test_a_lock_that_is_still_valid_is_never_taken(sql: Sql) -> None:
    """An hour's lock was taken after five minutes (SPEC M2). One without an end is stuck after p_after."""
    for key, age, end in [
        ("valid", "6 minutes", "clock_timestamp() + interval '1 hour'"),
        ("endless", "6 minutes", "null"),
        ("infinite", "6 minutes", "'infinity'"),
        ("endless_fresh", "4 minutes", "null"),
        ("over", "1 minute", "clock_timestamp() - interval '1 second'"),
    ]:
        sql.rows(
            "insert into conversations (conversation_key, phone, lock_holder, locked_at, lock_expires_at) "
            f"values (%s, '1', 'ann', clock_timestamp() - %s::interval, {end})",
            key,
            age,
        )
    held = "select conversation_key from conversations where lock_holder is not null order by 1"
    assert sql.value("select release_stuck_conversations()") == 3
    assert sql.rows(held) == [("endless_fresh",), ("valid",)]
    assert sql.value("select release_stuck_conversations('1 second')") == 1
    assert sql.rows(held) == [("valid",)]
    for after in ("0", "-1 minute", None, "400 days"):
        assert sql.refused("select release_stuck_conversations(%s::interval)", after) == ("PH001", "after")


def test_paused_sessions_expire_too_and_ended_ones_are_left_alone(sql: Sql) -> None:
    sql.rows(
        "insert into agent_chat_sessions (user_phone, agent_type, status, expires_at, ended_at) values "
        "('1', 'a', 'paused', now() - interval '1 day', null), ('2', 'a', 'completed', now() - interval '1 day', now() - interval '2 days')"
    )
    assert sql.value("select expire_agent_chat_sessions()") == 1
    assert sql.rows(
        "select user_phone, status, ended_at > now() - interval '1 hour' from agent_chat_sessions order by user_phone"
    ) == [("1", "expired", True), ("2", "completed", False)]


def test_a_webhook_that_is_not_finished_stays_however_old_and_goes_by_its_end_not_its_beginning(
    sql: Sql,
) -> None:
    sql.rows(
        "insert into webhook_events (event_category, event_type, status, created_at, delivered_at) "
        "select 'incoming', s, s, now() - interval '9 years', null from unnest(array['pending', 'sent', 'received', 'failed']) s "
        "union all select 'delivery', 'late', 'delivered', now() - interval '9 years', now()"
    )
    sql.rows(
        "insert into webhook_events (event_category, event_type, created_at) values ('error', 'without', now() - interval '31 days')"
    )
    assert sql.value("select cleanup_old_webhook_events()") == 2
    assert {row[0] for row in sql.rows("select event_type from webhook_events")} == {
        "pending",
        "sent",
        "received",
        "late",
    }


def test_security_records_stay_whatever_their_age(sql: Sql) -> None:
    sql.rows(
        "insert into audit_events (event_category, event_type, action, created_at) select c, c, 'view', now() - interval '9 years' "
        "from unnest(array['security', 'system', 'security', 'user_action']) c"
    )
    assert sql.value("select cleanup_old_audit_events(p_limit => 1)") == 1
    assert sql.value("select cleanup_old_audit_events()") == 1
    assert sql.rows("select distinct event_category from audit_events") == [("security",)]


def test_a_guest_session_that_a_booking_needs_stays_and_is_ended_once(sql: Sql) -> None:
    sql.rows(
        "insert into guest_sessions (email, full_name, expires_at) select 'e' || n, 'Ann', now() - interval '1 hour' from generate_series(1, 2) n"
    )
    sql.rows("insert into bookings (guest_session_id) select id from guest_sessions where email = 'e1'")
    assert [sql.value("select cleanup_expired_guest_sessions()") for _ in range(2)] == [2, 0]
    assert sql.rows("select email, expired_at is not null from guest_sessions") == [("e1", True)]


@each
def test_without_a_limit_all_that_is_due_goes_in_one_call(sql: Sql, upkeep: Upkeep) -> None:
    if upkeep.function == "enqueue_due_reminders":
        assert sql.refused("select enqueue_due_reminders(null)") == ("PH001", "limit")
        return
    for number in range(30):
        insert(sql, upkeep, f"k{number}", "1 hour")
    assert sql.value(f"select {upkeep.function}(p_limit => null)") == 30


def test_a_key_without_an_end_stays(sql: Sql) -> None:
    sql.rows("insert into whatsapp_keys (company_id, key_type, key_id, value) values (1, 't', 'k', '{}')")
    assert sql.value("select cleanup_expired_whatsapp_keys()") == 0


@pytest.mark.parametrize("broken", [False, True])
def test_without_skip_locked_the_upkeep_waits_for_whoever_has_a_row(
    own_database: Database, broken: bool
) -> None:
    if broken:
        break_function(
            own_database, "cleanup_expired_dialog_contexts", "for update skip locked", "for update"
        )
    with own_database.connect(admin=True) as owner, own_database.connect() as connection:
        owner.execute("insert into companies (id, name) values (1, 'Salon')")
        owner.execute(
            "insert into dialog_contexts (phone, company_id, expires_at) values ('1', 1, now() - interval '1 day')"
        )
        worker = Sql(connection)
        worker.rows("set lock_timeout = '200ms'")
        with owner.transaction():
            owner.execute("select from dialog_contexts for update")
            if broken:
                assert worker.refused("select cleanup_expired_dialog_contexts()")[0] == "55P03"
            else:
                assert worker.value("select cleanup_expired_dialog_contexts()") == 0

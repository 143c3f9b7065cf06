"""What clients of the five sources write, as they write it: plain statements by column, which must succeed
(PLATFORM 1, rule 1).
"""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.mutations import break_function
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

USER = "00000000-0000-0000-0000-00000000000a"
#: Source -> statements in the order in which its client issues them.
STATEMENTS = {
    "S000 sessions": [
        "insert into whatsapp_users (wa_id, phone_number) values ('250788000456', '+250788000456')",
        "insert into whatsapp_users (phone_number) values ('+250788000457')",
        "insert into agent_chat_sessions (user_id, user_phone, agent_type) select id, phone_number, 'booking' from whatsapp_users limit 1",
        'update agent_chat_sessions set conversation_history = conversation_history || \'[{"role": "user", "content": "hi"}]\'::jsonb, '
        "last_message_at = now(), updated_at = now() where user_phone = '+250788000456' and agent_type = 'booking' and status = 'active'",
        "update agent_chat_sessions set context = '{\"step\": 2}' where user_phone = '+250788000456'",
        "update agent_chat_sessions set status = 'completed' where user_phone = '+250788000456'",
        "insert into agent_chat_sessions (agent_type, context, conversation_history, status, expires_at) values ('generic', null, null, null, null)",
        "delete from whatsapp_users where wa_id = '250788000456'",
    ],
    "S000 logs": [
        "insert into webhook_events (event_category, event_type, webhook_id, source, payload, status) values "
        "('incoming', 'message', 'wamid.1', 'whatsapp', '{\"a\": 1}', 'pending')",
        "insert into webhook_events (event_category, event_type, webhook_id, source, destination, status, retry_count) values "
        "('delivery', 'delivery_attempt', 'wamid.1', 'twilio', '+250788000456', 'sent', 1), ('delivery', 'delivery_attempt', 'wamid.1', 'twilio', null, 'x', 2)",
        "update webhook_events set status = 'delivered', delivered_at = now() where webhook_id = 'wamid.1'",
        "insert into webhook_events (event_category, event_type, payload, headers) values ('routing', 'x', '[1]', 'null')",
        "insert into audit_events (event_category, event_type, user_id, actor_type, actor_ip, resource_type, resource_id, action, changes) values "
        f"('user_action', 'trip_status_change', '{USER}', 'user', '10.0.0.1', 'trip', '{USER}', 'update', '{{\"before\": 1}}')",
        "insert into audit_events (event_category, event_type, action, status) values ('security', 'login', 'view', 'unauthorized')",
    ],
    "S001": [
        "insert into ai_conversation_memory (user_phone, agent_type) values ('+250788000456', 'general_broker')",
        'update ai_conversation_memory set conversation_history = \'[{"role": "user", "content": "hi"}]\', context = \'{}\', last_interaction = now(), '
        "updated_at = now() where user_phone = '+250788000456'",
        "insert into ai_conversation_memory (user_phone, agent_type, session_id) values ('+250788000456', 'general_broker', gen_random_uuid())",
        "insert into workflow_states (user_phone, workflow_type, current_step, correlation_id, timeout_at) values "
        f"('+250788000456', 'order', 'show_menu', '{USER}', now() + interval '15 minutes')",
        "update workflow_states set current_step = 'choose', workflow_data = workflow_data || '{\"item\": 1}' where user_phone = '+250788000456'",
        "update workflow_states set status = 'completed', completed_at = now() where user_phone = '+250788000456'",
        "insert into workflow_states (user_phone, workflow_type, current_step, status, error_info) values ('1', 'x', 'y', 'failed', '\"text\"')",
        "delete from ai_conversation_memory where last_interaction < now() + interval '1 day'",
    ],
    "S002": [
        f"insert into amara_conversations (user_id, locale) values ('{USER}', 'rw')",
        "insert into amara_messages (conversation_id, role, content, tool_calls, metadata) "
        "select id, 'assistant', '', '{\"not\": \"an array\"}', '[1]' from amara_conversations",
        "update amara_conversations set is_active = false, last_message_at = now()",
        "insert into guest_sessions (email, full_name, phone) values ('a@b.c', 'Ann', '+250 788 000 456')",
        "insert into guest_sessions (session_token, email, full_name, expires_at, metadata) values ('short', '', '', now() + interval '90 days', '[]')",
        "update guest_sessions set metadata = metadata || '{\"converted_to_user_id\": \"x\"}' where email = 'a@b.c'",
        "insert into bookings (guest_session_id) select id from guest_sessions where email = 'a@b.c'",
        f"insert into bookings (customer_id, guest_session_id) select '{USER}', id from guest_sessions where email = 'a@b.c'",
        "insert into platform_events (event_type, user_id, session_id, properties) values ('SearchStarted', null, 'not-a-uuid', '[]')",
        "insert into platform_events (event_type, properties) values ('', null)",
        f"insert into referrals (referrer_id, referee_id, referral_code_id) values ('{USER}', gen_random_uuid(), gen_random_uuid())",
        "update referrals set status = 'rewarded', rewarded_at = now()",
        "delete from amara_conversations",
    ],
    "S003": [
        "delete from services",  # the seed gave ids that the sequence does not know
        "delete from staff",
        "insert into companies (id, name, yclients_company_id, phone, settings) values (962302, 'Salon 2', 962302, '79936363848', '{}')",
        "insert into clients (company_id, yclients_client_id, phone, name, discount, visits_count, tags) values "
        "(962302, 5, '79936363848', 'Ann', 10.5, 3, array['vip']) on conflict (company_id, phone) do update set name = excluded.name",
        "insert into clients (company_id, yclients_client_id, phone, name) values (962302, 5, '+7 993 636-38-48', 'Anna') "
        "on conflict (company_id, phone) do update set name = excluded.name, synced_at = now()",
        "insert into services (company_id, yclients_service_id, title, price_min, price_max, duration) values (962302, 7, 'Cut', 100, 200.5, 30), "
        "(962302, null, 'Other', null, null, 60) on conflict (company_id, yclients_service_id) do update set title = excluded.title",
        "insert into staff (company_id, yclients_staff_id, name, rating, phone) values (962302, 9, 'Bob', 4.75, null) "
        "on conflict (company_id, yclients_staff_id) do update set name = excluded.name",
        "insert into staff_schedules (company_id, staff_id, date, start_time, end_time) select 962302, id, '2030-01-01', '09:00', '18:00' from staff "
        "where company_id = 962302 on conflict (staff_id, date) do update set is_working = excluded.is_working",
        "insert into bookings (company_id, yclients_booking_id, client_id, service_id, staff_id, datetime, duration, cost) "
        "select 962302, 11, c.id, s.id, t.id, '2030-01-01 10:00+00', 30, 150 from clients c, services s, staff t where c.company_id = 962302 "
        "and s.company_id = 962302 and s.title = 'Cut' and t.company_id = 962302 on conflict (company_id, yclients_booking_id) do update set cost = 160",
        "update bookings set status = 'declined' where company_id = 962302",
        "insert into reminders (company_id, booking_id, remind_at, type) select company_id, id, now(), 'sms' from bookings where company_id = 962302",
        "update reminders set status = 'sent', sent_at = now() where company_id = 962302",
        "insert into dialog_contexts (phone, company_id, context, current_step) values ('79936363848', 962302, '[]', 'start') "
        "on conflict (phone, company_id) do update set context = excluded.context, expires_at = null",
        "insert into appointments_cache (company_id, cache_key, appointments, expires_at) values (962302, '2030-01-01', '[]', now() + interval '15 minutes') "
        "on conflict (company_id, cache_key) do update set appointments = excluded.appointments",
        "insert into sync_status (company_id, entity_type, last_sync_at, records_synced) values (962302, 'bookings', now(), 38) "
        "on conflict (company_id, entity_type) do update set last_error = 'x'",
        "insert into whatsapp_auth (company_id, creds) values ('962302', '{}') on conflict (company_id) do update set creds = excluded.creds, updated_at = now()",
        "insert into whatsapp_keys (company_id, key_type, key_id, value) values ('962302', 'session', '1.0', to_jsonb(repeat('x', 9000))) "
        "on conflict (company_id, key_type, key_id) do update set value = excluded.value, updated_at = now()",
        "insert into messages (company_id, phone, message, direction, message_id, from_me) values (962302, '79936363848@c.us', 'hi', 'inbound', 'm', false)",
        "insert into messages (company_id, phone, direction, status) values (962302, '79936363848', 'outbound', null)",
        "update messages set processed = true, processed_at = now(), ai_response = 'hello', processing_time_ms = 5, intent = 'greet' where message_id = 'm'",
    ],
}


@pytest.mark.parametrize("source", STATEMENTS)
def test_every_statement_of_a_source_succeeds(sql: Sql, source: str) -> None:
    for statement in STATEMENTS[source]:
        sql.connection.execute(statement)


def only(sql: Sql, statement: str) -> Any:
    (row,) = sql.rows(statement)
    return row


@pytest.mark.parametrize(
    ("table", "start", "status", "column", "final", "open_again"),
    [
        (
            "agent_chat_sessions",
            "(agent_type) values ('x')",
            "status",
            "ended_at",
            ["completed", "expired"],
            ["active", "paused"],
        ),
        (
            "workflow_states",
            "(workflow_type, current_step) values ('w', 's')",
            "status",
            "completed_at",
            ["completed", "failed", "timeout", "cancelled"],
            ["active", "paused"],
        ),
        (
            "bookings",
            "(customer_id) values (gen_random_uuid())",
            "status",
            "finished_at",
            ["declined", "completed", "cancelled", "no_show"],
            ["pending", "confirmed", "in_progress"],
        ),
        (
            "reminders",
            "(remind_at) values (now())",
            "status",
            "finished_at",
            ["sent", "failed", "cancelled", "expired"],
            ["pending", "enqueued"],
        ),
    ],
)
def test_the_database_says_when_something_ended_however_a_client_ended_it(
    sql: Sql, table: str, start: str, status: str, column: str, final: list[str], open_again: list[str]
) -> None:
    sql.rows(f"insert into {table} {start}")
    for ended in final:
        for other in open_again:
            sql.rows(f"update {table} set {status} = %s", other)
            assert only(sql, f"select {column} from {table}") == (None,), other
        sql.rows(f"update {table} set {status} = %s", ended)
        assert only(sql, f"select clock_timestamp() - {column} < interval '1 minute' from {table}") == (
            True,
        ), ended
    before = only(sql, f"select {column} from {table}")
    sql.rows(f"update {table} set {status} = {status}")
    assert only(sql, f"select {column} from {table}") == before, "it ended once"
    columns, values = start.split(") values (")
    sql.rows(f"insert into {table} {columns}, {status}) values ({values[:-1]}, %s)", final[0])
    assert sql.value(f"select count(*) from {table} where {column} is not null") == 2


def test_updated_at_is_the_databases_time_whatever_a_client_gives(sql: Sql) -> None:
    sql.rows("update companies set updated_at = '2000-01-01', name = 'X'")
    assert only(sql, "select clock_timestamp() - updated_at < interval '1 minute' from companies") == (True,)
    sql.rows("insert into whatsapp_auth (company_id, creds, updated_at) values ('1', '{}', '2000-01-01')")
    sql.rows("update whatsapp_auth set creds = '[]'")
    assert only(sql, "select updated_at > '2001-01-01' from whatsapp_auth") == (True,)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("+250 788 123-456", "250788123456"),
        ("00250788123456", "250788123456"),
        ("250788123456:12@s.whatsapp.net", "250788123456"),
        ("whatsapp:+250788123456", "250788123456"),
        ("WhatsApp: tel:(250) 788.123/456 ", "250788123456"),
        ("250788123456@c.us@s.whatsapp.net", "250788123456"),
        ("0000000788", "0788"),
        ("0788123456", "0788123456"),
        ("000", "0"),
        ("00", None),
        (" \t\n", None),
        ("tel:", None),
        ("@c.us", None),
        ("+", "+"),
        (" ann@example.com ", "ann@example.com"),
        ("tel: Ann", "Ann"),
        ("120363-1500@g.us", "120363-1500@g.us"),
        ("1:2:3@c.us", "1:2"),
    ],
)
def test_a_phone_has_one_form(sql: Sql, given: str, stored: str | None) -> None:
    assert sql.value("select normalize_phone(%s)", given) == stored
    assert sql.value("select normalize_phone(normalize_phone(%s))", given) == stored
    sql.rows("insert into companies (id, name, phone) values (2, 'X', %s)", given)
    assert sql.value("select phone from companies where id = 2") == stored


@pytest.mark.parametrize(
    "table",
    ["clients (company_id, phone) values (1, %s)", "messages (phone, direction) values (%s, 'inbound')"],
)
def test_a_phone_that_says_nothing_is_refused_where_one_is_needed(sql: Sql, table: str) -> None:
    assert sql.refused(f"insert into {table}", "  ") == ("23502", "phone")


def test_two_forms_of_one_number_are_one_client_and_one_active_session(sql: Sql) -> None:
    sql.rows("insert into clients (company_id, phone) values (1, '250788000456')")
    assert sql.refused("insert into clients (company_id, phone) values (1, '+250 788 000 456')")[0] == "23505"
    sql.rows("insert into agent_chat_sessions (user_phone, agent_type) values ('250788000456', 'x')")
    assert (
        sql.refused(
            "insert into agent_chat_sessions (user_phone, agent_type) values ('whatsapp:+250788000456', 'x')"
        )[0]
        == "23505"
    )
    sql.rows(
        "insert into agent_chat_sessions (user_phone, agent_type, status) values ('+250788000456', 'x', 'paused')"
    )
    assert sql.rows("select user_phone from agent_chat_sessions order by 1") == [
        ("+250788000456",),
        ("250788000456",),
    ], "kept as given"
    sql.rows(
        "insert into workflow_states (user_phone, workflow_type, current_step) values ('250788000456', 'w', 's')"
    )
    assert (
        sql.refused(
            "insert into workflow_states (user_phone, workflow_type, current_step) values ('+250788000456', 'w', 's')"
        )[0]
        == "23505"
    )
    for _ in range(2):
        sql.rows("insert into workflow_states (workflow_type, current_step) values ('w', 's')")


def test_a_phone_is_not_normalised_without_its_trigger(own_database: Database) -> None:
    """The test of the test: whoever takes the trigger's one line out is found."""
    break_function(
        own_database, "normalize_phone_columns", "new.phone := public.normalize_phone(new.phone);", ""
    )
    own_database.query("insert into companies (id, name, phone) values (2, 'X', '+1')")
    assert own_database.value("select phone from companies where id = 2") == "+1"


def salon(sql: Sql) -> None:
    """A booking of the seeded company."""
    sql.rows("insert into clients (id, company_id, phone) values (1, 1, '1')")
    sql.rows(
        "insert into bookings (company_id, client_id, service_id, staff_id, datetime, duration) values (1, 1, 1, 1, '2030-01-01', 30)"
    )


def test_a_company_goes_with_all_that_is_its_own_but_not_under_its_bookings(sql: Sql) -> None:
    salon(sql)
    sql.rows("insert into conversations (conversation_key, phone, company_id) values ('c', '1', 1)")
    sql.rows("insert into whatsapp_auth (company_id, creds) values ('1', '{}'), ('2', '{}')")
    sql.rows(
        "insert into whatsapp_keys (company_id, key_type, key_id, value) values ('1', 't', 'k', '{}'), ('2', 't', 'k', '{}')"
    )
    for table in ("companies", "clients", "services", "staff"):
        assert sql.refused(f"delete from {table}")[0] in ("23503", "23001"), table
    sql.rows("delete from bookings")
    sql.rows("delete from companies where id = 1")
    for table in ("clients", "services", "staff", "conversations"):
        assert sql.rows(f"select from {table}") == [], table
    assert sql.rows(
        "select company_id from whatsapp_auth union all select company_id from whatsapp_keys"
    ) == [("2",), ("2",)]


@pytest.mark.parametrize("wrong", ["client_id", "service_id", "staff_id"])
def test_all_of_a_booking_belongs_to_its_company(sql: Sql, wrong: str) -> None:
    sql.rows("insert into companies (id, name) values (2, 'Other')")
    sql.rows("insert into clients (id, company_id, phone) values (1, 1, '1'), (2, 2, '2')")
    sql.rows("insert into services (id, company_id, title) values (2, 2, 'X')")
    sql.rows("insert into staff (id, company_id, name) values (2, 2, 'X')")
    ids = {"client_id": 1, "service_id": 1, "staff_id": 1, wrong: 2}
    statement = "insert into bookings (company_id, client_id, service_id, staff_id, datetime, duration) values (1, %s, %s, %s, '2030-01-01', 30)"
    assert sql.refused(statement, *ids.values())[0] == "23503"


@pytest.mark.parametrize(
    ("columns", "values", "code"),
    [
        ("company_id", "1", "23514"),  # nobody booked
        # a salon's row without a time
        ("client_id, company_id, service_id, staff_id, duration", "1, 1, 1, 1, 30", "23514"),
        (
            "client_id, company_id, service_id, staff_id, datetime, duration",
            "1, 1, 1, 1, '2019-12-31', 30",
            "23514",
        ),
        ("customer_id, duration", "gen_random_uuid(), 0", "23514"),
        ("customer_id, status", "gen_random_uuid(), 'done'", "23514"),
        ("customer_id, currency", "gen_random_uuid(), 'eur'", "23514"),
    ],
)
def test_a_booking_that_is_none_is_refused(sql: Sql, columns: str, values: str, code: str) -> None:
    sql.rows("insert into clients (id, company_id, phone) values (1, 1, '1')")
    assert sql.refused(f"insert into bookings ({columns}) values ({values})")[0] == code


def test_more_than_twenty_messages_and_what_is_no_array_are_no_memory(sql: Sql) -> None:
    statement = "insert into ai_conversation_memory (user_phone, agent_type, conversation_history) values ('1', 'x', %s)"
    sql.rows(statement, Jsonb([{}] * 20))
    assert sql.refused(statement, Jsonb([{}] * 21))[0] == "23514"
    assert sql.refused(statement, Jsonb({}))[0] == "23514"


def test_a_referral_of_oneself_is_refused(sql: Sql) -> None:
    assert (
        sql.refused(f"insert into referrals (referrer_id, referee_id) values ('{USER}', '{USER}')")[0]
        == "23514"
    )


def test_a_conversation_with_amara_is_as_young_as_its_newest_message(sql: Sql) -> None:
    sql.rows(f"insert into amara_conversations (user_id, last_message_at) values ('{USER}', '2020-01-01')")
    insert = "insert into amara_messages (conversation_id, role, content, created_at) select id, 'user', 'x', %s::timestamptz from amara_conversations"
    sql.rows(insert, "2021-01-01")
    sql.rows(insert, "2020-06-01")
    assert sql.value("select last_message_at = '2021-01-01'::timestamptz from amara_conversations") is True


def audit(database: Database) -> Any:
    """The owner of the log, in a transaction that is rolled back, with an old record of each kind and one of
    security that a backfill made.
    """
    connection = database.connect(admin=True)
    connection.autocommit = False
    owner = Sql(connection)
    insert = "insert into audit_events (event_category, event_type, action, metadata) values "
    owner.rows(
        f"{insert} ('system', 'x', 'N', '{{}}'), ('security', 'x', 'S', '{{}}'), ('security', 'x', 'M', '{{\"migrated_from\": \"t\"}}')"
    )
    return owner


DENIED = "42501"


def test_the_log_is_closed_to_its_owner_but_for_an_erasure_and_a_way_back(own_database: Database) -> None:
    owner = audit(own_database)
    for statement in (
        "update audit_events set changes = null",
        "delete from audit_events where event_category = 'security'",
        "truncate audit_events",
    ):
        assert owner.refused(statement)[0] == DENIED, statement
    owner.rows("set local packhorse_platform.audit_exception = 'erasure'")
    owner.rows("update audit_events set changes = null, actor_ip = null where action = 'N'")
    assert owner.refused("update audit_events set changes = null where action = 'S'")[0] == DENIED
    assert (
        owner.refused("update audit_events set event_category = 'security' where action = 'N'")[0] == DENIED
    )
    assert owner.refused("delete from audit_events where action = 'M'")[0] == DENIED
    owner.rows("set local packhorse_platform.audit_exception = 'way_back'")
    assert owner.refused("update audit_events set changes = null where action = 'N'")[0] == DENIED
    assert owner.refused("delete from audit_events where action = 'S'")[0] == DENIED
    owner.rows("delete from audit_events where action = 'M'")
    assert owner.refused("truncate audit_events")[0] == DENIED
    owner.connection.close()


@pytest.mark.parametrize("exception", ["erasure", "way_back", "x"])
def test_the_setting_opens_nothing_to_one_who_is_not_the_owner(
    own_database: Database, exception: str
) -> None:
    """Not even to a worker that got rights and a policy by mistake."""
    owner = audit(own_database)
    owner.rows("grant update, delete on audit_events to packhorse_worker")
    owner.rows("create policy by_mistake on audit_events to packhorse_worker using (true) with check (true)")
    owner.rows("set local role packhorse_worker")
    owner.rows(f"set local packhorse_platform.audit_exception = '{exception}'")
    assert owner.refused("update audit_events set changes = null where action = 'N'")[0] == DENIED
    assert owner.refused("delete from audit_events where action = 'M'")[0] == DENIED
    owner.connection.close()

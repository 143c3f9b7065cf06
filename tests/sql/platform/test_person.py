"""Export and erasure of a person: every table with a phone or a user, and nobody else's rows (PLATFORM
11).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.platform.conftest import seed
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

ANN, BOB = UUID(int=0xA), UUID(int=0xB)
PHONES = {ANN: "250788000111", BOB: "250788000222"}
FORM = "+250 788 000-111"
#: What a person leaves behind; each statement with %(user)s, %(phone)s (normal form), %(given)s (as the
#: person writes it), %(mail)s, %(n)s, %(guest)s (an id).
TRACES = [
    "insert into whatsapp_users (id, phone_number, wa_id) values (%(user)s, %(given)s, %(phone)s::text || '@c.us')",
    "select add_agent_message(get_or_create_agent_session(%(given)s, 'shop', %(user)s), 'user', 'secret')",
    "insert into agent_chat_sessions (user_id, agent_type) values (%(user)s, 'without a phone')",
    "select get_or_create_conversation_memory(%(given)s, 'shop')",
    "select start_workflow('order', 'menu', p_user_phone => %(given)s)",
    "select get_or_create_conversation('wa:' || %(phone)s::text, %(given)s)",
    "insert into dialog_contexts (phone, company_id, context) values (%(given)s, 1, '{\"secret\": 1}')",
    "insert into amara_conversations (id, user_id) values (%(guest)s, %(user)s)",
    "insert into amara_messages (conversation_id, role, content) values (%(guest)s, 'user', 'secret')",
    "insert into guest_sessions (id, email, full_name, phone) values (%(guest)s, %(mail)s, 'secret', %(given)s)",
    "insert into guest_sessions (email, full_name) values (%(mail)s, 'secret')",
    "insert into clients (id, company_id, phone, name, user_id) values (%(n)s, 1, %(given)s, 'secret', %(user)s)",
    "insert into bookings (company_id, client_id, service_id, staff_id, datetime, duration, comment) values (1, %(n)s, 1, 1, now(), 30, 'secret')",
    "insert into bookings (customer_id, client_comment, metadata) values (%(user)s, 'secret', '{\"a\": \"secret\"}')",
    "insert into bookings (guest_session_id) values (%(guest)s)",
    "insert into messages (phone, direction, message) values (%(given)s, 'inbound', 'secret')",
    "insert into reminders (phone, remind_at, payload) values (%(given)s, now() + interval '1 day', '{\"a\": \"secret\"}')",
    "insert into platform_events (event_type, user_id, session_id, properties) values ('x', %(user)s, 'secret', '{\"a\": \"secret\"}')",
    "insert into webhook_events (event_category, event_type, destination, payload) values ('delivery', 'x', %(given)s, '{\"a\": \"secret\"}')",
    "insert into webhook_events (event_category, event_type, payload, headers, error_message) values "
    "('incoming', 'x', jsonb_build_object('contacts', jsonb_build_array(jsonb_build_object('wa_id', %(phone)s::text))), '{\"a\": \"secret\"}', 'secret')",
    "insert into referrals (referrer_id, referee_id, referrer_credit_amount, status) values (%(user)s, gen_random_uuid(), 700, 'rewarded')",
    "insert into referrals (referrer_id, referee_id) values (gen_random_uuid(), %(user)s)",
    "insert into audit_events (event_category, event_type, user_id, actor_ip, action, changes, metadata) values "
    "('user_action', 'login', %(user)s, '10.0.0.1', 'view', '{\"a\": \"secret\"}', '{\"a\": \"secret\"}')",
    "insert into audit_events (event_category, event_type, user_id, action) values ('security', 'login', %(user)s, 'view')",
    "insert into whatsapp_keys (company_id, key_type, key_id, value) values ('1', 'session', %(phone)s, '\"secret\"')",
    "insert into platform_backfill_rows (backfill, source_table, source_id, outcome, reason, old_value) values "
    "('b', 't', %(phone)s, 'skipped', 'r', jsonb_build_object('phone', %(given)s::text))",
]


@pytest.fixture
def people(shared_database: Database) -> Iterator[Sql]:
    """Ann and Bob with all their traces, seen by a worker; rolled back."""
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        sql = Sql(connection)
        seed(sql)
        for number, (user, phone) in enumerate(PHONES.items(), 1):
            given = f"+{phone[:3]} {phone[3:6]} {phone[6:9]}-{phone[9:]}"
            values = {
                "user": user,
                "phone": phone,
                "given": given,
                "mail": f"p{number}@example.com",
                "n": number,
                "guest": UUID(int=1000 + number),
            }
            for statement in TRACES:
                connection.execute(statement, values)
            for kind in ("live", "done", "dead"):
                leave_message(sql, phone, kind)
        sql.rows("set local role packhorse_worker")
        yield sql


def leave_message(sql: Sql, phone: str, kind: str) -> None:
    message_id = sql.enqueue(
        message_type=kind,
        payload={"text": "secret"},
        conversation_key=f"{kind}:{phone}",
        correlation_id=f"{kind}-{phone[-1]}",
        concurrency_key=phone,
    )
    sql.rows(
        "insert into processed_messages (external_id, correlation_id) values (%s, %s)",
        f"wamid-{kind}-{phone[-1]}",
        f"{kind}-{phone[-1]}",
    )
    if kind == "live":
        return
    lease = next(lease for lease in sql.claim(limit=10) if lease.id == message_id)
    key = hashlib.md5(f"dramatiq-results:q:{kind}:{message_id}".encode()).hexdigest()
    sql.rows("insert into message_results values (%s, '\"secret\"', now() + interval '1 day')", key)
    if kind == "done":
        assert sql.complete(lease) == [lease.id]
    else:
        sql.rows("select bury_message(%s, %s, 'failed', 'E', 'secret', 'secret')", lease.id, lease.token)
    for other in sql.rows("select id, lease_token from message_queue where state = 'running'"):
        sql.rows("select release_message(%s, %s)", *other)


def export(sql: Sql, user: UUID | None = None, phone: str | None = None) -> dict[str, Any]:
    return sql.value("select export_person_data(%s, %s)", user, phone)


def erase(sql: Sql, user: UUID | None = None, phone: str | None = None) -> list[tuple[str, str, int]]:
    return sql.rows("select * from erase_person_data(%s, %s, 'asked')", user, phone)


BY_ID_OR_PHONE = pytest.mark.parametrize(
    "asked", [(ANN, None), (None, FORM), (ANN, FORM)], ids=["user", "phone", "both"]
)


@BY_ID_OR_PHONE
def test_an_export_has_all_of_a_person_and_nothing_of_others(
    people: Sql, asked: tuple[UUID | None, str | None]
) -> None:
    data = export(people, *asked)
    assert {name: len(rows) for name, rows in data.items()} == {
        "whatsapp_users": 1,
        "agent_chat_sessions": 2,
        "ai_conversation_memory": 1,
        "workflow_states": 1,
        "conversations": 1,
        "dialog_contexts": 1,
        "amara_conversations": 1,
        "amara_messages": 1,
        "guest_sessions": 2,
        "clients": 1,
        "bookings": 3,
        "messages": 1,
        "reminders": 1,
        "platform_events": 1,
        "webhook_events": 2,
        "referrals": 2,
        "audit_events": 2,
        "message_queue": 1,
        "message_archive": 1,
        "dead_letters": 1,
        "message_results": 2,
        "processed_messages": 3,
    }
    text = str(data)
    assert str(BOB) not in text and PHONES[BOB] not in text and "p2@example.com" not in text
    assert "session_token" not in text


def test_an_export_is_recorded_with_counts_and_nothing_of_the_person(people: Sql) -> None:
    export(people, ANN, FORM)
    record = people.row("select * from audit_events where event_type = 'person_data_export'")
    assert (record["event_category"], record["action"], record["user_id"], record["actor_type"]) == (
        "security",
        "view",
        None,
        "system",
    )
    assert record["metadata"]["rows"]["bookings"] == 3 and record["metadata"]["actor"] == "packhorse_worker"
    assert str(ANN) not in str(record["metadata"]) and "250" not in str(record["metadata"])


def everything(sql: Sql) -> str:
    """All rows of all tables as one text, as the owner sees them; audit records of security and the person
    requests left out.
    """
    sql.rows("reset role")
    tables = sql.rows(
        "select c.oid::regclass::text from pg_class c where c.relnamespace in ('public'::regnamespace, 'packhorse'::regnamespace) "
        "and c.relkind in ('r', 'p') and not c.relispartition and c.relname not in ('packhorse_migrations', 'whatsapp_auth')"
    )
    found = []
    for (table,) in tables:
        where = "where event_category <> 'security'" if table.endswith("audit_events") else ""
        found += [
            f"{table}: {row[0]}" for row in sql.rows(f"select to_jsonb(t)::text from {table} t {where}")
        ]
    sql.rows("set local role packhorse_worker")
    return "\n".join(found)


@BY_ID_OR_PHONE
def test_after_an_erasure_nothing_names_the_person(
    people: Sql, asked: tuple[UUID | None, str | None]
) -> None:
    before = everything(people)
    done = erase(people, *asked)
    after = everything(people)
    for trace in (str(ANN), "p1@example.com"):
        assert trace in before and trace not in after
    left = [line for line in after.splitlines() if PHONES[ANN] in line or FORM in line]
    # live messages are reported, not touched; ids of webhooks and of source rows are no data of the person's
    assert all(
        line.startswith(("message_queue: ", "processed_messages: ", "platform_backfill_rows: "))
        for line in left
    ), left
    assert ("message_queue", "reported", 1) in done
    kept = {
        line
        for line in before.splitlines()
        if any(trace in line for trace in (str(BOB), PHONES[BOB], "+250 788 000-222", "p2@example.com"))
    }
    assert len(kept) > 20 and kept <= set(after.splitlines()), "nothing of anybody else's"
    assert sum(rows for _, action, rows in erase(people, *asked) if action != "reported") == 0, (
        "safe to repeat"
    )


def test_what_others_need_stays_without_the_person(people: Sql) -> None:
    erase(people, ANN, FORM)
    assert (
        people.value("select count(*) from bookings") == 6
        and people.value("select count(*) from clients") == 2
    )
    assert people.rows("select phone, name, is_deleted, user_id from clients where id = 1") == [
        ("erased-1", None, True, None)
    ]
    assert people.rows(
        "select email, full_name, phone, metadata from guest_sessions where email = 'erased'"
    ) == [("erased", "erased", None, {})]
    assert people.value("select sum(referrer_credit_amount) from referrals where status = 'rewarded'") == 1400
    assert people.rows("select status, payload from reminders where phone is null") == [("cancelled", {})]
    record = people.row("select * from audit_events where event_category = 'user_action' and user_id is null")
    assert (record["actor_ip"], record["changes"]) == (None, None) and set(record["metadata"]) == {
        "erased_at"
    }
    assert (
        people.value(
            "select count(*) from audit_events where event_type = 'login' and event_category = 'security'"
        )
        == 2
    ), "untouched"
    erased = people.row("select * from audit_events where event_type = 'person_data_erasure'")
    assert erased["metadata"]["reason"] == "asked" and erased["metadata"]["rows"]["bookings emptied"] == 3
    assert people.rows(
        "select payload, error_message, traceback, steps, history from dead_letters where conversation_key is null"
    ) == [({}, None, None, None, None)]


def test_every_table_with_a_column_of_a_person_is_in_the_erasure(people: Sql) -> None:
    """A new table with a phone or a user is found here."""
    found = people.rows(
        "select distinct c.relname::text from pg_attribute a join pg_class c on c.oid = a.attrelid where c.relnamespace = 'public'::regnamespace "
        "and c.relkind in ('r', 'p') and not c.relispartition and a.attnum > 0 and not a.attisdropped and "
        "(a.attname ~ 'phone|user_id|customer_id|referrer_id|referee_id|guest_session_id|wa_id|email' or a.atttypid = 'phone_number'::regtype)"
    )
    of_companies = {"companies", "staff"}  # the business's own, no customers
    assert {row[0] for row in found} - of_companies - {row[0] for row in erase(people, ANN)} == set()
    assert {row[0] for row in found} - of_companies - set(export(people, BOB)) == set()


def test_a_record_of_security_is_not_changed_and_the_others_only_by_the_erasure(people: Sql) -> None:
    erase(people, ANN)
    people.rows("set local packhorse_platform.audit_exception = 'erasure'")
    assert people.refused("update audit_events set actor_ip = null")[0] == "42501"
    people.rows("reset role")
    people.rows("set local packhorse_platform.audit_exception = ''")
    assert people.refused("update audit_events set actor_ip = null")[0] == "42501"


@pytest.mark.parametrize(
    "call", ["export_person_data()", "erase_person_data()", "export_person_data(p_phone => ' ')"]
)
def test_nobody_is_refused_by_name(people: Sql, call: str) -> None:
    assert people.refused(f"select * from {call}") == ("PH001", "phone" if "phone" in call else "user_id")


def test_somebody_unknown_has_nothing(people: Sql) -> None:
    assert sum(map(len, export(people, uuid4(), "+1").values())) == 0
    assert sum(rows for _, _, rows in erase(people, uuid4(), "+1")) == 0


def test_tables_of_the_host_are_exported_and_reported_when_they_are_its_own(people: Sql) -> None:
    people.rows("reset role")
    people.rows("create table notifications (user_id uuid, text text, created_at timestamptz default now())")
    people.rows(
        "insert into notifications (user_id, text) select %s, 'n' || n from generate_series(1, 101) n", ANN
    )
    people.rows("insert into notifications (user_id, text) values (%s, 'of Bob')", BOB)
    people.rows("create table profiles (id uuid, name text)")
    people.rows("insert into profiles values (%s, 'Ann')", ANN)
    people.rows("set local role packhorse_worker")
    data = export(people, ANN)
    assert len(data["notifications"]) == 100 and data["profiles"] == [{"id": str(ANN), "name": "Ann"}]
    done = erase(people, ANN)
    assert ("profiles", "reported", 1) in done and ("notifications", "reported", 101) in done
    people.rows("reset role")
    assert people.value("select count(*) from notifications") == 102


def test_a_table_that_anybody_made_is_not_read_with_the_owners_rights(people: Sql) -> None:
    people.rows("reset role")
    people.rows("create role stranger")
    people.rows("create table notifications (user_id uuid)")
    people.rows("alter table notifications owner to stranger")
    assert "notifications" not in export(people, ANN)


def test_a_pseudonym_that_the_hosts_key_refuses_is_reported(people: Sql) -> None:
    people.rows("reset role")
    people.rows("create table host_users (id uuid primary key)")
    people.rows(
        "insert into host_users select distinct i from referrals, unnest(array[referrer_id, referee_id]) i"
    )
    people.rows(
        "alter table referrals add constraint host_key foreign key (referrer_id) references host_users (id)"
    )
    assert ("referrals", "reported", 2) in erase(people, ANN)
    assert people.value("select count(*) from referrals where referrer_id = %s", ANN) == 1


@pytest.fixture
def as_user(people: Sql) -> Callable[[UUID], Sql]:
    def become(user: UUID) -> Sql:
        people.rows("reset role")
        people.rows(
            "do $$ begin create role authenticated; exception when duplicate_object then null; end $$"
        )
        people.rows(
            "grant execute on function export_person_data(uuid, text), erase_person_data(uuid, text, text) to authenticated"
        )
        people.rows("grant usage on schema public to authenticated")
        people.rows("select set_config('request.jwt.claims', %s, true)", f'{{"sub": "{user}"}}')
        people.rows("set local role authenticated")
        return people

    return become


def test_a_user_exports_itself_and_nobody_else_and_erases_nobody(as_user: Callable[[UUID], Sql]) -> None:
    sql = as_user(ANN)
    assert len(sql.value("select public.export_person_data(%s)", ANN)["bookings"]) == 2, (
        "not those of a guest without a proof"
    )
    for arguments in ((BOB, None), (ANN, PHONES[BOB]), (None, PHONES[ANN])):
        assert sql.refused("select public.export_person_data(%s, %s)", *arguments)[0] == "42501"
    for arguments in ((ANN, None), (BOB, None)):
        assert sql.refused("select * from public.erase_person_data(%s, %s)", *arguments)[0] == "42501"
    sql.rows("reset role")
    assert sql.value("select actor_type from audit_events where event_type = 'person_data_export'") == "user"


def test_the_hosts_own_servers_ask_for_anybody(people: Sql) -> None:
    people.rows("reset role")
    people.rows("do $$ begin create role service_role; exception when duplicate_object then null; end $$")
    people.rows("select refresh_platform_access()")
    people.rows("set local role service_role")
    assert len(people.value("select public.export_person_data(p_phone => %s)", FORM)["guest_sessions"]) == 2
    assert (
        sum(row[2] for row in people.rows("select * from public.erase_person_data(p_phone => %s)", FORM)) > 20
    )


def test_a_user_does_not_come_to_others_by_a_guest_session_with_their_email(
    as_user: Callable[[UUID], Sql], people: Sql
) -> None:
    """Anybody can make a guest session with any e-mail, and claim it."""
    people.rows("reset role")
    token = people.value("select session_token from create_guest_session('P2@example.com', 'Ann')")
    people.rows("select set_config('request.jwt.claims', %s, true)", f'{{"sub": "{ANN}"}}')
    people.rows("select claim_guest_bookings(%s)", token)
    data = as_user(ANN).value("select public.export_person_data(%s)", ANN)
    assert {row["email"] for row in data["guest_sessions"]} == {"P2@example.com"}
    assert all(row["customer_id"] == str(ANN) or row["client_id"] == 1 for row in data["bookings"])


def test_an_erasure_is_whole_or_not_at_all(clients: Callable[..., Sql]) -> None:
    admin, worker = clients(admin=True), clients()
    worker.rows("select add_agent_message(get_or_create_agent_session(%s, 'a'), 'user', 'x')", FORM)
    worker.rows("insert into conversations (conversation_key, phone) values ('k', %s)", PHONES[ANN])
    with admin.connection.transaction():
        admin.rows("select from conversations for update")
        worker.rows("set lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            erase(worker, None, FORM)
    assert worker.value("select count(*) from agent_chat_sessions") == 1
    assert sum(rows for _, _, rows in erase(worker, None, FORM)) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": [{"b": "+250 788 000-111"}]}, True),
        ({"a": 250788000111}, True),
        ({"a": "00250\t788/000.111"}, True),
        (["250788000111:12@s.whatsapp.net"], True),
        ("(250) 788000111", True),
        ({"250788000111": 1}, False),
        ({"a": "2507880001112"}, False),
        ({"a": ["250788", "000111"]}, False),
        ({"a": "call 250788000111 now"}, False),
        (None, False),
    ],
)
def test_a_phone_is_found_at_any_depth_in_any_form(
    shared_database: Database, value: object, found: bool
) -> None:
    mentioned = (
        "select mentions_phone(%s, array['250788000111', 'ann-b']), mentions_phone(%s, array['ann-b'])"
    )
    with shared_database.connect() as connection:
        assert connection.execute(mentioned, (Jsonb(value), Jsonb({"id": [" ann-b "]}))).fetchone() == (
            found,
            True,
        )


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("250788000111", True),
        ("wa:+250 788 000-111", True),
        ("a:b:00250788000111", True),
        ("250788000111:12@s.whatsapp.net", True),
        ("250788000111:other", False),
        ("wa:2507880001112", False),
    ],
)
def test_a_conversation_key_ends_in_the_phone(shared_database: Database, key: str, found: bool) -> None:
    with shared_database.connect() as connection:
        assert connection.execute(
            "select is_conversation_of(%s, array['250788000111'])", (key,)
        ).fetchone() == (found,)

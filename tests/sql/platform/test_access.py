"""Who reaches what on the platform, role by role: the host's users, guests and servers, and our own roles
(SPEC O9, C5).

The database is one of Supabase's kind: default privileges give everything in `public` to anon, authenticated
and service_role, there are `auth.users` and `profiles`, and claims and headers are those of PostgREST. The
matrix below is compared with what each role really reaches, row by row. The catalogue is walked: a table,
view or function without a line fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from packhorse.worker.db import migrate, schema_version
from packhorse.worker.db.connection import connect
from tests.conftest import SERVERS
from tests.support.postgres import Database, Server

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

A, B, ADMIN, STRANGER = (UUID(int=number) for number in (0xA, 0xB, 0xC, 0xD))
SESSION_A, SESSION_B, AMARA_A, AMARA_B = (UUID(int=number) for number in (0xA1, 0xB1, 0xA2, 0xB2))
GUEST, OTHER_GUEST, OVER = (UUID(int=number) for number in (0x61, 0x62, 0x63))
TOKEN, OTHER_TOKEN, OLD_TOKEN = (letter * 40 for letter in "gho")
DENIED = "42501"

#: Before the platform comes.
HOST = """
create role anon; create role authenticated; create role service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
grant usage on schema public to anon, authenticated, service_role;
create schema auth;
create table auth.users (id uuid primary key);
create table public.profiles (id uuid primary key default gen_random_uuid(), user_id uuid unique, role text);
"""
#: A row of A, one of B, one of a guest, one of another guest, one of nobody.
ROWS = f"""
insert into auth.users select unnest(array['{A}', '{B}', '{ADMIN}', '{STRANGER}']::uuid[]);
insert into profiles (user_id, role) select u, null from unnest(array['{A}', '{B}', '{ADMIN}']::uuid[]) u;
insert into whatsapp_users (id, wa_id, phone_number) values ('{A}', 'a', '1'), ('{B}', 'b', '2');
insert into agent_chat_sessions (id, user_id, user_phone, agent_type) values ('{SESSION_A}', '{A}', '1', 'x'), ('{SESSION_B}', '{B}', '2', 'x'),
  (gen_random_uuid(), null, '3', 'x');
insert into ai_conversation_memory (user_phone, agent_type) values ('1', 'x');
insert into workflow_states (user_phone, workflow_type, current_step) values ('1', 'w', 's');
insert into companies (id, name) values (1, 'Salon');
insert into conversations (conversation_key, phone) values ('c', '1');
insert into webhook_events (event_category, event_type) values ('incoming', 'x');
insert into audit_events (event_category, event_type, action) values ('system', 'x', 'N'), ('security', 'x', 'S');
insert into platform_events (event_type, user_id) values ('x', '{A}'), ('x', '{B}'), ('x', null);
insert into amara_conversations (id, user_id) values ('{AMARA_A}', '{A}'), ('{AMARA_B}', '{B}');
insert into amara_messages (conversation_id, role, content) values ('{AMARA_A}', 'user', 'A'), ('{AMARA_B}', 'user', 'B');
insert into guest_sessions (id, session_token, email, full_name, expires_at) values ('{GUEST}', '{TOKEN}', 'G', 'G', now() + interval '1 hour'),
  ('{OTHER_GUEST}', '{OTHER_TOKEN}', 'H', 'H', now() + interval '1 hour'), ('{OVER}', '{OLD_TOKEN}', 'O', 'O', now() - interval '1 hour');
insert into clients (id, company_id, phone, user_id) values (1, 1, '1', '{A}'), (2, 1, '2', '{B}'), (3, 1, '3', null);
insert into services (id, company_id, title) values (1, 1, 'Cut');
insert into staff (id, company_id, name) values (1, 1, 'Ann');
insert into staff_schedules (company_id, staff_id, date) values (1, 1, '2030-01-01');
insert into appointments_cache (company_id, cache_key, appointments) values (1, 'k', '[]');
insert into dialog_contexts (phone, company_id) values ('1', 1);
insert into sync_status (company_id, entity_type) values (1, 'all');
insert into whatsapp_auth (company_id, creds) values ('1', '{{}}');
insert into whatsapp_keys (company_id, key_type, key_id, value) values ('1', 't', 'k', '{{}}');
insert into bookings (id, customer_id, guest_session_id, client_id, company_id, service_id, staff_id, datetime, duration, comment) values
  (1, '{A}', null, null, null, null, null, null, null, 'A'), (2, '{B}', null, null, null, null, null, null, null, 'B'),
  (3, null, '{GUEST}', null, null, null, null, null, null, 'G'), (4, null, '{OTHER_GUEST}', null, null, null, null, null, null, 'H'),
  (5, null, null, 3, 1, 1, 1, '2030-01-01', 30, 'N'), (6, null, '{OVER}', null, null, null, null, null, null, 'O');
insert into reminders (remind_at) values (now());
insert into referrals (referrer_id, referee_id) values ('{A}', '{STRANGER}'), ('{B}', '{ADMIN}');
insert into messages (phone, direction) values ('1', 'inbound');
insert into platform_backfill_rows (backfill, source_table, source_id, outcome, reason) values ('b', 't', '1', 'skipped', 'r');
insert into platform_adopted_tables (name, is_left_alone) values ('x', false);
"""
OWNER = f"case user_id when '{A}' then 'A' when '{B}' then 'B' else 'N' end"
GUEST_INSERT = "insert into guest_sessions (session_token, email, full_name, expires_at, metadata) values "


@dataclass(frozen=True)
class Table:
    """label: SQL for the name of a row. inserts: name -> a statement. reach: actors -> what they may do, as
    in "sA iA u": verb and names of rows.

    A verb without names: allowed, and no row is seen. No verb: refused. `all`: the worker and the host's
    servers.
    """

    label: str
    inserts: dict[str, str]
    reach: dict[str, str]


def plain(columns: str, values: str, name: str) -> Table:
    """A table of the worker's that a reader may read."""
    return Table(
        "'N'",
        {"N": f"insert into {name} ({columns}) values ({values})"},
        {"all": "sN iN uN dN", "reader": "sN"},
    )


TABLES = {
    "whatsapp_users": Table(
        f"case id when '{A}' then 'A' else 'B' end",
        {"N": "insert into whatsapp_users (wa_id) values ('n')"},
        {"all": "sAB iN uAB dAB", "reader": "sAB", "a": "sA", "b": "sB", "admin": "s"},
    ),
    "agent_chat_sessions": Table(
        OWNER,
        {
            "A": f"insert into agent_chat_sessions (user_id, agent_type) values ('{A}', 'x')",
            "N": "insert into agent_chat_sessions (agent_type) values ('x')",
        },
        {"all": "sABN iAN uABN dABN", "reader": "sABN", "a": "sA", "b": "sB", "admin": "s"},
    ),
    "ai_conversation_memory": plain("user_phone, agent_type", "'9', 'x'", "ai_conversation_memory"),
    "workflow_states": plain("workflow_type, current_step", "'w', 's'", "workflow_states"),
    "conversations": plain("conversation_key, phone", "'n', '1'", "conversations"),
    "webhook_events": Table(
        "'N'",
        {"N": "insert into webhook_events (event_category, event_type) values ('incoming', 'x')"},
        {"all": "sN iN uN dN", "reader": "sN", "producer": "iN", "a": "s", "b": "s", "admin": "sN"},
    ),
    "audit_events": Table(
        "action",
        {
            name: f"insert into audit_events (event_category, event_type, action) values ('{category}', 'x', '{name}')"
            for name, category in (("N", "system"), ("S", "security"))
        },
        {"all": "sNS iNS dN", "reader": "sNS", "producer": "iN", "a": "s", "b": "s", "admin": "sNS"},
    ),
    "platform_events": Table(
        OWNER,
        {
            "A": f"insert into platform_events (event_type, user_id) values ('x', '{A}')",
            "B": f"insert into platform_events (event_type, user_id) values ('x', '{B}')",
            "N": "insert into platform_events (event_type) values ('x')",
            "L": "insert into platform_events (event_type, properties) values ('x', jsonb_build_object('x', repeat('y', 65536)))",
        },
        {
            "all": "sABN iABLN uABN dABN",
            "reader": "sABN",
            "producer": "iABLN",
            "a": "s iALN",
            "b": "s iBLN",
            "admin": "sABN iLN",
            "anon": "iN",
            "guest": "iN",
        },
    ),
    "amara_conversations": Table(
        OWNER,
        {
            name: f"insert into amara_conversations (user_id) values ('{user}')"
            for name, user in (("A", A), ("B", B))
        },
        {"all": "sAB iAB uAB dAB", "reader": "sAB", "a": "sA iA uA dA", "b": "sB iB uB dB", "admin": "s u d"},
    ),
    "amara_messages": Table(
        "content",
        {
            name: f"insert into amara_messages (conversation_id, role, content) values ('{conversation}', 'user', '{name}')"
            for name, conversation in (("A", AMARA_A), ("B", AMARA_B))
        },
        {"all": "sAB iAB uAB dAB", "reader": "sAB", "a": "sA iA uA dA", "b": "sB iB uB dB", "admin": "s u d"},
    ),
    "guest_sessions": Table(
        "email",
        {
            "N": f"{GUEST_INSERT} ('{'n' * 32}', 'n', 'n', now() + interval '24 hours', '{{}}')",
            "S": f"{GUEST_INSERT} ('{'s' * 31}', 's', 's', now() + interval '24 hours', '{{}}')",
            "X": f"{GUEST_INSERT} ('{'x' * 32}', 'x', 'x', now() + interval '25 hours', '{{}}')",
            "C": f"{GUEST_INSERT} ('{'c' * 32}', 'c', 'c', now() + interval '24 hours', '{{\"converted_to_user_id\": null}}')",
            "D": f"{GUEST_INSERT} ('{'d' * 32}', 'd', 'd', now() + interval '24 hours', '{{\"converted_at\": 1}}')",
            "E": "insert into guest_sessions (email, full_name, expired_at) values ('e', 'e', now())",
        },
        {
            "all": "sGHO iCDENSX uGHO dGHO",
            "reader": "sGHO",
            "anon": "s iN",
            "guest": "sG iN",
            "a": "s iN",
            "b": "s iN",
            "admin": "s iN",
        },
    ),
    "referrals": Table(
        f"case referrer_id when '{A}' then 'A' else 'B' end",
        {"N": f"insert into referrals (referrer_id, referee_id) values ('{A}', '{B}')"},
        {"all": "sAB iN uAB dAB", "reader": "sAB", "a": "sA", "b": "sB", "admin": "sB"},
    ),
    "companies": plain("name", "'n'", "companies"),
    "clients": Table(
        OWNER,
        {"N": "insert into clients (company_id, phone) values (1, '9')"},
        {"all": "sABN iN uABN dABN", "reader": "sABN", "a": "sA", "b": "sB", "admin": "s"},
    ),
    "services": plain("company_id, title", "1, 'n'", "services"),
    "staff": plain("company_id, name", "1, 'n'", "staff"),
    "staff_schedules": plain("company_id, staff_id, date", "1, 1, '2031-01-01'", "staff_schedules"),
    "appointments_cache": plain("company_id, cache_key, appointments", "1, 'n', '[]'", "appointments_cache"),
    "dialog_contexts": plain("phone, company_id", "'9', 1", "dialog_contexts"),
    "sync_status": plain("company_id, entity_type", "1, 'staff'", "sync_status"),
    "whatsapp_auth": Table(
        "'N'",
        {"N": "insert into whatsapp_auth (company_id, creds) values ('n', '{}')"},
        {"all": "sN iN uN dN"},
    ),
    "whatsapp_keys": Table(
        "'N'",
        {"N": "insert into whatsapp_keys (company_id, key_type, key_id, value) values ('n', 't', 'k', '{}')"},
        {"all": "sN iN uN dN"},
    ),
    "bookings": Table(
        "comment",
        {
            "A": f"insert into bookings (customer_id) values ('{A}')",
            "B": f"insert into bookings (customer_id) values ('{B}')",
            "G": f"insert into bookings (guest_session_id) values ('{GUEST}')",
            "H": f"insert into bookings (guest_session_id) values ('{OTHER_GUEST}')",
            "C": f"insert into bookings (guest_session_id, status) values ('{GUEST}', 'confirmed')",
            "D": f"insert into bookings (guest_session_id, customer_id) values ('{GUEST}', '{A}')",
            "N": "insert into bookings (client_id, company_id, service_id, staff_id, datetime, duration) values (3, 1, 1, 1, '2030-01-01', 30)",
            "M": f"insert into bookings (client_id, company_id, service_id, staff_id, datetime, duration, customer_id) "
            f"values (3, 1, 1, 1, '2030-01-01', 30, '{A}')",
        },
        {
            "all": "sABGHNO iABCDGHMN uABGHNO dABGHNO",
            "reader": "sABGHNO",
            "a": "sA iA",
            "b": "sB iB",
            "admin": "s",
            "anon": "s",
            "guest": "sG iG",
        },
    ),
    "reminders": plain("remind_at", "now()", "reminders"),
    "messages": plain("phone, direction", "'9', 'inbound'", "messages"),
    "platform_backfill_rows": Table(
        "'N'",
        {
            "N": "insert into platform_backfill_rows (backfill, source_table, source_id, outcome, reason) values ('n', 't', '1', 'skipped', 'r')"
        },
        {"all": "sN iN uN dN"},
    ),
    "platform_adopted_tables": Table(
        "'N'",
        {"N": "insert into platform_adopted_tables (name, is_left_alone) values ('n', false)"},
        # the host gave its servers everything, and no policy lets them change a row
        {"worker": "sN", "service": "sN u d", "reader": "sN"},
    ),
}
ACTORS = ("anon", "guest", "a", "b", "admin", "service", "worker", "producer", "reader")
ROLES = {
    "anon": "anon",
    "guest": "anon",
    "a": "authenticated",
    "b": "authenticated",
    "admin": "authenticated",
    "service": "service_role",
    **{name: f"packhorse_{name}" for name in ("worker", "producer", "reader")},
}
USERS = {"a": A, "b": B, "admin": ADMIN}
VIEWS = {
    name: {"service", "worker", "reader"}
    for name in ("message_queue_by_status", "workflow_health", "ai_agent_usage")
}
#: Function -> who may call it: Worker and host's servers, Reader, Producer, User, Guest.
CALLERS = {
    **dict.fromkeys(("normalize_phone",), "WRPUG"),
    **dict.fromkeys(
        (
            "current_guest_token",
            "current_guest_session_id",
            "get_guest_session",
            "create_guest_session",
            "platform_user_id",
        ),
        "WUG",
    ),
    **dict.fromkeys(("platform_is_admin", "export_person_data"), "WU"),
    **dict.fromkeys(
        (
            "get_agent_conversation",
            "get_event_counts_by_type",
            "get_conversion_funnel",
            "get_user_referral_credits",
        ),
        "WRU",
    ),
    **dict.fromkeys(
        ("get_messages_stats", "get_recent_messages", "get_database_stats", "get_whatsapp_auth_stats"), "WR"
    ),
    **dict.fromkeys(("platform_rights", "worker_rights", "guest_rights"), "WR"),
    "claim_guest_bookings": "U",
    "refresh_platform_access": "",
    "take_back_audit_events": "",
}
CHECKS = ("check_number", "check_period", "refuse_value")
WORKERS = {
    "get_or_create_agent_session",
    "add_agent_message",
    "set_agent_session_status",
    "expire_agent_chat_sessions",
    "get_or_create_conversation_memory",
    "update_conversation_memory",
    "cleanup_old_conversations",
    "start_workflow",
    "advance_workflow",
    "finish_workflow",
    "mark_timed_out_workflows",
    "get_or_create_conversation",
    "lock_conversation",
    "unlock_conversation",
    "release_stuck_conversations",
    "cleanup_expired_guest_sessions",
    "convert_guest_to_user",
    "cleanup_old_platform_events",
    "cleanup_old_webhook_events",
    "cleanup_old_audit_events",
    "create_messages_partition",
    "maintain_messages_partitions",
    "cleanup_expired_dialog_contexts",
    "cleanup_expired_appointments_cache",
    "cleanup_expired_whatsapp_keys",
    "enqueue_due_reminders",
    "erase_person_data",
    # what the others are made of
    "append_entry",
    "check_limit",
    "check_message",
    "check_object",
    "check_person_caller",
    "check_phone",
    "check_span",
    "check_text",
    "drop_messages_partition",
    "end_overdue_workflow",
    "enqueue_reminder",
    "erase_person_business",
    "erase_person_queue",
    "erase_person_records",
    "erase_person_referrals",
    "erase_person_talk",
    "export_host_table",
    "export_person_queue",
    "export_person_talk",
    "find_person",
    "find_person_messages",
    "is_conversation_of",
    "is_unfinished_copy",
    "make_messages_partition",
    "may_name_phone",
    "mentions_phone",
    "merge_context",
    "note_person_request",
    "phone_patterns",
    "refuse_agent_session",
    "refuse_workflow",
    "touch_conversation_memory",
    "workflow_time_limit",
    "host_table",
    "host_policies",
    "add_host_keys",
    "missing_host_keys",
    "grant_service_role",
    "touch_updated_at",
    "normalize_phone_columns",
    "mark_session_ended",
    "mark_workflow_completed",
    "mark_finished",
    "forget_company_keys",
    "touch_amara_conversations",
    "protect_audit_events",
}

_hosts: dict[str, tuple[Server, Database]] = {}


@pytest.fixture(scope="module", autouse=True)
def _servers_end() -> Iterator[None]:
    yield
    while _hosts:
        _hosts.popitem()[1][0].close()


def a_host(name: str) -> tuple[Server, Database]:
    """A server of its own, for roles belong to the whole of it, with a database of Supabase's kind and no
    platform.
    """
    server = Server(name, SERVERS[name])
    database = server.create_database()
    with database.connect(admin=True) as owner:
        owner.execute(HOST)
    return server, database


def bring(database: Database) -> None:
    connection = connect(database.admin_url, deadline_seconds=120)
    migrate.up(connection, sets=["platform"])
    connection.close()


@pytest.fixture
def host(any_server: Server) -> Database:
    """A host with the platform and the rows; shared, so tests roll back."""
    if any_server.name not in _hosts:
        _, database = _hosts[any_server.name] = a_host(any_server.name)
        bring(database)
        with database.connect(admin=True) as owner:
            owner.execute(ROWS)
    return _hosts[any_server.name][1]


@pytest.fixture
def own_host(server: Server) -> Iterator[Database]:
    """A host before the platform, of the test's own."""
    own, database = a_host(server.name)
    yield database
    own.close()


@contextmanager
def acting(database: Database, actor: str) -> Iterator[psycopg.Connection]:
    """A connection in the actor's role, with its claims and headers; rolled back."""
    with database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        if actor in USERS:
            claims = {
                "sub": str(USERS[actor]),
                "role": "authenticated",
                "app_metadata": {"role": "admin"} if actor == "admin" else {},
            }
            setting(connection, "request.jwt.claims", json.dumps(claims))
        if actor == "guest":
            setting(connection, "request.headers", json.dumps({"x-guest-session": TOKEN}))
        connection.execute(f"set local role {ROLES[actor]}")
        yield connection


def setting(connection: psycopg.Connection, name: str, value: str) -> None:
    connection.execute("select set_config(%s, %s, true)", (name, value))


def reaches(connection: psycopg.Connection, statement: str) -> tuple[set[str], bool]:
    """The names of rows that a statement returns or touches, and whether it was refused. A foreign key or key
    that refuses it came after the rights.
    """
    try:
        with connection.transaction():
            cursor = connection.execute(statement)
            return ({str(row[0]) for row in cursor.fetchall()} if cursor.description else set()), False
    except (
        psycopg.errors.ForeignKeyViolation,
        psycopg.errors.RestrictViolation,
        psycopg.errors.UniqueViolation,
    ):
        return {"reached"}, False
    except psycopg.errors.InsufficientPrivilege:
        return set(), True


def reach(database: Database, actor: str, name: str) -> str:
    """What an actor may do with a table, in the words of the matrix."""
    table = TABLES[name]
    with acting(database, actor) as connection:
        owner = {row[0] for row in database.query(f"select {table.label} from {name}")}
        column = database.value(
            "select attname::text from pg_attribute where attrelid = %s::regclass and attnum = 1", name
        )
        said = []
        seen, refused = reaches(connection, f"select {table.label} from {name}")
        said += [] if refused else ["s" + "".join(sorted(seen))]
        passed = [
            label for label, statement in sorted(table.inserts.items()) if inserts(connection, statement)
        ]
        said += ["i" + "".join(passed)] if passed else []
        for verb, statement in (
            ("u", f"update {name} set {column} = {column}"),
            ("d", f"delete from {name}"),
        ):
            found, refusals = set(), 0
            for label in sorted(owner):
                # without RETURNING, which asks for more rights than the verb: the number of rows says it
                try:
                    with connection.transaction(force_rollback=True):
                        if connection.execute(f"{statement} where {table.label} = %s", (label,)).rowcount:
                            found.add(label)
                except (psycopg.errors.ForeignKeyViolation, psycopg.errors.RestrictViolation):
                    found.add(label)
                except psycopg.errors.InsufficientPrivilege:
                    refusals += 1
            if found or not refusals:
                said.append(verb + "".join(sorted(found)))
    return " ".join(said)


def inserts(connection: psycopg.Connection, statement: str) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    except (psycopg.errors.ForeignKeyViolation, psycopg.errors.UniqueViolation):
        return True
    return True


def wanted(name: str, actor: str) -> str:
    reach = TABLES[name].reach
    return reach.get(actor, reach.get("all", "") if actor in ("worker", "service") else "")


@pytest.mark.parametrize("actor", ACTORS)
def test_each_role_reaches_of_each_table_what_the_matrix_says(host: Database, actor: str) -> None:
    found = {name: reach(host, actor, name) for name in TABLES}
    assert found == {name: wanted(name, actor) for name in TABLES}


def test_every_table_view_and_function_has_a_line_in_the_matrix(host: Database) -> None:
    objects = "select c.relname::text from pg_class c where c.relnamespace = 'public'::regnamespace and not c.relispartition and c.relkind = any (%s)"
    assert {row[0] for row in host.query(objects, ["r", "p"])} == {*TABLES, "profiles"}
    assert {row[0] for row in host.query(objects, ["v", "m"])} == set(VIEWS)
    functions = {
        row[0]
        for row in host.query("select proname::text from pg_proc where pronamespace = 'public'::regnamespace")
    }
    assert sorted(functions - set(CALLERS) - set(CHECKS) - WORKERS) == []
    assert sorted((set(CALLERS) | WORKERS) - functions) == []


@pytest.mark.parametrize("actor", ACTORS)
def test_each_role_may_call_the_functions_that_the_matrix_says(host: Database, actor: str) -> None:
    letter = {"worker": "W", "service": "W", "reader": "R", "producer": "P", "anon": "G", "guest": "G"}.get(
        actor, "U"
    )
    callers = {**dict.fromkeys(WORKERS, "W"), **CALLERS}
    with acting(host, actor) as connection:
        rows = connection.execute(
            "select proname::text, bool_and(has_function_privilege(oid, 'execute')) from pg_proc where pronamespace = 'public'::regnamespace group by 1"
        ).fetchall()
    found = {name for name, may in rows if may}
    expected = {name for name, _ in rows if letter in callers.get(name, "")}
    if letter in "WRU":  # checks that raise, called by what they may call
        expected |= {name for name, _ in rows if name in CHECKS or (letter == "W" and name not in callers)}
    if letter == "R":
        expected |= {name for name, _ in rows if name.startswith(("check_", "refuse_"))}
    assert (sorted(found - expected), sorted(expected - found)) == ([], []) or actor == "service"
    if actor == "service":  # it keeps what the host gave it
        assert found >= expected


def test_what_a_function_tells_a_user_is_its_own(host: Database) -> None:
    """B asks with the ids of A; an admin sees events, and no sessions of others."""
    host_rewards = "update referrals set status = 'rewarded'"
    calls = {
        "session": f"select get_agent_conversation('{SESSION_A}') is not null",
        "credits": f"select get_user_referral_credits('{A}')",
        "events": "select coalesce(sum(event_count), 0)::integer from get_event_counts_by_type()",
        "funnel": "select coalesce(sum(unique_users), 0)::integer from get_conversion_funnel(p_stages => array['x'])",
    }
    told = {}
    for actor in ("a", "b", "admin", "worker"):
        with host.connect(admin=True) as connection, connection.transaction(force_rollback=True):
            connection.execute(host_rewards)
            claims = {
                "sub": str(USERS.get(actor, "")),
                "app_metadata": {"role": "admin"} if actor == "admin" else {},
            }
            setting(connection, "request.jwt.claims", json.dumps(claims))
            connection.execute(f"set local role {ROLES[actor]}")
            told[actor] = [connection.execute(call).fetchone()[0] for call in calls.values()]  # type: ignore[index]
    assert told == {
        "a": [True, 1500, 0, 0],
        "b": [False, 0, 0, 0],
        "admin": [False, 0, 3, 2],
        "worker": [True, 1500, 3, 2],
    }


@pytest.mark.parametrize("actor", ["a", "b", "admin", "anon", "guest", "reader", "producer"])
def test_a_person_is_exported_to_himself_and_erased_by_servers(host: Database, actor: str) -> None:
    with acting(host, actor) as connection:
        _, refused = reaches(connection, f"select export_person_data('{A}')")
        assert refused == (actor != "a")
        assert reaches(connection, f"select * from erase_person_data('{A}')")[1]


def test_a_user_claims_the_bookings_of_the_guest_whose_token_it_has(host: Database) -> None:
    with acting(host, "a") as connection:
        assert connection.execute("select claim_guest_bookings(%s)", (TOKEN,)).fetchone() == (1,)
        assert reaches(connection, "select comment from bookings") == ({"A", "G"}, False)
        with pytest.raises(psycopg.Error, match="no guest session has it"), connection.transaction():
            connection.execute("select claim_guest_bookings('not a token')")
    for actor in ("anon", "guest", "worker"):
        with acting(host, actor) as connection:
            assert reaches(connection, f"select claim_guest_bookings('{TOKEN}')")[1]


@pytest.mark.parametrize("actor", ACTORS)
def test_each_role_sees_the_views_that_the_matrix_says(host: Database, actor: str) -> None:
    with acting(host, actor) as connection:
        for view, actors in VIEWS.items():
            assert reaches(connection, f"select count(*) from {view}")[1] == (actor not in actors), view


@pytest.mark.parametrize("actor", [actor for actor in ACTORS if actor != "service"])
def test_nobody_empties_a_table_or_goes_past_it_to_a_partition(host: Database, actor: str) -> None:
    partitions = [
        row[0]
        for row in host.query(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'public.messages'::regclass"
        )
    ]
    assert len(partitions) >= 6
    with acting(host, actor) as connection:
        for name in TABLES:
            assert reaches(connection, f"truncate {name} cascade")[1], name
        for name in partitions:
            assert reaches(connection, f"select phone from {name}")[1], name


def test_the_hosts_servers_work_on_the_queue_too(host: Database) -> None:
    with acting(host, "service") as connection:
        connection.execute("select packhorse.declare_queue('q')")
        connection.execute("select packhorse.enqueue_message('q', 'x')")
        assert connection.execute("select status, count from message_queue_by_status").fetchall() == [
            ("pending", 1)
        ]


def test_a_reader_counts_secrets_and_reads_none(host: Database) -> None:
    with acting(host, "reader") as connection:
        assert connection.execute(
            "select total_companies, total_keys from get_whatsapp_auth_stats()"
        ).fetchone() == (1, 1)
        assert reaches(connection, "select company_id from whatsapp_keys")[1]


def test_a_client_that_sends_its_token_gets_its_new_session_back(host: Database) -> None:
    token = "t" * 64
    statement = "insert into guest_sessions (session_token, email, full_name) values (%s, 'a@b.c', 'A') returning session_token, email"
    with acting(host, "anon") as connection:
        setting(connection, "request.headers", json.dumps({"x-guest-session": token}))
        assert connection.execute(statement, (token,)).fetchone() == (token, "a@b.c")
        assert connection.execute("select count(*) from guest_sessions").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(statement, ("u" * 64,))  # not the one that it sent


@pytest.mark.parametrize(
    ("headers", "token", "seen"),
    [
        ("", TOKEN, "G"),
        (json.dumps({"x-guest-session": TOKEN}), OTHER_TOKEN, "H"),
        (json.dumps({"x-guest-session": OLD_TOKEN}), "", ""),
        ("not json", "", ""),
        ("[1]", "", ""),
        ('"text"', "", ""),
        ('{"x-guest-session": 5}', "", ""),
        ('{"x-guest-session": null}', "", ""),
        ('{"x-guest-session": ""}', "", ""),
        ("[" * 20000, "", ""),
        ('{"x": "\\u0000"}', "", ""),
    ],
)
def test_a_guest_is_known_by_its_token_whatever_the_headers_hold(
    host: Database, headers: str, token: str, seen: str
) -> None:
    with acting(host, "anon") as connection:
        setting(connection, "request.headers", headers)
        setting(connection, "packhorse.guest_token", token)
        for table in ("guest_sessions", "bookings"):
            assert reaches(connection, f"select {TABLES[table].label} from {table}") == (set(seen), False)


@pytest.mark.parametrize(
    "claims",
    ["", "{", "[]", "{}", '{"sub": null}', '{"sub": "ann"}', '{"sub": 5}', '{"sub": "\\u0000"}', "[" * 20000],
)
def test_claims_without_a_user_are_nobodys(host: Database, claims: str) -> None:
    with acting(host, "b") as connection:
        setting(connection, "request.jwt.claims", claims)
        assert connection.execute("select platform_user_id(), platform_is_admin()").fetchone() == (
            None,
            False,
        )
        assert reaches(connection, "select id from agent_chat_sessions") == (set(), False)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"app_metadata": {"role": "admin"}}, True),
        ({"user_role": "admin"}, True),
        ({"user_metadata": {"role": "admin"}}, False),
        ({"role": "admin"}, False),
        ({"app_metadata": "admin"}, False),
        ({}, False),
    ],
)
def test_an_admin_is_one_by_what_the_host_signs(
    host: Database, claims: dict[str, Any], expected: bool
) -> None:
    with acting(host, "a") as connection:
        setting(connection, "request.jwt.claims", json.dumps({"sub": str(A), **claims}))
        assert connection.execute("select platform_is_admin()").fetchone() == (expected,)


def test_an_admin_is_one_by_its_profile(host: Database) -> None:
    with host.connect(admin=True) as owner, owner.transaction(force_rollback=True):
        setting(owner, "request.jwt.claims", json.dumps({"sub": str(A)}))
        owner.execute("update profiles set role = 'admin' where user_id = %s", (A,))
        owner.execute("set local role authenticated")
        assert owner.execute("select platform_is_admin()").fetchone() == (True,)
        setting(owner, "request.jwt.claims", json.dumps({"sub": str(B)}))
        assert owner.execute("select platform_is_admin()").fetchone() == (False,)


def test_profiles_that_a_stranger_made_make_nobody_an_admin(host: Database) -> None:
    """Where everybody may create in public, as up to PostgreSQL 14."""
    with host.connect(admin=True) as owner, owner.transaction(force_rollback=True):
        owner.execute(
            "drop table profiles cascade; create role stranger; grant create, usage on schema public to stranger; set local role stranger"
        )
        owner.execute("create table public.profiles (user_id uuid unique, role text)")
        owner.execute(
            "insert into profiles values (%s, 'admin'); grant select on profiles to public".replace(
                "%s", f"'{A}'"
            )
        )
        setting(owner, "request.jwt.claims", json.dumps({"sub": str(A)}))
        owner.execute("reset role; set local role authenticated")
        assert owner.execute("select platform_is_admin()").fetchone() == (False,)


def test_a_policy_asks_once_per_statement(host: Database) -> None:
    with acting(host, "a") as connection:
        for table in ("agent_chat_sessions", "platform_events", "bookings", "amara_messages"):
            plan = "\n".join(row[0] for row in connection.execute(f"explain (verbose) select * from {table}"))
            assert "InitPlan" in plan, table


def test_the_keys_to_the_hosts_users_are_there_and_valid(host: Database) -> None:
    keys = "select conname::text, convalidated, confdeltype::text from pg_constraint where conname like '%host_fkey' order by 1"
    assert host.query(keys) == [
        ("amara_conversations_user_id_host_fkey", True, "c"),
        ("audit_events_user_id_host_fkey", True, "a"),
        ("platform_events_user_id_host_fkey", True, "n"),
        ("referrals_referee_id_host_fkey", True, "c"),
        ("referrals_referrer_id_host_fkey", True, "c"),
    ]
    assert host.value("select refresh_platform_access()") == 0


def test_a_host_that_comes_later_is_found_by_a_refresh(
    own_host: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that point at nobody stop no key: new rows are checked, and a second refresh looks at the old ones
    again.
    """
    with own_host.connect(admin=True) as owner:
        warnings: list[str] = []
        owner.add_notice_handler(
            lambda notice: warnings.append(f"{notice.message_primary} {notice.message_hint}")
        )
        owner.execute(
            "alter table auth.users rename to later; drop table profiles; alter role authenticated rename to people"
        )
        bring(own_host)
        assert owner.execute(
            "select count(*) from pg_constraint where conname like '%host_fkey'"
        ).fetchone() == (0,)
        assert owner.execute(
            "select count(*) from pg_policies where 'authenticated' = any (roles)"
        ).fetchone() == (0,)
        owner.execute("insert into platform_events (event_type, user_id) values ('x', gen_random_uuid())")
        owner.execute("alter table auth.later rename to users; alter role people rename to authenticated")
        assert owner.execute("select refresh_platform_access()").fetchone()[0] > 20  # type: ignore[index]
        assert [
            text
            for text in warnings
            if "platform_events.user_id has rows that point at nobody in auth.users" in text
        ]
        valid = "select convalidated from pg_constraint where conname = 'platform_events_user_id_host_fkey'"
        assert owner.execute(valid).fetchone() == (False,)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            owner.execute("insert into platform_events (event_type, user_id) values ('y', gen_random_uuid())")
        owner.execute("delete from platform_events")
        assert owner.execute("select refresh_platform_access()").fetchone() == (0,)
        assert owner.execute(valid).fetchone() == (True,)


def test_a_partition_that_is_made_later_is_closed_to_the_hosts_roles(host: Database) -> None:
    with acting(host, "worker") as connection:
        name = connection.execute("select create_messages_partition('2041-05-01')").fetchone()[0]  # type: ignore[index]
        for role in ("anon", "authenticated", "service_role", "packhorse_worker", "packhorse_reader"):
            assert connection.execute(
                "select has_table_privilege(%s, %s, 'select')", (role, name)
            ).fetchone() == (False,)


def test_only_the_owner_refreshes(host: Database) -> None:
    for actor in ACTORS:
        with acting(host, actor) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select refresh_platform_access()")


def test_a_way_back_leaves_no_policy_on_an_adopted_table(own_host: Database) -> None:
    own_host.query("create table amara_conversations (like auth.users including all)")
    for column in (
        "user_id uuid not null references auth.users (id)",
        "locale text",
        "is_active boolean",
        "last_message_at timestamptz",
    ):
        own_host.query(f"alter table amara_conversations add column {column}")
    own_host.query(
        "alter table amara_conversations add column created_at timestamptz, add column updated_at timestamptz"
    )
    bring(own_host)
    policies = "select policyname::text from pg_policies where tablename = 'amara_conversations' order by 1"
    assert own_host.query(policies) == [
        (f"amara_conversations_{name}",) for name in ("own_all", "reader", "service", "worker")
    ]
    # the key that it had is enough
    keys = "select conname::text from pg_constraint where conrelid = 'amara_conversations'::regclass and contype = 'f'"
    assert own_host.query(keys) == [("amara_conversations_user_id_fkey",)]
    connection = connect(own_host.admin_url, deadline_seconds=120)
    for _ in range(9):
        assert str(migrate.down(connection)).startswith("platform/")
    connection.close()
    assert own_host.query(policies) == []
    assert own_host.value("select count(*) from pg_class where relname = 'amara_conversations'") == 1


def test_an_owner_without_superuser_brings_the_platform_to_a_host(own_host: Database) -> None:
    """As on Supabase: the migrator owns neither auth.users nor the roles. What it may not do is a warning,
    and all the rest is there.
    """
    own_host.query("create role migrator login createrole createdb")
    own_host.query(
        "alter schema public owner to migrator; alter table profiles owner to migrator; alter schema packhorse owner to migrator"
    )
    own_host.query(
        "create role auth_admin; alter schema auth owner to auth_admin; alter table auth.users owner to auth_admin"
    )
    own_host.query("grant usage on schema auth to migrator; grant references on auth.users to migrator")
    own_host.query(f"drop schema packhorse cascade; grant create on database {own_host.name} to migrator")
    connection = connect(own_host.server.url(own_host.name, "migrator"), deadline_seconds=120)
    migrate.up(connection, sets=["platform"])
    schema_version.check(connection)
    connection.close()
    keys = "select conname::text, convalidated from pg_constraint where conname like '%host_fkey' order by 1"
    assert own_host.query(keys) == [
        (f"{name}_host_fkey", True)
        for name in (
            "amara_conversations_user_id",
            "audit_events_user_id",
            "platform_events_user_id",
            "referrals_referee_id",
            "referrals_referrer_id",
        )
    ]
    own_host.query("revoke references on auth.users from migrator")
    with psycopg.connect(own_host.server.url(own_host.name, "migrator"), autocommit=True) as owner:
        owner.execute("alter table public.platform_events drop constraint platform_events_user_id_host_fkey")
        said: list[str] = []
        owner.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        assert owner.execute("select public.refresh_platform_access()").fetchone() == (0,)
    assert [
        text
        for text in said
        if text.startswith("platform_events.user_id has no foreign key to auth.users: permission denied")
    ]
    with acting(own_host, "a") as one:
        one.execute("insert into public.platform_events (event_type) values ('x')")
        assert reaches(one, "select id from public.agent_chat_sessions") == (set(), False)


def test_rights_are_mended_by_the_next_migration(own_host: Database) -> None:
    bring(own_host)
    own_host.query(
        "grant all on bookings to anon; grant select on whatsapp_auth to public; revoke select on clients from authenticated"
    )
    bring(own_host)

    def rights(role: str, table: str, what: str) -> Any:
        return own_host.value("select has_table_privilege(%s, %s, %s)", role, table, what)

    assert (rights("anon", "bookings", "delete"), rights("anon", "bookings", "insert")) == (False, True)
    assert (
        rights("authenticated", "whatsapp_auth", "select") is False
        and rights("authenticated", "clients", "select") is True
    )

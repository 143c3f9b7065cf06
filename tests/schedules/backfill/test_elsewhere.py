"""Backfills where the schemas have other names, behind a transaction pooler, and on a host whose default
privileges give everything to everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import psycopg
import pytest

from packhorse.schedules.backfill import acts, declare
from packhorse.schedules.backfill.engine import BackfillRun
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.db.names import Names
from tests.schedules.backfill.conftest import OPEN
from tests.sql.platform.conftest import create_platform_database
from tests.sql.platform.test_access import a_host, bring
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.postgres import Database, Server

pytestmark = pytest.mark.slow

NAMES = Names("jobs", "chat")
#: Old tables, in the schema that a connection finds first.
TABLES = """
create table ai_agent_sessions (id uuid primary key default gen_random_uuid(), phone text not null, context jsonb default '{}',
  created_at timestamptz default now(), updated_at timestamptz default now(), expires_at timestamptz default now() + interval '24 hours');
insert into ai_agent_sessions (phone) select '+25078800' || lpad((n % 20)::text, 4, '0') from generate_series(1, 30) n;
create table webhook_logs (id bigint primary key, webhook_id text, event_type text, source text, payload jsonb, status text,
  created_at timestamptz default now());
insert into webhook_logs select n, 'w' || n, 'message', 'whatsapp', '{}', null, now() from generate_series(1, 30) n;
create table audit_logs (id bigint primary key, user_id text, action text, created_at timestamptz default now());
insert into audit_logs select n, null, 'login', now() from generate_series(1, 30) n;
create table etta_conversations (id uuid primary key default gen_random_uuid(), user_id uuid, locale text, is_active boolean,
  last_message_at timestamptz, created_at timestamptz default now(), updated_at timestamptz default now());
insert into etta_conversations (user_id, locale, is_active, last_message_at)
  select gen_random_uuid(), 'en', true, now() from generate_series(1, 30) n;
create schema core;
create table core.conversation_sessions (id uuid primary key);
insert into core.conversation_sessions select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid from generate_series(1, 10) n;
create table core.whatsapp_conversations (id bigint primary key, session_id varchar);
insert into core.whatsapp_conversations
  select n, case when n % 10 = 0 then 'none' else '00000000-0000-4000-8000-' || lpad((n % 10)::text, 12, '0') end from generate_series(1, 30) n;
"""
#: Name -> copies, as a count.
COPIES = {
    "agent_sessions": "select count(*) from agent_chat_sessions",
    "webhook_logs": "select count(*) from webhook_events",
    "audit_logs": "select count(*) from audit_events where metadata ? 'migrated_from'",
    "etta_conversations": "select count(*) from amara_conversations",
    "session_ids": "select count(*) from core.whatsapp_conversations where pg_typeof(session_id)::text = 'uuid'",
}
Open = Callable[[], DeadlineConnection]


@pytest.fixture
def other_names(server: Server) -> Iterator[Open]:
    """Neither of our schemas has its usual name, and no search_path leads to the queue's."""
    database = server.create_empty_database()
    opened = partial(connect, database.admin_url, names=NAMES, deadline_seconds=120)
    with opened() as connection:
        migrate.up(connection, sets=["platform"])
    with psycopg.connect(database.admin_url, options="-c search_path=chat", autocommit=True) as plain:
        plain.execute(TABLES)
    yield lambda: _found_in_chat(opened())
    database.drop()


def _found_in_chat(connection: DeadlineConnection) -> DeadlineConnection:
    connection.execute("set search_path = chat")
    return connection


@pytest.fixture
def pooled(server: Server, tmp_path) -> Iterator[Open]:
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    database = create_platform_database(server)
    with database.connect(admin=True) as connection:
        connection.execute(TABLES)
        connection.execute(f"alter database {database.name} set statement_timeout = '55s'")
    bouncer = PgBouncer(server, tmp_path)
    yield lambda: connect(bouncer.url(database.name, "postgres"), pooler=True, deadline_seconds=120)
    bouncer.close()
    database.drop()


def there_and_back(opened: Open, name: str) -> None:
    """Copied and verified, all of it; a second run changes nothing; the way back leaves nothing."""
    for _ in range(2):
        assert BackfillRun(opened, declare.find(name), OPEN, operator="ada").run().state == "succeeded"
        with opened() as connection:
            found = acts.verify(connection, declare.find(name), "ada")
            assert "refused" not in {finding.level for finding in found}, found
            copies = connection.execute(COPIES[name]).fetchone()[0]
            assert copies == (20 if name == "agent_sessions" else 30)
    with opened() as connection:
        acts.rollback(connection, declare.find(name), "ada", "no")
        assert connection.execute(COPIES[name]).fetchone()[0] == 0


@pytest.mark.parametrize("name", COPIES)
def test_schemas_of_other_names(other_names: Open, name: str) -> None:
    there_and_back(other_names, name)


@pytest.mark.parametrize("name", COPIES)
def test_behind_a_transaction_pooler(pooled: Open, name: str) -> None:
    there_and_back(pooled, name)
    with pooled() as connection:
        left = connection.execute(
            "select current_setting('statement_timeout'), current_setting('lock_timeout')"
        )
        assert left.fetchone() == ("55s", "0"), "nothing is left to strangers"


GRANTS = """
select c.relname::text, r.rolname::text, lower(p.name) from pg_class c, pg_roles r,
  unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) as p (name)
where c.oid = any (%s::regclass[]::oid[]) and r.rolname in ('anon', 'authenticated', 'service_role')
  and has_table_privilege(r.oid, c.oid, p.name)
"""


def test_default_privileges_of_a_host_open_nothing(server: Server) -> None:
    """As on Supabase: whatever is made in `public` is everybody's at first."""
    own, database = a_host(server.name)
    try:
        bring(database)
        with database.connect(admin=True) as owner:
            owner.execute(TABLES)
            owner.execute("create role stranger login")
        opened = partial(connect, database.admin_url, deadline_seconds=120)
        for name in ("agent_sessions", "webhook_logs", "audit_logs"):
            assert BackfillRun(opened, declare.find(name), OPEN, operator="ada").run().state == "succeeded"
        views = ["ai_agent_sessions_compat", "webhook_logs_compat", "audit_logs_compat"]
        readers = ("authenticated", "service_role")
        assert set(database.query(GRANTS, views)) == {(v, r, "select") for v in views for r in readers}
        with database.connect(admin=True) as reader:
            reader.execute("set role authenticated")
            for view in views:  # security_invoker: the rows of his own, and he has none
                assert reader.execute(f"select count(*) from {view}").fetchone() == (0,)
        for role in ("anon", "authenticated", "stranger"):
            may = "select has_function_privilege(%s, 'mark_migrated_session()', 'execute')"
            assert database.value(may, role) is False
        made_again(database, opened)
        assert database.query(GRANTS, ["ai_agent_sessions"]) == []
    finally:
        own.close()


def made_again(database: Database, opened: Open) -> None:
    """The way back after the clean-up."""
    with opened() as connection:
        backfill = declare.find("agent_sessions")
        source = backfill.find_source(connection)
        assert source is not None
        with connection.transaction():
            backfill.finish(connection, source)
        database.query("update packhorse.backfills set state = 'finished' where name = 'agent_sessions'")
        acts.rollback(connection, backfill, "ada", "no")
    assert database.value("select count(*) from ai_agent_sessions") == 30

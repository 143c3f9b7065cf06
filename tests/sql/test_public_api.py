"""`migrate up --with public-api`: the names that PostgREST and old code look for, in a schema of theirs (SPEC
N2).
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from packhorse.worker.db import migrate, schema_version
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import StoreError
from tests.support.databases import migrators
from tests.support.postgres import Database

HOLDER = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def connection(database: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(database)


def outside(database: Database, role: str) -> psycopg.Connection:
    """A caller who knows nothing of our schema."""
    connection = psycopg.connect(database.admin_url, autocommit=True)
    connection.execute(f"set role {role}")
    return connection


def test_each_function_does_what_the_one_of_its_name_does(
    connection: DeadlineConnection, database: Database
) -> None:
    added = migrate.up(connection, sets=["public-api"])
    assert (
        added == ["public-api/0001_check_names", "public-api/functions/api", "public-api/functions/old_names"]
        and migrate.up(connection) == []
    )
    schema_version.check(connection)
    with outside(database, "packhorse_producer") as producer:
        first = producer.execute(
            "select * from enqueue_message('default', 'effect', p_dedup_key => 'k', p_conversation_key => 'c')"
        ).fetchone()
        again = producer.execute(
            "select * from enqueue_message(p_queue => 'default', p_message_type => 'effect', p_dedup_key => 'k')"
        ).fetchone()
        assert first is not None and again == (first[0], True, False)
        assert producer.execute(
            """select enqueue_payloads('default', 'effect', '[{"a": 1}, {"a": 2}]')"""
        ).fetchone() == (2,)
        assert producer.execute("select is_new_message('w'), is_new_message('w')").fetchone() == (True, False)
        assert producer.execute(
            "select acquire_conversation_lock('c', 'ann'), release_conversation_lock('c', 'ann')"
        ).fetchone() == (True, True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.execute("select * from get_next_queue_message('default')")
    with outside(database, "packhorse_worker") as worker:
        claimed = worker.execute(
            "select id, lease_token from get_next_queue_message('default', %s)", (HOLDER,)
        ).fetchone()
        assert claimed is not None and claimed[0] == first[0]
        assert worker.execute(
            "select complete_messages(array[%s::bigint], array[%s::bigint])", claimed
        ).fetchone() == ([claimed[0]],)
        assert worker.execute(
            "select cleanup_stale_message_locks(), cleanup_stuck_webhook_conversations()"
        ).fetchone() == (0, 0)


def test_nobody_else_has_anything_of_it_whatever_the_host_gives(
    connection: DeadlineConnection, database: Database
) -> None:
    connection.execute(
        "do $$ begin create role anon; exception when duplicate_object then null; end $$", prepare=False
    )
    connection.execute(
        "alter default privileges in schema public grant all on functions to anon", prepare=False
    )
    migrate.up(connection, sets=["public-api"])
    mine = "from pg_proc p where p.pronamespace = 'public'::regnamespace"
    assert int(str(database.value(f"select count(*) {mine}"))) >= 19
    assert (
        database.query(
            f"select p.oid::regprocedure {mine} and (has_function_privilege('anon', p.oid, 'execute') or p.prosecdef)"
        )
        == []
    )
    assert database.query("select * from public.public_api_rights()") == []


def test_a_function_of_theirs_with_one_of_the_names_is_named_and_stays(
    connection: DeadlineConnection, database: Database
) -> None:
    database.query(
        "create function public.is_new_message(text) returns boolean language sql as 'select true'"
    )
    with pytest.raises(StoreError, match=r"function is_new_message\(text\) exists already"):
        migrate.up(connection, sets=["public-api"])
    assert (
        database.value(
            "select prosrc from pg_proc where proname = 'is_new_message' and pronamespace = 'public'::regnamespace"
        )
        == "select true"
    )
    schema_version.check(connection)


@pytest.mark.slow
def test_down_takes_it_back(connection: DeadlineConnection, database: Database) -> None:
    migrate.up(connection, sets=["platform", "public-api"])
    assert migrate.down(connection) == "public-api/0001_check_names"
    assert (
        database.value(
            "select to_regproc('public.is_new_message') is null and to_regclass('public.companies') is not null"
        )
        is True
    )
    schema_version.check(connection)

"""Migrations: applied once, by one migrator at a time; a schema that is not understood is refused (SPEC O8)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreError
from packhorse.worker.version import __version__
from tests.sql.parking import in_background
from tests.support.databases import migrators
from tests.support.postgres import Database
from tests.support.waiting import wait_until

NAMES = [migration.name for migration in migrate.available()]


@pytest.fixture
def connection(empty_database: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(empty_database)


def record(database: Database) -> list[tuple]:
    return database.query("select name, checksum from packhorse_migrations order by name")


def test_an_empty_database_gets_every_migration_in_order_and_then_nothing(connection: DeadlineConnection) -> None:
    reported: list[str] = []
    assert migrate.up(connection, reported.append) == NAMES == reported
    assert migrate.up(connection) == []
    migrate.check(connection)


def test_what_was_applied_is_recorded_with_its_checksum(connection: DeadlineConnection, empty_database: Database) -> None:
    migrate.up(connection)
    assert record(empty_database) == [(migration.name, migration.checksum) for migration in migrate.available()]


def test_two_migrators_at_once_apply_each_migration_once(empty_database: Database) -> None:
    connections = [connect(empty_database.admin_url, deadline_seconds=60) for _ in range(3)]
    done = [future.result(60) for future in [in_background(migrate.up, connection) for connection in connections]]
    for connection in connections:
        migrate.check(connection)
        connection.close()
    assert sorted(name for names in done for name in names) == NAMES


def test_a_migrator_that_waits_holds_no_snapshot(empty_database: Database) -> None:
    """A waiter that sits in a transaction would hold up index builds of the one that works (FAILURES 61)."""
    with empty_database.connect(admin=True) as holder, holder.transaction():
        assert holder.execute("select pg_try_advisory_xact_lock(hashtext('packhorse.migrate'), hashtext(current_schema()))").fetchone() == (True,)
        waiter = connect(empty_database.admin_url, deadline_seconds=60)
        pid = waiter.info.backend_pid
        result = in_background(migrate.up, waiter)
        wait_until(
            lambda: empty_database.query(
                "select 1 from pg_stat_activity where pid = %s and query = 'COMMIT' and state = 'idle' and backend_xmin is null", pid
            )
        )
        assert not result.done() and empty_database.value("select to_regclass('packhorse_migrations')") is None
    assert result.result(60) == NAMES
    waiter.close()


def test_a_changed_migration_is_refused_and_changes_nothing(connection: DeadlineConnection, empty_database: Database) -> None:
    migrate.up(connection)
    empty_database.query("update packhorse_migrations set checksum = 'other' where name = %s", NAMES[3])
    before = record(empty_database)
    with pytest.raises(MigrationError, match=f"{NAMES[3]} was changed"):
        migrate.up(connection)
    with pytest.raises(SchemaMismatch, match=f"{NAMES[3]}.* differs"):
        migrate.check(connection)
    assert record(empty_database) == before


def test_a_database_that_is_newer_than_the_code_is_refused_and_named(connection: DeadlineConnection, empty_database: Database) -> None:
    migrate.up(connection)
    empty_database.query("insert into packhorse_migrations (name, checksum) values ('9999_rule_the_world', 'x')")
    for call in (migrate.up, migrate.check):
        with pytest.raises(SchemaMismatch, match="this code is older than the database, which has 9999_rule_the_world"):
            call(connection)
    with pytest.raises(SchemaMismatch, match="9999_rule_the_world"):
        migrate.down(connection)


def from_the_future(database: Database, runs_beside: str | None) -> None:
    database.query("insert into packhorse_migrations (name, checksum, runs_beside) values ('9999_add_something', 'x', %s)", runs_beside)


@pytest.mark.parametrize("oldest", ["0.0.9", __version__])
def test_code_runs_beside_a_migration_of_a_newer_release_that_allows_it(
    connection: DeadlineConnection, empty_database: Database, oldest: str
) -> None:
    """A rolling deploy, and a rollback of the code, need no rollback of the schema (SPEC P7b)."""
    migrate.up(connection)
    from_the_future(empty_database, oldest)
    migrate.check(connection)
    assert migrate.up(connection) == []


@pytest.mark.parametrize("oldest", ["99.0.0", None])
def test_code_that_is_too_old_for_a_migration_is_refused(connection: DeadlineConnection, empty_database: Database, oldest: str | None) -> None:
    migrate.up(connection)
    from_the_future(empty_database, oldest)
    with pytest.raises(SchemaMismatch, match="this code is older than the database, which has 9999_add_something"):
        migrate.check(connection)


def test_code_adds_nothing_of_its_own_below_a_migration_of_a_newer_release(connection: DeadlineConnection, empty_database: Database) -> None:
    migrate.up(connection)
    from_the_future(empty_database, __version__)
    with pytest.raises(SchemaMismatch, match="would add platform/0001"):
        migrate.up(connection, sets=["platform"])
    assert empty_database.value("select count(*) from packhorse_migrations where name like 'platform/%%'") == 0


def test_a_migration_says_in_its_file_which_release_may_run_beside_it(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migration(tmp_path, monkeypatch, "-- Adds a column.\n-- Runs beside: 0.1.0\nalter table message_queue add column extra integer;")
    migrate.up(connection)
    assert empty_database.value("select runs_beside from packhorse_migrations where name = '0900_add_something'") == "0.1.0"


def test_producers_get_through_while_a_migration_waits_for_a_long_reader(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a lock keeps all who come after it waiting: so it waits for a second, and lets them through."""
    migrate.up(connection)
    add_migration(tmp_path, monkeypatch, "alter table message_queue add column extra integer;")
    with empty_database.connect(admin=True) as reader, reader.transaction():
        reader.execute("select count(*) from message_queue")
        done = in_background(migrate.up, connection)
        waits = "select exists (select from pg_locks where relation = 'message_queue'::regclass and not granted)"
        for _ in range(2):
            wait_until(lambda: empty_database.value(waits), 30, "it waits")
            empty_database.query("select enqueue_message('default', 'effect')")
            wait_until(lambda: not empty_database.value(waits), 30, "it has given way")
        assert not done.done()
    assert done.result(60) == ["0900_add_something"]


def test_a_code_that_is_newer_than_the_database_is_refused_and_named(connection: DeadlineConnection, empty_database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="no queue schema"):
        migrate.check(connection)
    migrate.up(connection)
    empty_database.query("delete from packhorse_migrations where name = %s", NAMES[-1])
    with pytest.raises(SchemaMismatch, match=f"the database is older than this code: 1 migration.*{NAMES[-1]}"):
        migrate.check(connection)


def test_a_newer_database_is_refused_before_anything_is_applied(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old code must not add its migrations to a database of a newer release."""
    migrate.up(connection)
    empty_database.query("insert into packhorse_migrations (name, checksum) values ('9999_rule_the_world', 'x')")
    add_migration(tmp_path, monkeypatch, "create table added_by_old_code ();")
    with pytest.raises(SchemaMismatch):
        migrate.up(connection)
    assert empty_database.value("select to_regclass('added_by_old_code')") is None


def add_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A folder with all migrations and one more."""
    shutil.copytree(migrate.directory(), tmp_path / "migrations")
    (tmp_path / "migrations" / "0900_add_something.sql").write_text(text)
    monkeypatch.setattr(migrate, "directory", lambda: tmp_path / "migrations")


def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.up(connection)
    add_migration(tmp_path, monkeypatch, "create table half (); select 1 / 0;")

    with pytest.raises(StoreError, match="division by zero"):
        migrate.up(connection)
    assert empty_database.value("select to_regclass('half')") is None
    assert [name for name, _ in record(empty_database)] == NAMES
    (tmp_path / "migrations" / "0900_add_something.sql").write_text("create table half ();")
    assert migrate.up(connection) == ["0900_add_something"]


def test_what_is_in_the_way_of_a_late_migration_changes_nothing_in_a_database_without_the_queue(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    objects = "select count(*) from pg_class union all select count(*) from pg_proc union all select count(*) from pg_type"
    empty_database.query("create table schedules (id bigint)")
    before = empty_database.query(objects)
    said: list[str] = []
    with pytest.raises(StoreError, match="schedules"):
        migrate.up(connection, said.append, sets=["platform"])
    assert (empty_database.query(objects), said) == (before, [])
    empty_database.query("drop table schedules")
    assert len(migrate.up(connection, said.append, sets=["platform"])) == len(said) > len(NAMES)


def test_a_migration_waits_for_no_lock_for_long(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packhorse.worker.errors import StoreConflict

    migrate.up(connection)
    monkeypatch.setattr(migrate, "LOCK_WAIT_SECONDS", 0.1)
    add_migration(tmp_path, monkeypatch, "set local lock_timeout = '100ms'; alter table message_queue add column extra integer;")
    with empty_database.connect(admin=True) as holder, holder.transaction():
        holder.execute("select count(*) from message_queue")
        with pytest.raises(StoreConflict):
            migrate.up(connection)
    assert migrate.up(connection) == ["0900_add_something"]


def test_all_the_way_up_down_and_up_again(connection: DeadlineConnection, empty_database: Database) -> None:
    migrate.up(connection)
    taken_back = []
    while name := migrate.down(connection):
        taken_back.append(name)
    assert taken_back == NAMES[::-1]
    left = empty_database.query(
        "select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'public' union all "
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = 'public' and c.relname not like 'packhorse_migrations%'"
    )
    assert left == []
    assert migrate.up(connection) == NAMES


def test_the_schema_can_live_in_another_schema(empty_database: Database) -> None:
    empty_database.query("create schema elsewhere")
    other = connect(empty_database.admin_url, schema="elsewhere", deadline_seconds=60)
    assert migrate.up(other) == NAMES
    assert empty_database.value("select to_regclass('public.message_queue')") is None
    outside = connect(empty_database.admin_url)
    row = outside.execute("select message_id from elsewhere.enqueue_message('default', 'effect')").fetchone()
    assert row is not None and empty_database.value("select count(*) from elsewhere.message_queue where id = %s", row[0]) == 1
    other.close()
    outside.close()


GRANTED = """select distinct o.name, a.privilege_type from (
  select c.oid::regclass::text as name, c.relacl as acl from pg_class c where c.relnamespace = 'public'::regnamespace
  union all select p.oid::regprocedure::text, p.proacl from pg_proc p where p.pronamespace = 'public'::regnamespace
  union all select t.oid::regtype::text, t.typacl from pg_type t where t.typnamespace = 'public'::regnamespace) o
  cross join aclexplode(o.acl) a join pg_roles r on r.oid = a.grantee where r.rolname = %s order by 1, 2"""


def test_default_privileges_give_nobody_anything_of_ours(connection: DeadlineConnection, empty_database: Database) -> None:
    """Else anybody on the internet could empty the queue, or have a trigger there that runs as the worker."""
    for role in ("web_visitor", "service_role"):
        empty_database.query(f"do $$ begin create role {role}; exception when duplicate_object then null; end $$")
        for kind in ("tables", "routines", "sequences", "types"):
            connection.execute(f"alter default privileges in schema public grant all on {kind} to {role}")
    connection.execute("alter default privileges in schema public grant all on tables to public")
    connection.execute("create table mine (id bigint)")
    migrate.up(connection, sets=["platform"])
    assert {name for name, _ in empty_database.query(GRANTED, "web_visitor")} == {"mine"}, "what is not ours is left alone"
    assert len(empty_database.query(GRANTED, "service_role")) > 100, "the role of the host's own servers"
    verbs = "insert, update, delete, truncate, references, trigger"
    touched = (
        "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') and c.relname <> 'mine'"
    )
    assert empty_database.query(f"{touched} and has_table_privilege('web_visitor', c.oid, %s)", verbs) == []
    connection.execute("grant select on message_archive to web_visitor")
    migrate.up(connection)
    assert ("message_archive", "SELECT") in empty_database.query(GRANTED, "web_visitor"), "a grant that somebody made on purpose"


def test_default_privileges_open_neither_the_record_nor_what_runs_as_the_owner(connection: DeadlineConnection, empty_database: Database) -> None:
    """As on Supabase, where anybody on the internet is the role `anon`, which has all rights to whatever is new in `public`."""
    for role in ("web_visitor", "Web Visitor"):
        empty_database.query(f"""do $$ begin create role "{role}"; exception when duplicate_object then null; end $$""")
        for kind in ("tables", "functions", "sequences"):
            connection.execute(f"""alter default privileges in schema public grant all on {kind} to "{role}" """)
    migrate.up(connection, sets=["platform"])
    open_functions = "select p.proname from pg_proc p where p.prosecdef and has_function_privilege(%s, p.oid, 'execute')"
    for role in ("web_visitor", "Web Visitor"):
        assert empty_database.query(open_functions, role) == []
        for right, granted in (("select", True), ("insert", False), ("update", False), ("delete", False), ("truncate", False)):
            assert empty_database.value("select has_table_privilege(%s, 'packhorse_migrations', %s)", role, right) is granted, right
    assert empty_database.query(open_functions, "packhorse_worker") != []
    unpinned = "select proname from pg_proc p where p.prosecdef and not array_to_string(p.proconfig, ';') like '%%search_path=%%, pg_temp%%'"
    assert empty_database.query(unpinned) == [], "a temporary table of the caller would be found first"

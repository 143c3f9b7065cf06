"""Migrations: applied once, by one migrator at a time; a schema that is not understood is refused (SPEC
O8).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.worker.db import migrate, migration_files, schema_version
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.db.names import Names
from packhorse.worker.doctor import snapshot
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreError
from packhorse.worker.store import messages as store
from packhorse.worker.version import __version__
from tests.sql.parking import in_background
from tests.support.databases import migrators
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NAMES = [migration.name for migration in migration_files.available()]
NUMBERED = [name for name in NAMES if not name.startswith("functions/")]
RECORD = "insert into packhorse_migrations (name, checksum, runs_beside, release, objects) values (%s, 'x', %s, '99.0.0', '{}')"


@pytest.fixture
def connection(empty_database: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(empty_database)


def record(database: Database) -> list[tuple]:
    return database.query('select name, checksum from packhorse_migrations order by name collate "C"')


def test_an_empty_database_gets_every_migration_in_order_and_then_nothing(
    connection: DeadlineConnection,
) -> None:
    reported: list[str] = []
    assert migrate.up(connection, reported.append) == NAMES == reported
    assert migrate.up(connection) == []
    schema_version.check(connection)


def test_what_was_applied_is_recorded_with_its_checksum(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    migrate.up(connection)
    assert record(empty_database) == [
        (migration.name, migration.checksum) for migration in migration_files.available()
    ]


def test_two_migrators_at_once_apply_each_migration_once(empty_database: Database) -> None:
    connections = [connect(empty_database.admin_url, deadline_seconds=60) for _ in range(3)]
    done = [
        future.result(60) for future in [in_background(migrate.up, connection) for connection in connections]
    ]
    for connection in connections:
        schema_version.check(connection)
        connection.close()
    assert sorted(name for names in done for name in names) == NAMES


def test_a_migrator_that_waits_holds_no_snapshot(empty_database: Database) -> None:
    """A waiter that sits in a transaction would hold up index builds of the one that works (FAILURES 61)."""
    with empty_database.connect(admin=True) as holder, holder.transaction():
        assert holder.execute(
            "select pg_try_advisory_xact_lock(hashtext('packhorse migrate'), hashtext('packhorse'))"
        ).fetchone() == (True,)
        waiter = connect(empty_database.admin_url, deadline_seconds=60)
        pid = waiter.info.backend_pid
        result = in_background(migrate.up, waiter)
        wait_until(
            lambda: empty_database.query(
                "select 1 from pg_stat_activity where pid = %s and query = 'COMMIT' and state = 'idle' and backend_xmin is null",
                pid,
            )
        )
        assert (
            not result.done() and empty_database.value("select to_regclass('packhorse_migrations')") is None
        )
    assert result.result(60) == NAMES
    waiter.close()


def test_a_changed_migration_is_refused_and_changes_nothing(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    migrate.up(connection)
    empty_database.query("update packhorse_migrations set checksum = 'other' where name = %s", NAMES[3])
    before = record(empty_database)
    with pytest.raises(MigrationError, match=rf"{NAMES[3]} was changed"):
        migrate.up(connection)
    with pytest.raises(SchemaMismatch, match=rf"{NAMES[3]}.* differs"):
        schema_version.check(connection)
    assert record(empty_database) == before


def test_a_database_that_is_newer_than_the_code_is_refused_and_named(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    migrate.up(connection)
    empty_database.query(RECORD, "9999_rule_the_world", None)
    for call in (migrate.up, schema_version.check):
        with pytest.raises(
            SchemaMismatch, match="this code is older than the database, which has 9999_rule_the_world"
        ):
            call(connection)
    with pytest.raises(SchemaMismatch, match="9999_rule_the_world"):
        migrate.down(connection)


def from_the_future(database: Database, runs_beside: str | None) -> None:
    database.query(RECORD, "9999_add_something", runs_beside)


@pytest.mark.parametrize("oldest", ["0.0.9", __version__])
def test_code_runs_beside_a_migration_of_a_newer_release_that_allows_it(
    connection: DeadlineConnection, empty_database: Database, oldest: str
) -> None:
    """A rolling deploy, and a rollback of the code, need no rollback of the schema (SPEC P7b)."""
    migrate.up(connection)
    from_the_future(empty_database, oldest)
    schema_version.check(connection)
    assert migrate.up(connection) == []


@pytest.mark.parametrize("oldest", ["99.0.0", None])
def test_code_that_is_too_old_for_a_migration_is_refused(
    connection: DeadlineConnection, empty_database: Database, oldest: str | None
) -> None:
    migrate.up(connection)
    from_the_future(empty_database, oldest)
    with pytest.raises(
        SchemaMismatch, match="this code is older than the database, which has 9999_add_something"
    ):
        schema_version.check(connection)


def test_code_adds_nothing_of_its_own_below_a_migration_of_a_newer_release(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    migrate.up(connection)
    from_the_future(empty_database, __version__)
    with pytest.raises(SchemaMismatch, match="would add platform/0001"):
        migrate.up(connection, sets=["platform"])
    assert (
        empty_database.value("select count(*) from packhorse_migrations where name like 'platform/%%'") == 0
    )


def test_a_migration_says_in_its_file_which_release_may_run_beside_it(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migration(
        tmp_path,
        monkeypatch,
        "-- Adds a column.\n-- Runs beside: 0.1.0\nalter table packhorse.message_queue add column extra integer;",
    )
    migrate.up(connection)
    assert (
        empty_database.value("select runs_beside from packhorse_migrations where name = '0900_add_something'")
        == "0.1.0"
    )


def test_producers_get_through_while_a_migration_waits_for_a_long_reader(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a lock keeps all who come after it waiting: so it waits for a second, and lets them
    through.
    """
    migrate.up(connection)
    add_migration(tmp_path, monkeypatch, "alter table packhorse.message_queue add column extra integer;")
    with empty_database.connect(admin=True) as reader, reader.transaction():
        reader.execute("select count(*) from message_queue")
        done = in_background(migrate.up, connection)
        waits = (
            "select exists (select from pg_locks where relation = 'message_queue'::regclass and not granted)"
        )
        for _ in range(2):
            wait_until(lambda: empty_database.value(waits), 30, "it waits")
            empty_database.query("select enqueue_message('default', 'effect')")
            wait_until(lambda: not empty_database.value(waits), 30, "it has given way")
        assert not done.done()
    assert done.result(60) == ["0900_add_something"]


def test_a_code_that_is_newer_than_the_database_is_refused_and_named(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    with pytest.raises(SchemaMismatch, match="no queue schema"):
        schema_version.check(connection)
    migrate.up(connection)
    empty_database.query("delete from packhorse_migrations where name = %s", NAMES[-1])
    with pytest.raises(
        SchemaMismatch, match=f"the database is older than this code: 1 migration.*{NAMES[-1]}"
    ):
        schema_version.check(connection)


def test_a_newer_database_is_refused_before_anything_is_applied(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old code must not add its migrations to a database of a newer release."""
    migrate.up(connection)
    empty_database.query(RECORD, "9999_rule_the_world", None)
    add_migration(tmp_path, monkeypatch, "create table packhorse.added_by_old_code ();")
    with pytest.raises(SchemaMismatch):
        migrate.up(connection)
    assert empty_database.value("select to_regclass('added_by_old_code')") is None


def add_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A folder with all migrations and one more."""
    shutil.copytree(migration_files.directory(), tmp_path / "migrations")
    (tmp_path / "migrations" / "0900_add_something.sql").write_text(text)
    monkeypatch.setattr(migration_files, "directory", lambda: tmp_path / "migrations")


def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.up(connection)
    add_migration(tmp_path, monkeypatch, "create table packhorse.half (); select 1 / 0;")

    with pytest.raises(StoreError, match="division by zero"):
        migrate.up(connection)
    assert empty_database.value("select to_regclass('packhorse.half')") is None
    assert [name for name, _ in record(empty_database)] == sorted(NAMES)
    (tmp_path / "migrations" / "0900_add_something.sql").write_text("create table packhorse.half ();")
    assert migrate.up(connection) == ["0900_add_something"]


def test_what_is_in_the_way_of_a_late_migration_changes_nothing_in_a_database_without_the_queue(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    objects = "select count(*) from pg_class union all select count(*) from pg_proc union all select count(*) from pg_type"
    empty_database.query("create table reminders (id bigint)")
    before = empty_database.query(objects)
    said: list[str] = []
    with pytest.raises(
        StoreError,
        match=r"the schema public has things .* cannot adopt, and nothing was changed: reminders lacks company_id bigint",
    ):
        migrate.up(connection, said.append, sets=["platform"])
    assert (empty_database.query(objects), said) == (before, [])
    empty_database.query("drop table reminders")
    assert len(migrate.up(connection, said.append, sets=["platform"])) == len(said) > len(NAMES)


def test_a_migration_waits_for_no_lock_for_long(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packhorse.worker.errors import StoreConflict

    migrate.up(connection)
    monkeypatch.setattr(migrate, "LOCK_WAIT_SECONDS", 0.1)
    add_migration(
        tmp_path,
        monkeypatch,
        "set local lock_timeout = '100ms'; alter table packhorse.message_queue add column extra integer;",
    )
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
    assert taken_back == NUMBERED[::-1]
    left = empty_database.query(
        "select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'packhorse' union all "
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = 'packhorse' and c.relname not like 'packhorse_migrations%'"
    )
    assert left == []
    assert migrate.up(connection) == NAMES


def test_the_schema_can_live_in_another_schema(empty_database: Database) -> None:
    empty_database.query("create schema elsewhere")
    other = connect(empty_database.admin_url, names=Names("elsewhere"), deadline_seconds=60)
    assert migrate.up(other) == NAMES
    assert empty_database.value("select to_regclass('packhorse.message_queue')") is None
    outside = connect(empty_database.admin_url)
    row = outside.execute("select message_id from elsewhere.enqueue_message('default', 'effect')").fetchone()
    assert (
        row is not None
        and empty_database.value("select count(*) from elsewhere.message_queue where id = %s", row[0]) == 1
    )
    other.close()
    outside.close()


ODD = ["My Queue", 'He said "queue"', "O'Brien", "select", "Grüße"]


@pytest.mark.parametrize("schema", ODD)
def test_any_name_of_a_schema_works(empty_database: Database, schema: str) -> None:
    """Whatever the search_path is (SPEC N2)."""
    empty_database.query("alter role postgres set search_path = ''")
    try:
        other = connect(empty_database.admin_url, names=Names(schema, f"{schema} 2"), deadline_seconds=60)
        done = migrate.up(other, sets=["platform"])
        assert done[: len(NAMES)] == NAMES and any(name.startswith("platform/") for name in done)
        schema_version.check(other)
        assert migrate.up(other) == []
        assert (
            store.enqueue(other, "default", "effect", "{}", "{}", dedup_key="k").id
            == store.enqueue(other, "default", "effect", "{}", "{}", dedup_key="k").id
        )
        assert snapshot.drift(other, {"platform"}) == []
        while migrate.down(other):
            pass
        assert migrate.up(other) == NAMES
        other.close()
    finally:
        empty_database.query("alter role postgres reset search_path")


@pytest.mark.parametrize(
    "thing",
    [
        "table theirs ()",
        "view theirs as select 1",
        "function theirs() returns int language sql as 'select 1'",
    ],
)
def test_a_schema_with_something_of_others_is_refused_and_nothing_is_changed(
    connection: DeadlineConnection, empty_database: Database, thing: str
) -> None:
    empty_database.query("create schema packhorse")
    empty_database.query(f"create {thing.replace('theirs', 'packhorse.theirs')}")
    before = empty_database.query("select count(*) from pg_class")
    with pytest.raises(
        MigrationError, match=r"packhorse has something of others: .* theirs. .*PACKHORSE_DB_SCHEMA"
    ):
        migrate.up(connection)
    assert empty_database.query("select count(*) from pg_class") == before


def test_a_role_that_may_make_no_schema_is_told_so(empty_database: Database) -> None:
    poor = connect(empty_database.url, deadline_seconds=60)
    with pytest.raises(StoreError, match="permission denied for database"):
        migrate.up(poor)
    poor.close()


def test_a_database_of_an_unreleased_version_is_refused_with_a_sentence(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    empty_database.query("create schema packhorse")
    empty_database.query(
        "create table packhorse.packhorse_migrations (name text primary key, checksum text not null, applied_at timestamptz default now())"
    )
    empty_database.query(
        "insert into packhorse.packhorse_migrations (name, checksum) values ('0005_create_queue_functions', 'x')"
    )
    for call in (migrate.up, schema_version.check):
        with pytest.raises(
            SchemaMismatch, match="unreleased version of Packhorse, and there is no upgrade from it"
        ):
            call(connection)


def change_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A folder with all migrations, and another text of one file of functions."""
    shutil.copytree(migration_files.directory(), tmp_path / "changed")
    file = tmp_path / "changed/functions/results.sql"
    file.write_text(f"{file.read_text()}\n{text}\n")
    monkeypatch.setattr(migration_files, "directory", lambda: tmp_path / "changed")


def test_a_file_of_functions_is_applied_again_when_its_text_has_changed(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.up(connection)
    change_functions(
        tmp_path,
        monkeypatch,
        "create or replace function packhorse.answer() returns int language sql as 'select 42';",
    )
    with pytest.raises(
        SchemaMismatch, match=r"another text of functions/results than this code. Run: packhorse migrate up"
    ):
        schema_version.check(connection)
    assert migrate.up(connection) == ["functions/results"]
    schema_version.check(connection)
    assert empty_database.value("select packhorse.answer()") == 42
    assert (
        empty_database.value(
            "select has_function_privilege('packhorse_worker', 'packhorse.answer()', 'execute')"
        )
        is True
    )
    assert (
        empty_database.value(
            "select has_function_privilege('packhorse_producer', 'packhorse.answer()', 'execute')"
        )
        is False
    )


def test_functions_of_a_newer_release_stay(
    connection: DeadlineConnection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback of the code must not put its older texts over them (SPEC P7b)."""
    migrate.up(connection)
    empty_database.query(
        "update packhorse_migrations set checksum = 'other', release = '99.0.0' where name = 'functions/results'"
    )
    empty_database.query(RECORD, "functions/inventions", None)
    schema_version.check(connection)
    assert migrate.up(connection) == []
    assert (
        empty_database.value("select checksum from packhorse_migrations where name = 'functions/results'")
        == "other"
    )


def test_every_file_of_functions_can_be_applied_again_with_its_bodies_checked(
    connection: DeadlineConnection,
) -> None:
    migrate.up(connection, sets=["platform"])
    connection.execute("set search_path = pg_catalog")
    for migration in migration_files.available(sets=["platform"]):
        if migration.repeats:
            migrate.apply_text(connection, migration.text)


GRANTED = """select o.name, a.grantee::regrole::text, a.privilege_type from (
  select c.oid::regclass::text as name, c.relacl as acl from pg_class c where c.relnamespace = 'packhorse'::regnamespace
  union all select c.oid::regclass || '.' || t.attname, t.attacl from pg_class c join pg_attribute t on t.attrelid = c.oid
    where c.relnamespace = 'packhorse'::regnamespace
  union all select p.oid::regprocedure::text, p.proacl from pg_proc p where p.pronamespace = 'packhorse'::regnamespace
  union all select n.nspname::text, n.nspacl from pg_namespace n where n.nspname = 'packhorse'
  union all select t.oid::regtype::text, t.typacl from pg_type t where t.typnamespace = 'packhorse'::regnamespace and t.typacl is not null) o
  cross join aclexplode(o.acl) a left join pg_roles r on r.oid = a.grantee
  where coalesce(r.rolname, 'public') not in ('postgres', 'packhorse_worker', 'packhorse_producer', 'packhorse_reader')
    and not (a.grantee = 0 and a.privilege_type = 'USAGE' and o.name not like '%%(%%') order by 1, 2, 3"""


def test_default_privileges_give_nobody_anything_of_ours(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    """Else anybody on the internet could empty the queue, or have a trigger there that runs as the worker."""
    for role in ("web_visitor", "service_role", '"Web Visitor"'):
        empty_database.query(
            f"do $$ begin create role {role}; exception when duplicate_object then null; end $$"
        )
        for kind in ("tables", "routines", "sequences", "types", "schemas"):
            connection.execute(f"alter default privileges grant all on {kind} to {role}")
    connection.execute("alter default privileges grant all on tables to public")
    connection.execute("create table mine (id bigint)")
    migrate.up(connection, sets=["platform"])
    assert empty_database.query(GRANTED) == []
    assert empty_database.value("select has_table_privilege('web_visitor', 'mine', 'truncate')") is True, (
        "what is not ours is left alone"
    )
    assert (
        empty_database.value("select has_table_privilege('service_role', 'companies', 'select')") is True
    ), "the host's own servers keep the platform"
    platform = "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') and c.relname <> 'mine'"
    verbs = "select, insert, update, delete, truncate, references, trigger"
    assert empty_database.query(f"{platform} and has_table_privilege('web_visitor', c.oid, %s)", verbs) == []
    # what is made later: a partition, and a grant that somebody made by hand
    empty_database.query("select packhorse.ensure_message_archive_partitions(20)")
    assert empty_database.query(GRANTED) == []
    connection.execute("grant select on packhorse.message_archive, packhorse.message_queue to web_visitor")
    connection.execute("grant update (payload) on packhorse.message_queue to web_visitor")
    assert len(empty_database.query(GRANTED)) == 3
    assert migrate.up(connection) == []
    assert empty_database.query(GRANTED) == []


def test_default_privileges_open_neither_the_record_nor_what_runs_as_the_owner(
    connection: DeadlineConnection, empty_database: Database
) -> None:
    """As on Supabase, where anybody on the internet is the role `anon`, which has all rights to whatever is
    new in `public`.
    """
    for role in ("web_visitor", "Web Visitor"):
        empty_database.query(
            f"""do $$ begin create role "{role}"; exception when duplicate_object then null; end $$"""
        )
        for kind in ("tables", "functions", "sequences"):
            connection.execute(
                f"""alter default privileges in schema public grant all on {kind} to "{role}" """
            )
    migrate.up(connection, sets=["platform"])
    open_functions = (
        "select p.proname from pg_proc p where p.prosecdef and has_function_privilege(%s, p.oid, 'execute')"
    )
    for role in ("web_visitor", "Web Visitor"):
        assert empty_database.query(open_functions, role) == []
        for right, granted in (
            ("select", False),
            ("insert", False),
            ("update", False),
            ("delete", False),
            ("truncate", False),
        ):
            assert (
                empty_database.value(
                    "select has_table_privilege(%s, 'packhorse.packhorse_migrations', %s)", role, right
                )
                is granted
            ), right
    assert empty_database.query(open_functions, "packhorse_worker") != []
    unpinned = "select proname from pg_proc p where p.prosecdef and not array_to_string(p.proconfig, ';') like '%%search_path=pg_catalog, pg_temp%%'"
    assert empty_database.query(unpinned) == [], "a temporary table of the caller would be found first"

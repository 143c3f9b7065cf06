"""`packhorse migrate --with platform`: an optional set that a database has or has not (SPEC O8, C)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packhorse.worker.db import migrate, migration_files, schema_version
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.db.names import Names
from packhorse.worker.errors import MigrationError, SchemaMismatch
from packhorse.worker.exits import EXIT_OK, EXIT_SCHEMA, EXIT_USAGE
from packhorse.worker.store import migrations
from tests.sql.parking import in_background
from tests.support.accounting import effects
from tests.support.cli import Cli
from tests.support.databases import migrators
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow

QUEUE = [migration.name for migration in migration_files.available()]
PLATFORM = [migration.name for migration in migration_files.available(sets=["platform"])][len(QUEUE) :]
NUMBERED = [name for name in PLATFORM if "/functions/" not in name]
FUNCTIONS = PLATFORM[len(NUMBERED) :]


@pytest.fixture
def connection(database: Database) -> Iterator[DeadlineConnection]:
    """To a database with the queue's schema only."""
    yield from migrators(database)


def names(database: Database) -> list[str]:
    return [
        row[0] for row in database.query('select name from packhorse_migrations order by name collate "C"')
    ]


@pytest.fixture
def with_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The next release: its platform has one more migration."""
    shutil.copytree(migration_files.directory(), tmp_path / "migrations")
    (tmp_path / "migrations/platform/0900_add_something.sql").write_text("create table something ();")
    (tmp_path / "migrations/platform/0900_add_something.down.sql").write_text("drop table something;")
    monkeypatch.setattr(migration_files, "directory", lambda: tmp_path / "migrations")
    return "platform/0900_add_something"


def test_the_names_bear_the_set_and_come_after_the_queue() -> None:
    assert all(name.startswith("platform/") for name in PLATFORM) and not any(
        "platform" in name for name in QUEUE
    )


def test_a_database_without_the_platform_fits_and_up_does_not_add_it(
    connection: DeadlineConnection, database: Database
) -> None:
    assert migrate.up(connection) == []
    schema_version.check(connection)
    assert names(database) == QUEUE


def test_the_platform_is_added_once_and_the_database_still_fits(
    connection: DeadlineConnection, database: Database
) -> None:
    assert migrate.up(connection, sets=["platform"]) == PLATFORM
    assert migrate.up(connection, sets=["platform"]) == [] == migrate.up(connection)
    schema_version.check(connection)
    assert names(database) == QUEUE + PLATFORM


def test_an_empty_database_gets_queue_and_platform_at_once_whoever_is_first(empty_database: Database) -> None:
    connections = [connect(empty_database.admin_url, deadline_seconds=60) for _ in range(2)]
    runs = [
        in_background(lambda c=connection: migrate.up(c, sets=["platform"])) for connection in connections
    ]
    assert sorted(name for run in runs for name in run.result(60)) == QUEUE + PLATFORM
    for connection in connections:
        schema_version.check(connection)
        connection.close()


def test_a_plain_up_keeps_the_platform_up_to_date(
    connection: DeadlineConnection, with_a_later_one: str, database: Database
) -> None:
    migrate.up(connection, sets=["platform"])
    database.query("delete from packhorse_migrations where name = %s", with_a_later_one)
    database.query("drop table something")
    with pytest.raises(
        SchemaMismatch, match=f"the database is older than this code: 1 migration.*{with_a_later_one}"
    ):
        schema_version.check(connection)
    assert migrate.up(connection) == [with_a_later_one]
    schema_version.check(connection)


def test_what_a_killed_migrator_left_half_done_does_not_fit_and_is_finished_by_a_plain_up(
    connection: DeadlineConnection, database: Database
) -> None:
    migrate.up(connection, sets=["platform"])
    for _ in NUMBERED[2:]:
        migrate.down(connection)
    with pytest.raises(SchemaMismatch, match=f"{len(PLATFORM) - 2} migration.*{PLATFORM[2]}"):
        schema_version.check(connection)
    assert migrate.up(connection) == PLATFORM[2:]


@pytest.mark.parametrize("unknown", ["platform/9999_rule_the_world", "elsewhere/0001_begin"])
def test_a_platform_that_is_newer_than_the_code_is_refused_and_named(
    connection: DeadlineConnection, database: Database, unknown: str
) -> None:
    migrate.up(connection, sets=["platform"])
    database.query(
        "insert into packhorse_migrations (name, checksum, release, objects) values (%s, 'x', '99.0.0', '{}')",
        unknown,
    )
    for call in (migrate.up, schema_version.check):
        with pytest.raises(
            SchemaMismatch, match=f"this code is older than the database, which has {unknown}"
        ):
            call(connection)
    if unknown.startswith("platform"):
        with pytest.raises(SchemaMismatch, match=unknown):
            migrate.down(connection)
    assert [row["state"] for row in migrations.status(connection) if row["name"] == unknown] == ["unknown"]


def test_a_changed_migration_of_the_platform_is_refused(
    connection: DeadlineConnection, database: Database
) -> None:
    migrate.up(connection, sets=["platform"])
    database.query("update packhorse_migrations set checksum = 'other' where name = %s", PLATFORM[1])
    with pytest.raises(SchemaMismatch, match=f"{PLATFORM[1]}.* differs"):
        schema_version.check(connection)
    with pytest.raises(MigrationError, match=f"{PLATFORM[1]} was changed"):
        migrate.up(connection)


def test_a_set_that_does_not_exist_is_refused(connection: DeadlineConnection, database: Database) -> None:
    with pytest.raises(MigrationError, match="'platfrom'; there is: platform"):
        migrate.up(connection, sets=["platfrom"])
    assert names(database) == QUEUE


def test_down_takes_the_platform_back_before_the_queue_and_leaves_nothing_of_it(
    connection: DeadlineConnection, database: Database
) -> None:
    objects = (
        "select 'table ' || relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'S') "
        "union all select 'function ' || oid::regprocedure || proacl::text from pg_proc where pronamespace = 'public'::regnamespace "
        "union all select 'type ' || typname from pg_type where typnamespace = 'public'::regnamespace order by 1"
    )
    before = database.query(objects)
    migrate.up(connection, sets=["platform"])
    assert [migrate.down(connection) for _ in NUMBERED] == NUMBERED[::-1]
    assert sorted(database.query(objects)) == sorted(before)
    schema_version.check(connection)
    assert migrate.up(connection, sets=["platform"]) == PLATFORM


def test_the_platform_can_live_in_another_schema(empty_database: Database) -> None:
    empty_database.query("create schema elsewhere")
    other = connect(empty_database.admin_url, names=Names(platform="elsewhere"), deadline_seconds=60)
    assert migrate.up(other, sets=["platform"]) == QUEUE + PLATFORM
    outside = connect(empty_database.admin_url)
    row = outside.execute(
        "select elsewhere.get_or_create_agent_session('250788000456', 'booking') is not null"
    ).fetchone()
    assert row == (True,) and empty_database.value("select to_regclass('public.companies')") is None
    assert outside.execute("select elsewhere.create_messages_partition('2040-02-10')").fetchone() == (
        "messages_2040_02",
    )
    assert empty_database.value("select to_regclass('elsewhere.messages_2040_02') is not null") is True
    other.close()
    outside.close()


def test_the_command_line_adds_the_platform_and_reports_it(tmp_path: Path, database: Database) -> None:
    cli = Cli(tmp_path, database.admin_url)
    refused = cli("migrate", "up", "--with", "platfrom", "--json")
    assert (
        refused.code == EXIT_USAGE
        and refused.error["field"] == "with"
        and "platform" in refused.error["hint"]
    )
    done = cli("migrate", "up", "--with", "platform")
    assert done.code == EXIT_OK and done.out.splitlines() == [f"applied {name}" for name in PLATFORM]
    assert cli("migrate", "check").code == EXIT_OK
    assert [(row["name"], row["state"]) for row in cli("migrate", "status", "--json").document] == [
        (name, "applied") for name in QUEUE + PLATFORM
    ]
    assert cli("migrate", "down", "--yes", "--json").document == {"taken_back": NUMBERED[-1]}
    assert cli("queue", "list").code == EXIT_SCHEMA
    assert cli("migrate", "up", "--json").document["applied"] == [NUMBERED[-1], *FUNCTIONS]
    assert cli("queue", "list").code == EXIT_OK


def test_the_sql_of_all_migrations_makes_the_same_by_other_means(empty_database: Database) -> None:
    with empty_database.connect(admin=True) as admin:
        admin.execute(migrate.script(Names(), ["platform"]).encode())
    connection = connect(empty_database.admin_url)
    schema_version.check(connection)
    assert names(empty_database) == QUEUE + PLATFORM
    connection.close()


def test_a_worker_starts_on_a_database_with_the_platform_and_carries_its_messages(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon]
) -> None:
    migrate_up = connect(database.admin_url, deadline_seconds=60)
    migrate.up(migrate_up, sets=["platform"])
    migrate_up.close()
    daemon = start_daemon(database, ledger).wait_ready()
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.stop() == 0


def test_the_wheel_is_told_to_carry_the_folder() -> None:
    root = Path(__file__).parents[3]
    assert (
        'packages = ["packhorse"]' in (root / "pyproject.toml").read_text()
        and (root / "packhorse/migrations/platform").is_dir()
    )

"""packhorse migrate: up, status, check, down on real databases, two at once, and against the wrong release
(SPEC O8).
"""

from __future__ import annotations

import json
import subprocess

import pytest

from packhorse.worker.db import migrate, migration_files
from packhorse.worker.db.connection import connect
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_SCHEMA, EXIT_USAGE
from tests.support.cli import COMMAND, Cli

pytestmark = pytest.mark.slow
NAMES = [migration.name for migration in migration_files.available()]
NUMBERED = [name for name in NAMES if not name.startswith("functions/")]


@pytest.fixture
def cli(tmp_path, any_empty_database):
    return Cli(tmp_path, any_empty_database.admin_url)


def test_up_applies_everything_once_and_status_and_check_agree(cli):
    assert cli("migrate", "check").code == EXIT_SCHEMA
    assert {row["state"] for row in cli("migrate", "status", "--json").document} == {"pending"}
    first = cli("migrate", "up")
    assert first.code == EXIT_OK and first.out.splitlines() == [f"applied {name}" for name in NAMES]
    assert cli("migrate", "up", "--json").document["applied"] == []
    assert [(row["name"], row["state"]) for row in cli("migrate", "status", "--json").document] == [
        (name, "applied") for name in NAMES
    ]
    assert cli("migrate", "check").code == EXIT_OK


def test_two_migrators_at_once_both_succeed_and_each_migration_is_applied_once(cli, any_empty_database):
    runs = [
        subprocess.Popen(
            [*COMMAND, "migrate", "up", "--json"],
            env=cli.environment,
            cwd=cli.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    applied = [name for run in runs for name in json.loads(run.communicate(timeout=60)[0])["applied"]]
    assert [run.returncode for run in runs] == [EXIT_OK] * 3
    assert sorted(applied) == NAMES
    assert any_empty_database.value("select count(*) from packhorse_migrations") == len(NAMES)


def test_a_database_that_is_newer_is_refused_and_says_which_side_is_older(cli, any_empty_database):
    assert cli("migrate", "up").code == EXIT_OK
    any_empty_database.query(
        "insert into packhorse_migrations (name, checksum, release, objects) values ('9999_from_the_future', 'x', '99.0.0', '{}')"
    )
    for command in (["migrate", "up"], ["migrate", "check"], ["queue", "list"]):
        ran = cli(*command, "--json")
        assert ran.code == EXIT_SCHEMA, command
        assert "this code is older" in ran.error["message"] and "9999_from_the_future" in ran.error["message"]
    (unknown,) = (row for row in cli("migrate", "status", "--json").document if row["state"] == "unknown")
    assert unknown["name"] == "9999_from_the_future" and unknown["applied_at"] is not None


def test_a_database_that_is_older_is_refused_and_says_what_to_run(cli, any_empty_database):
    assert cli("migrate", "up").code == EXIT_OK
    any_empty_database.query("delete from packhorse_migrations where name = %s", NAMES[-1])
    ran = cli("migrate", "check", "--json")
    assert ran.code == EXIT_SCHEMA and NAMES[-1] in ran.error["message"] and "migrate up" in ran.error["hint"]


def test_a_changed_migration_is_refused(cli, any_empty_database):
    assert cli("migrate", "up").code == EXIT_OK
    any_empty_database.query("update packhorse_migrations set checksum = 'other' where name = %s", NAMES[3])
    ran = cli("migrate", "up", "--json")
    assert ran.code == EXIT_FAILED and NAMES[3] in ran.error["message"]
    assert cli("migrate", "check").code == EXIT_SCHEMA
    assert cli("migrate", "status", "--json").document[3]["state"] == "changed"


def test_down_takes_nothing_from_under_migrations_that_it_does_not_know(cli, any_empty_database):
    cli("migrate", "up", "--with", "platform")
    any_empty_database.query(
        "insert into packhorse_migrations (name, checksum, release, objects) values ('9999_from_the_future', 'x', '99.0.0', '{}')"
    )
    before = any_empty_database.value("select count(*) from packhorse_migrations")
    ran = cli("migrate", "down", "--yes", "--json")
    assert ran.code == EXIT_SCHEMA and "9999_from_the_future" in ran.error["message"]
    assert any_empty_database.value("select count(*) from packhorse_migrations") == before


def test_down_names_what_would_be_gone(cli):
    cli("migrate", "up")
    ran = cli("migrate", "down", "--json")
    assert (
        ran.code == EXIT_USAGE
        and f"Take back {NUMBERED[-1]}, with its tables and their data?" in ran.error["hint"]
    )


def test_down_wants_a_yes_and_takes_back_one_at_a_time_to_an_empty_database_and_up_again(
    cli, any_empty_database
):
    assert cli("migrate", "up").code == EXIT_OK
    assert cli("migrate", "down").code == EXIT_USAGE
    assert cli("migrate", "down", "--yes", "--json").document == {"taken_back": NUMBERED[-1]}
    assert cli("migrate", "check").code == EXIT_SCHEMA
    connection = connect(any_empty_database.admin_url)
    try:
        assert [migrate.down(connection) for _ in NUMBERED] == [*NUMBERED[-2::-1], None]
    finally:
        connection.close()
    assert cli("migrate", "down", "--yes").out == "nothing is applied\n"
    left = "select count(*) from pg_class where relnamespace = 'packhorse'::regnamespace and relname <> 'packhorse_migrations' and relkind in ('r', 'p', 'v')"
    assert any_empty_database.value(left) == 0
    assert cli("migrate", "up", "--json").document["applied"] == NAMES


def test_the_sql_of_all_migrations_makes_the_same_schema_by_other_means(cli, any_empty_database, tmp_path):
    script = Cli(tmp_path)("migrate", "up", "--sql")  # needs no database
    assert script.code == EXIT_OK
    with any_empty_database.connect(admin=True) as connection:
        connection.execute(script.out.encode())
    assert cli("migrate", "check").code == EXIT_OK
    assert cli("migrate", "up", "--json").document["applied"] == []


def test_a_schema_of_its_own_is_made_and_used(cli, any_empty_database):
    cli.environment["PACKHORSE_DB_SCHEMA"] = "carrier"
    assert cli("migrate", "up").code == EXIT_OK
    assert (
        any_empty_database.value(
            "select to_regclass('carrier.message_queue') is not null and to_regclass('public.message_queue') is null"
        )
        is True
    )
    assert cli("enqueue", "effect", "--allow-unknown-type").code == EXIT_OK
    assert cli("queue", "list", "--json").document[0]["pending"] == 1


def test_a_role_that_may_not_create_is_told_so(cli, any_empty_database, tmp_path):
    any_empty_database.query(
        "do $$ begin create role packhorse_nobody login; exception when duplicate_object then null; end $$"
    )
    ran = Cli(tmp_path, any_empty_database.server.url(any_empty_database.name, "packhorse_nobody"))(
        "migrate", "up", "--json"
    )
    assert ran.code == EXIT_FAILED and "permission denied" in ran.error["message"]


def test_a_role_that_may_not_create_is_told_that_there_is_nothing_to_do(cli, any_empty_database, tmp_path):
    """An application runs `migrate up` at its start, as whoever it is."""
    assert cli("migrate", "up").code == EXIT_OK
    ran = Cli(tmp_path, any_empty_database.url)("migrate", "up")
    assert (ran.code, ran.out.strip()) == (EXIT_OK, "up to date")

"""packhorse migrate adopt as an operator runs it: looked at first, asked for, killed in the middle, repeated (SPEC O8, P1)."""

from __future__ import annotations

import os
import signal

import pytest

from packhorse.worker.db import migrate
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.support import old_queue
from tests.support.cli import Cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
NAMES = [migration.name for migration in migrate.available()]


@pytest.fixture
def old(any_empty_database):
    old_queue.make(any_empty_database)
    return any_empty_database


@pytest.fixture
def cli(tmp_path, old):
    return Cli(tmp_path, old.admin_url)


def test_migrate_up_on_a_foreign_table_says_what_to_run_and_changes_nothing(cli, old):
    ran = cli("migrate", "up", "--json")
    assert ran.code == EXIT_FAILED and "message_queue" in ran.error["message"] and "migrate adopt --dry-run" in ran.error["hint"]
    assert old.value("select to_regclass('packhorse_migrations') is null and to_regclass('queues') is null and to_regtype('message_key') is null")


def test_the_queue_of_another_system_is_adopted_with_the_platform(cli, old):
    old_queue.fill(old, 20)
    done = cli("migrate", "adopt", "--with", "platform", "--yes")
    assert done.code == EXIT_OK, done.err
    assert old.value("select count(*) from packhorse_migrations where name like 'platform/%%'") > 0


def test_a_dry_run_tells_people_and_scripts_and_the_command_asks_first(cli, old):
    old_queue.fill(old, 20)
    told = cli("migrate", "adopt", "--dry-run")
    assert told.code == EXIT_OK and told.err == ""
    for part in ("Another system has our names", "open_messages", "all_messages", "dead letter", "scheduled_at, next_retry_at", "queue_name"):
        assert part in told.out, part
    document = cli("migrate", "adopt", "--dry-run", "--json").document
    assert document["case"] == "move" and document["possible"] is True and document["apply"] == NAMES
    assert sum(row["rows"] for row in document["rows"]) == 20
    asked = cli("migrate", "adopt")
    assert asked.code == EXIT_USAGE and "--yes" in asked.err
    assert old.value("select to_regclass('packhorse_migrations') is null") is True
    done = cli("migrate", "adopt", "--yes")
    assert done.code == EXIT_OK
    assert "imported: 20 rows = 12 messages + 4 dead letters + 0 that could not be read (dead letters, too) + 4 finished" in done.out
    assert "way back: alter table" in done.out
    assert cli("migrate", "check").code == EXIT_OK
    assert {row["status"] for row in cli("doctor", "--json").document["findings"] if row["subject"] in ("migrations", "schema")} == {"ok"}
    assert cli("queue", "list", "--json").document[0]["pending"] + cli("queue", "list", "--json").document[-1]["pending"] == 12


def test_a_refusal_has_every_reason_and_changes_nothing(cli, old):
    old.query("insert into message_queue (queue_name, job_type, payload, status) values ('My Queue', 'a', '{}', 'processing')")
    ran = cli("migrate", "adopt", "--yes", "--json")
    assert ran.code == EXIT_FAILED and len(ran.error.get("problems", [])) == 2
    assert cli("migrate", "adopt", "--dry-run").code == EXIT_FAILED
    assert old.value("select to_regnamespace('packhorse_legacy') is null") is True
    done = cli("migrate", "adopt", "--yes", "--json", "--value", "status:processing=pending", "--value", "queue:My Queue=mine").document
    assert done["account"]["messages"] == 1 and old.value("select queue from message_queue") == "mine"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--with", "everything"], "with"),
        (["--map", "payload"], "map"),
        (["--set", "=x"], "set"),
        (["--value", "status:x"], "value"),
        (["--legacy-schema", "A;drop"], "legacy-schema"),
        (["--legacy-schema", "public"], "legacy-schema"),
        (["--legacy-schema", "information_schema"], "legacy-schema"),
    ],
)
def test_bad_options_are_named(cli, arguments, field):
    ran = cli("migrate", "adopt", "--dry-run", "--json", *arguments)
    assert ran.code == EXIT_USAGE and ran.error["field"] == field


def test_a_lost_record_is_found_by_a_dry_run_and_written(cli, old):
    old.query("drop view open_messages; drop table receipts, message_queue, processed_messages cascade; drop function cleanup_old_messages()")
    assert cli("migrate", "up").code == EXIT_OK
    assert cli("migrate", "adopt", "--json").document == {
        "recorded": [],
        "applied": [],
        "moved": [],
        "to": "packhorse_legacy",
        "account": None,
        "way_back": [],
    }
    old.query("drop table packhorse_migrations")
    told = cli("migrate", "adopt", "--dry-run")
    assert told.code == EXIT_OK and "its record would be completed" in told.out and NAMES[0] in told.out
    assert cli("migrate", "adopt", "--json").document["recorded"] == NAMES
    assert cli("migrate", "check").code == EXIT_OK


def test_killed_again_and_again_in_the_middle_each_row_is_imported_exactly_once(cli, old, tmp_path):
    """SIGKILL between and inside batches, until one of the importers comes to the end."""
    old_queue.fill(old, 3000)
    kills, seen = 0, 0
    while True:
        process = cli.start("migrate", "adopt", "--yes", "--batch", "20", output=tmp_path / "out")

        def progressed(process=process, seen=seen) -> bool:
            made = "select to_regclass('public.dead_letters') is not null and to_regclass('packhorse_legacy.packhorse_import') is not null"
            return process.poll() is not None or bool(
                old.value(made) and old.value("select count(*) from packhorse_legacy.packhorse_import where outcome is not null") > seen + 300
            )

        wait_until(progressed, timeout_seconds=60)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        seen = old.value("select count(*) from packhorse_legacy.packhorse_import where outcome is not null")
    assert kills >= 3 and process.returncode == EXIT_OK, (tmp_path / "out").read_text()
    imported = sorted(
        row[0]
        for row in old.query("select (payload ->> 'n')::integer from message_queue union all select (payload ->> 'n')::integer from dead_letters")
    )
    assert imported == [n for n in range(3000) if n % 10 < 8]
    assert old.query("select name from queues where paused_at is not null") == []


def test_what_was_imported_is_worked_off_by_a_daemon(cli, old, tmp_path, ledger, start_daemon):
    old.query(
        "insert into message_queue (queue_name, job_type, payload, conversation_id) "
        "select 'default', 'effect', jsonb_build_object('key', n::text), 'c' || n % 3 from generate_series(1, 30) n"
    )
    assert cli("migrate", "adopt", "--yes").code == EXIT_OK
    old.query("do $$ begin create role packhorse_test_worker login in role packhorse_worker; exception when duplicate_object then null; end $$")
    start_daemon(old.server.url(old.name, "packhorse_test_worker"), ledger)
    wait_until(lambda: old.value("select count(*) from message_archive where state = 'done'") == 30, timeout_seconds=60)
    assert set(ledger.counts("effect").values()) == {1}
    for conversation in range(3):
        keys = [int(line[1]) for line in ledger.lines("effect") if int(line[1]) % 3 == conversation]
        assert keys == sorted(keys) and len(keys) == 10

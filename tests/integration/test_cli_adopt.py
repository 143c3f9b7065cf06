"""packhorse migrate adopt as an operator runs it: looked at first, asked for, killed in the middle, repeated
(SPEC O8, P1).
"""

from __future__ import annotations

import os
import signal

import pytest

from packhorse.worker.db import migration_files
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.sql.platform.test_adopt_tables import theirs
from tests.support import old_queue
from tests.support.cli import Cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
NAMES = [migration.name for migration in migration_files.available()]
UNTOUCHED = "select count(*), md5(string_agg(t.ctid::text || t.xmin::text || t::text, '|' order by t.ctid)) from public.message_queue t"


@pytest.fixture
def old(any_empty_database):
    old_queue.make(any_empty_database)
    return any_empty_database


@pytest.fixture
def cli(tmp_path, old):
    return Cli(tmp_path, old.admin_url)


def test_migrate_up_beside_a_foreign_queue_leaves_it_alone_and_adopt_imports_it_later(cli, old):
    old_queue.fill(old, 20)
    before = old.query(UNTOUCHED)
    assert cli("migrate", "up").code == EXIT_OK
    assert old.value("select count(*) from packhorse.message_queue") == 0
    done = cli("migrate", "adopt", "--yes", "--json")
    assert (
        done.code == EXIT_OK and done.document["applied"] == [] and done.document["account"]["messages"] == 12
    )
    assert old.query(UNTOUCHED) == before


def test_the_queue_of_another_system_is_adopted_with_the_platform(cli, old):
    old_queue.fill(old, 20)
    done = cli("migrate", "adopt", "--with", "platform", "--yes")
    assert done.code == EXIT_OK, done.err
    assert old.value("select count(*) from packhorse.packhorse_migrations where name like 'platform/%'") > 0
    assert old.value("select count(*) from packhorse.message_queue") == 12
    assert "adopted without" not in done.out, "no table of the platform stood there"


@pytest.mark.parametrize("command", [("adopt", "--yes"), ("up",)])
def test_who_adopts_tables_of_the_platform_hears_what_they_lack_and_how_to_add_it(cli, old, command):
    old_queue.fill(old, 1)
    old.query(theirs("companies"))
    old.query(theirs("clients"))
    document = cli("migrate", *command, "--with", "platform", "--json").document
    told = {row["text"].split()[0]: row for row in document["lacking"]}
    assert set(told) == {"clients", "companies"}
    assert "clients_company_id_fkey" in told["clients"]["text"]
    for row in told.values():
        for statement in row["repair"].split(";"):
            if statement.strip():
                old.query(statement)
    again = cli("migrate", *command, "--with", "platform", "--json").document
    assert again["lacking"] == [], "said once, by the run that adopts"


def test_people_read_what_adopted_tables_lack_as_sentences(cli, old):
    old.query(theirs("clients"))
    old.query(theirs("companies"))
    told = cli("migrate", "up", "--with", "platform").out
    assert "clients was adopted without clients_company_id_fkey" in told
    assert "  -> alter table clients add constraint clients_company_id_fkey FOREIGN KEY" in told


def test_a_dry_run_tells_people_and_scripts_and_the_command_asks_first(cli, old):
    old_queue.fill(old, 20)
    before = old.query(UNTOUCHED)
    told = cli("migrate", "adopt", "--dry-run")
    assert told.code == EXIT_OK and told.err == ""
    for part in (
        "public.message_queue: its rows would be imported, and stay where they are",
        "dead letter",
        "nothing; it stays in the old table",
        "scheduled_at, next_retry_at",
        "queue_name",
    ):
        assert part in told.out, part
    document = cli("migrate", "adopt", "--dry-run", "--json").document
    assert set(document) == {"from", "possible", "begun", "rows", "fields", "problems"}
    assert (document["from"], document["possible"], document["begun"], document["problems"]) == (
        "public.message_queue",
        True,
        False,
        [],
    )
    assert sum(row["rows"] for row in document["rows"]) == 20
    asked = cli("migrate", "adopt")
    assert asked.code == EXIT_USAGE and "--yes" in asked.err
    assert old.value("select to_regnamespace('packhorse') is null") is True
    done = cli("migrate", "adopt", "--yes")
    assert done.code == EXIT_OK
    assert f"applied {NAMES[0]}" in done.out
    assert (
        "imported: 20 rows = 12 messages + 4 dead letters + 0 that could not be read (dead letters, too) + 4 finished\n"
        in done.out
    )
    assert old.query(UNTOUCHED) == before
    assert cli("migrate", "check").code == EXIT_OK
    assert {
        row["status"]
        for row in cli("doctor", "--json").document["findings"]
        if row["subject"] in ("migrations", "schema")
    } == {"ok"}
    assert sum(queue["pending"] for queue in cli("queue", "list", "--json").document) == 12


def test_the_command_can_be_repeated_without_being_asked_for_again(cli, old):
    old_queue.fill(old, 10)
    first = cli("migrate", "adopt", "--yes", "--json", "--set", "priority=2").document
    assert (first["applied"], first["account"]["messages"]) == (NAMES, 6)
    old.query("insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', '{}')")
    assert "an import goes on" in cli("migrate", "adopt", "--dry-run").out
    again = cli("migrate", "adopt", "--json").document
    assert again == {"applied": [], "account": {**first["account"], "rows": 11, "messages": 7}, "lacking": []}
    assert old.query("select distinct priority from packhorse.message_queue") == [(2,)]


def test_another_table_is_named_by_its_schema_and_name(cli, old):
    old.query(
        'create schema "My Shop"; create table "My Shop"."Jobs" (id bigserial primary key, task text, kwargs jsonb, "State" text)'
    )
    old.query(
        """insert into "My Shop"."Jobs" (task, kwargs, "State") values ('a', '{}', 'pending'), ('b', '{}', 'done')"""
    )
    ran = cli("migrate", "adopt", "--from", "My Shop.Jobs", "--map", "status=State", "--yes", "--json")
    assert ran.code == EXIT_OK and (
        ran.document["account"]["messages"],
        ran.document["account"]["finished"],
    ) == (1, 1)
    assert old.value("select message_type from packhorse.message_queue") == "a"
    ran = cli("migrate", "adopt", "--yes", "--json")
    assert ran.code == EXIT_FAILED and ran.error["problems"] == [
        "from: an import of My Shop.Jobs has begun here. Say --from My Shop.Jobs"
    ]


def test_a_table_without_a_schema_is_one_of_public(cli, old):
    old.query("alter table message_queue rename to jobs")
    assert cli("migrate", "adopt", "--from", "jobs", "--dry-run", "--json").document["from"] == "public.jobs"
    missing = cli("migrate", "adopt", "--yes", "--json")
    assert (
        missing.code == EXIT_FAILED
        and "there is no table public.message_queue. Say --from SCHEMA.TABLE" in missing.error["problems"][0]
    )


def test_the_schema_of_the_setting_is_the_one_that_gets_the_rows(cli, old):
    old_queue.fill(old, 10)
    assert cli("migrate", "adopt", "--yes", PACKHORSE_DB_SCHEMA="My carrier").code == EXIT_OK
    assert old.value('select count(*) from "My carrier".message_queue') == 6
    assert old.value("select to_regnamespace('packhorse') is null") is True


def test_a_refusal_has_every_reason_and_changes_nothing(cli, old):
    old.query(
        "insert into message_queue (queue_name, job_type, payload, status) values ('My Queue', 'a', '{}', 'processing')"
    )
    ran = cli("migrate", "adopt", "--yes", "--json")
    assert ran.code == EXIT_FAILED and len(ran.error.get("problems", [])) == 2
    assert all("--value '" in problem for problem in ran.error["problems"])
    assert cli("migrate", "adopt", "--dry-run").code == EXIT_FAILED
    assert old.value("select to_regnamespace('packhorse') is null") is True
    done = cli(
        "migrate",
        "adopt",
        "--yes",
        "--json",
        "--value",
        "status:processing=pending",
        "--value",
        "queue:My Queue=mine",
    ).document
    assert (
        done["account"]["messages"] == 1 and old.value("select queue from packhorse.message_queue") == "mine"
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--with", "everything"], "with"),
        (["--map", "payload"], "map"),
        (["--set", "=x"], "set"),
        (["--value", "status:x"], "value"),
        (["--from", "public."], "from"),
        (["--from", ".jobs"], "from"),
        (["--from", ""], "from"),
    ],
)
def test_bad_options_are_named(cli, arguments, field):
    ran = cli("migrate", "adopt", "--dry-run", "--json", *arguments)
    assert ran.code == EXIT_USAGE and ran.error["field"] == field


def test_killed_again_and_again_in_the_middle_each_row_is_imported_exactly_once(cli, old, tmp_path):
    """SIGKILL between and inside batches, until one of the importers comes to the end."""
    old_queue.fill(old, 3000)
    before = old.query(UNTOUCHED)
    ledger = "select count(*) from packhorse.packhorse_import where outcome is not null"
    kills, seen = 0, 0
    while True:
        process = cli.start("migrate", "adopt", "--yes", "--batch", "20", output=tmp_path / "out")

        def progressed(process=process, seen=seen) -> bool:
            made = "select to_regclass('packhorse.packhorse_import') is not null"
            return process.poll() is not None or bool(old.value(made) and old.value(ledger) > seen + 300)

        wait_until(progressed, timeout_seconds=60)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        seen = old.value(ledger)
    assert kills >= 3 and process.returncode == EXIT_OK, (tmp_path / "out").read_text()
    imported = sorted(
        row[0]
        for row in old.query(
            "select (payload ->> 'n')::integer from packhorse.message_queue union all select (payload ->> 'n')::integer from packhorse.dead_letters"
        )
    )
    assert imported == [n for n in range(3000) if n % 10 < 8]
    assert old.query("select name from packhorse.queues where paused_at is not null") == []
    assert old.query(UNTOUCHED) == before


def test_what_was_imported_is_worked_off_by_a_daemon(cli, old, tmp_path, ledger, start_daemon):
    old.query(
        "insert into message_queue (queue_name, job_type, payload, conversation_id) "
        "select 'default', 'effect', jsonb_build_object('key', n::text), 'c' || n % 3 from generate_series(1, 30) n"
    )
    before = old.query(UNTOUCHED)
    assert cli("migrate", "adopt", "--yes").code == EXIT_OK
    old.query(
        "do $$ begin create role packhorse_test_worker login in role packhorse_worker; exception when duplicate_object then null; end $$"
    )
    start_daemon(old.server.url(old.name, "packhorse_test_worker"), ledger)
    wait_until(
        lambda: old.value("select count(*) from packhorse.message_archive where state = 'done'") == 30,
        timeout_seconds=60,
    )
    assert set(ledger.counts("effect").values()) == {1}
    for conversation in range(3):
        keys = [int(line[1]) for line in ledger.lines("effect") if int(line[1]) % 3 == conversation]
        assert keys == sorted(keys) and len(keys) == 10
    assert old.query(UNTOUCHED) == before

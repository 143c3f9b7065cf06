"""packhorse backfill: the page's own backfill as it stands, every command, by hand and by workers (SPEC M8,
O5).
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.cli import Cli
from tests.support.pages import Page
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(tmp_path, database):
    """The owner's command line in a folder with the application of docs/backfills.md; app.users has 3000
    rows.
    """
    assert Page("backfills.md").write(tmp_path) == ["app/backfills.py"]
    database.query("create schema app")
    database.query("create table app.users (id bigint primary key, email text not null)")
    database.query(
        "insert into app.users select n, 'User' || n || '@Example.org' from generate_series(1, 3000) n"
    )
    yield Cli(tmp_path, database.admin_url, USER="ada", LOGNAME="ada", PACKHORSE_ACTORS="app.backfills")
    database.query("drop schema app cascade")


def capitals(database):
    return database.value("select count(*) from app.users where email <> lower(email)")


def test_the_page_works_as_it_stands(cli, database):
    page = Page("backfills.md")
    code = page.block("@packhorse.backfill")
    assert len([line for line in code.splitlines()[1:] if line.strip()]) <= 20
    for words in ("check", "dry-run", "run", "show"):
        line = page.line(f"packhorse backfill {words} lower_emails")
        ran = cli(*line.split()[1:])
        assert ran.code == 0, ran.err
        assert capitals(database) == (3000 if words in ("check", "dry-run") else 0)
    assert "verified" in ran.out and "3000" in ran.out


def test_a_backfill_is_listed_run_and_shown_with_its_record(cli, database):
    before = {row["name"]: row for row in cli("backfill", "list", "--json").document}
    assert (before["lower_emails"]["state"], before["lower_emails"]["title"]) == (
        "new",
        "Addresses in small letters.",
    )
    found = cli("backfill", "dry-run", "lower_emails", "--json").document
    assert (found["rows"], found["first_batch"], found["would_copy"]) == (3000, 1000, 1000) and capitals(
        database
    ) == 3000
    ran = cli("backfill", "run", "lower_emails", "--json", "--reason", "one spelling").document
    assert (ran["state"], ran["rows"], [finding["level"] for finding in ran["findings"]]) == (
        "succeeded",
        3000,
        ["ok"],
    )
    shown = cli("backfill", "show", "lower_emails", "--json").document
    assert (
        shown["state"],
        shown["rows_copied"],
        shown["done_ratio"],
        shown["requested_by"],
        shown["ledger"],
    ) == ("verified", 3000, 1, "ada", [])
    assert database.query("select action, operator, reason from operator_actions") == [
        ("run_backfill", "ada", "one spelling")
    ]
    assert "lower_emails" in cli("backfill", "list").out


def test_a_failed_comparison_is_exit_1(cli, database):
    cli("backfill", "run", "lower_emails")
    database.query("update app.users set email = 'A@B' where id = 1")
    ran = cli("backfill", "verify", "lower_emails", "--json")
    assert ran.code == 1 and ran.document["findings"][0]["level"] == "refused"
    assert cli("backfill", "show", "lower_emails", "--json").document["state"] == "copied"


def test_pause_resume_and_cancel(cli, database):
    cli("backfill", "run", "lower_emails")
    assert cli("backfill", "pause", "lower_emails", "--json", "--reason", "lunch").document == {
        "backfill": "lower_emails",
        "answer": "paused",
    }
    refused = cli("backfill", "run", "lower_emails", "--json")
    assert refused.code == 2 and "is paused" in refused.error["message"] and "resume" in refused.error["hint"]
    assert cli("backfill", "resume", "lower_emails", "--json").document["answer"] == "resumed"
    assert "nothing to do" in cli("backfill", "cancel", "lower_emails").out
    assert database.query("select action, reason from operator_actions where action like '%%pause%%'") == [
        ("pause_backfill", "lunch")
    ]


@pytest.mark.parametrize(
    "command", ["show", "check", "dry-run", "run", "start", "pause", "resume", "cancel", "verify", "rollback"]
)
def test_an_unknown_backfill_is_refused_with_a_near_miss(cli, command):
    cli("backfill", "run", "lower_emails")
    ran = cli("backfill", command, "lower_email", "--json", *(["--yes"] if command == "rollback" else []))
    assert ran.code in (1, 2) and ran.error["field"] == "name" and "lower_emails" in ran.error["hint"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("finish", "lower_emails"), "yes"),
        (("finish", "lower_emails", "--yes"), "name"),
        (("rollback", "lower_emails", "--yes"), "name"),
        (("verify", "lower_emails"), "name"),
        (("run", "lower_emails", "--set", "source"), "set"),
        (("run", "lower_emails", "--set", "source=app.other"), "settings"),
    ],
)
def test_what_cannot_be_done_yet_is_refused_by_name(cli, arguments, field):
    ran = cli("backfill", *arguments, "--json")
    assert ran.code == 2 and ran.error["field"] == field, ran.err


def test_a_worker_carries_it_to_the_end(cli, database, tmp_path):
    """Through the maintenance queue; the message ends when the backfill does."""
    started = cli("backfill", "start", "lower_emails", "--json", "--reason", "by night").document
    assert (
        cli("backfill", "start", "lower_emails", "--json").document["message_id"] == started["message_id"]
    ), "one message carries it"
    process = cli.start("scheduler", output=tmp_path / "log")
    try:
        wait_until(
            lambda: database.value("select state from backfill_progress") == "verified",
            60,
            (tmp_path / "log").read_text()[-2000:],
        )
        wait_until(
            lambda: (
                database.value(
                    "select count(*) from message_queue where queue = 'packhorse' and payload->>'task' = 'backfill.lower_emails'"
                )
                == 0
            )
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert capitals(database) == 0
    assert database.query(
        "select state, message_id from maintenance_runs where task = 'backfill.lower_emails'"
    ) == [("succeeded", started["message_id"])]


def test_pausing_stops_the_workers_and_resuming_starts_them_again(cli, database):
    first = cli("backfill", "start", "lower_emails", "--json").document["message_id"]
    cli("backfill", "pause", "lower_emails")
    database.query("delete from message_queue where id = %s", first)
    assert cli("backfill", "resume", "lower_emails", "--json").document["answer"] == "enqueued"
    assert (
        database.value("select count(*) from message_queue where payload->>'task' = 'backfill.lower_emails'")
        == 1
    )


def test_a_proposed_drop_by_the_command_line_says_how_many_rows_go(server, tmp_path):
    """The guard as an operator meets it: each refusal is one line with all reasons; the second confirmation
    is a number.
    """
    database = server.create_database()
    try:
        cli = Cli(tmp_path, database.admin_url, USER="ada", LOGNAME="ada")
        assert cli("migrate", "up", "--with", "platform").code == 0
        database.query(
            "create table reviews (id int primary key, created_at timestamptz default now() - interval '9 days')"
        )
        database.query("insert into reviews values (1), (2)")
        database.query(
            "select pg_stat_force_next_flush()"
        )  # its session lives on, and would count them later
        asked = cli("backfill", "finish", "reviews", "--json")
        assert asked.error["field"] == "yes" and "pg_dump --table=reviews" in asked.error["hint"]
        kept = cli("backfill", "finish", "agent_sessions", "--json")
        assert kept.error["field"] == "yes" and "pg_dump" not in kept.error["hint"], (
            "its way back makes it again"
        )
        assert (
            cli("backfill", "check", "reviews").code == 0 and cli("backfill", "verify", "reviews").code == 0
        )
        refused = cli("backfill", "finish", "reviews", "--yes", "--json")
        assert refused.code == 1 and "have not moved for 0.0 h" in refused.error["message"]
        database.query("update backfills set quiet_since = now() - interval '49 hours'")
        refused = cli("backfill", "finish", "reviews", "--yes", "--json")
        assert refused.code == 2 and refused.error["field"] == "rows" and "--rows 2" in refused.error["hint"]
        done = cli("backfill", "finish", "reviews", "--yes", "--rows", "2", "--reason", "replaced", "--json")
        assert (
            done.document == {"backfill": "reviews", "state": "finished"}
            and database.value("select to_regclass('reviews')") is None
        )
        assert database.query(
            "select operator, reason from operator_actions where action = 'finish_backfill'"
        ) == [("ada", "replaced")]
    finally:
        database.drop()

"""What the command line prints, and where it cannot: narrow terminals, full disks, closed descriptors, one
mark at the end of a sentence.
"""

from __future__ import annotations

import json
import signal
import subprocess

import psycopg
import pytest

from packhorse.worker.cli.errors import ErrorReport, report
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from tests.support.cli import COMMAND, Cli
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def on_a_terminal(cli: Cli, columns: int, *arguments: str) -> str:
    """What a command prints on a terminal of this width, without its bold type."""
    with Terminal(cli, *arguments, columns=columns) as terminal:
        assert terminal.ends() == (EXIT_OK, ""), terminal.text
        return terminal.plain


@pytest.fixture
def dead(database):
    """A database with a dead letter; its fingerprint."""
    database.query(
        "select enqueue_message('default', 'reply', '{}', p_conversation_key => 'wa:250788000456')"
    )
    database.query(
        "select bury_message(id, lease_token, 'failed', 'ValueError', 'no') from claim_messages(gen_random_uuid(), array['default'], 1, '1 minute')"
    )
    return database.query("select fingerprint from dead_letters")[0][0]


def test_a_narrow_terminal_shows_rows_as_fields_so_that_a_fingerprint_can_be_copied(tmp_path, database, dead):
    cli = Cli(tmp_path, database.url)
    narrow, wide = (on_a_terminal(cli, columns, "dead-letter", "groups") for columns in (80, 200))
    assert f"fingerprint    {dead}" in narrow and "count          1" in narrow, narrow
    assert len(wide.splitlines()) == 2 and dead in wide, wide


def test_a_table_whose_sentences_can_be_folded_stays_a_table(tmp_path, database):
    shown = on_a_terminal(Cli(tmp_path, database.url), 80, "health")
    assert shown.splitlines()[0].split() == ["check", "name", "status", "summary"], shown


@pytest.mark.parametrize("redirection", ["> /dev/full", "--json > /dev/full"])
def test_a_full_disk_is_one_line_and_no_bug_of_ours(tmp_path, redirection):
    ran = through_a_shell(Cli(tmp_path), f"config show {redirection}")
    assert (
        ran.returncode == EXIT_FAILED
        and "the output cannot be written: No space left on device" in ran.stderr
    )
    assert "internal" not in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


def test_closed_descriptors_are_no_error(tmp_path):
    assert through_a_shell(Cli(tmp_path), "config check >&-").returncode == EXIT_OK
    assert through_a_shell(Cli(tmp_path), "frobnicate >&- 2>&-").returncode == EXIT_USAGE


@pytest.mark.parametrize(
    ("text", "hint", "line"),
    [
        ("No such command 'x'.", "See: packhorse --help", "No such command 'x'. See: packhorse --help."),
        ("Is the server running?", "Is it up?", "Is the server running? Is it up?"),
        ("it is gone", None, "it is gone"),
        ("it is gone", "Look.", "it is gone. Look."),
    ],
)
def test_text_and_hint_end_with_one_mark_each(capsys, text, hint, line):
    report(ErrorReport("failed", text, EXIT_FAILED, hint=hint), as_json=False)
    assert capsys.readouterr().err == f"packhorse: {line}\n"


def through_a_shell(cli: Cli, line: str) -> subprocess.CompletedProcess[str]:
    """A command line with redirections. No traceback may ever be shown."""
    ran = subprocess.run(
        ["sh", "-c", f"{' '.join(COMMAND)} {line}"],
        cwd=cli.folder,
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr, ran.stderr
    return ran


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_sees_what_it_can(tmp_path, database, encoding):
    number = database.value(
        """select message_id from enqueue_message('default', 'reply', '{"text": "Muraho 😀"}')"""
    )
    cli = Cli(tmp_path, database.url, PYTHONIOENCODING=encoding)
    assert "Muraho \\U0001f600" in cli("message", "show", number).out
    assert cli("message", "show", number, "--json").document["payload"] == {"text": "Muraho 😀"}
    assert cli("dead-letter", "show", "😀").err.isascii()


def test_bytes_that_are_no_text_are_named(tmp_path, database):
    ran = through_a_shell(
        Cli(tmp_path, database.url), "message cancel 1 --reason \"$(printf 'a\\377')\" --json"
    )
    assert ran.returncode == EXIT_USAGE
    assert json.loads(ran.stderr)["error"]["message"] == "arguments: 'a\\udcff' is not text in this locale"


def test_an_error_of_a_run_is_one_document_on_stderr(tmp_path, database):
    ran = Cli(tmp_path, database.url)("partitions", "make", "messages", "--json")
    assert ran.code == EXIT_USAGE and ran.error["field"] == "table", (
        "the line of the log that daemons write is not beside it"
    )


def test_a_refused_connection_is_one_sentence_and_one_hint(tmp_path):
    ran = Cli(tmp_path, "postgresql://me@127.0.0.1:1/app")("queue", "list")
    assert (
        ran.code == EXIT_UNAVAILABLE and ran.err.count("Is the server") == 1 and "refused. Is" in ran.err
    ), ran.err


def test_ctrl_c_is_said(tmp_path, database):
    cli = Cli(tmp_path, database.url)
    with psycopg.connect(database.url) as other:
        other.execute("select from packhorse.queues where name = 'default' for update")
        process = subprocess.Popen(
            [*COMMAND, "queue", "pause", "default", "--json"],
            cwd=tmp_path,
            env=cli.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        wait_until(lambda: database.value(waits) == 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_FAILED and json.loads(err)["error"]["code"] == "interrupted", err

"""The command line as a whole: help, version, errors and exit codes that hold for every command (SPEC O5)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_SCHEMA, EXIT_UNAVAILABLE, EXIT_USAGE
from packhorse.worker.version import __version__
from tests.support import prepared
from tests.support.cli import Cli

pytestmark = pytest.mark.slow

READING = [
    ["queue", "list"],
    ["queue", "show", "default"],
    ["message", "list"],
    ["dead-letter", "groups"],
    ["dead-letter", "list"],
    ["workers"],
    ["stats"],
    ["conversations"],
    ["migrate", "status"],
    ["migrate", "check"],
    ["config", "show"],
    ["config", "check"],
]


@pytest.fixture
def cli(tmp_path, database):
    return Cli(tmp_path, database.url)


def test_version_is_printed(tmp_path):
    assert Cli(tmp_path)("--version").out.strip() == f"packhorse {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["queue"], ["nonsense"], ["config", "show"], ["queue", "list", "--json"]],
    ids=" ".join,
)
def test_a_command_of_a_prepared_python_does_what_a_fresh_one_does(tmp_path, arguments):
    """tests/support/prepared.py, by which the other tests run commands. TZ is what it does not know: such a
    command is started anew.
    """
    (tmp_path / "packhorse.toml").write_text("threads = 3\n")  # found in the folder of the command
    cli = Cli(tmp_path)
    assert prepared.knows(cli.environment) and not prepared.knows({**cli.environment, "TZ": "UTC"})
    assert cli(*arguments) == cli(*arguments, TZ="UTC")


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_usage(tmp_path):
    for arguments in ([], ["queue"]):
        ran = Cli(tmp_path)(*arguments)
        assert ran.code == EXIT_USAGE and "Usage:" in ran.out + ran.err


def test_completion_script_is_offered(tmp_path):
    # the shell is named: what the tests run under need not be one
    ran = Cli(tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")("--show-completion", "bash")
    assert ran.code == EXIT_OK and "_PACKHORSE_COMPLETE" in ran.out, ran


@pytest.mark.slow
@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_every_reading_command_prints_a_table_and_one_json_document(cli, arguments):
    plain = cli(*arguments)
    assert plain.code == EXIT_OK and plain.out.strip() and plain.err == ""
    as_json = cli(*arguments, "--json")
    assert as_json.code == EXIT_OK and as_json.document is not None and as_json.err == ""


@pytest.mark.parametrize(
    "arguments", [["queue", "list"], ["enqueue", "x"], ["dead-letter", "redrive", "1"]], ids=" ".join
)
def test_no_database_is_one_line_and_exit_69(tmp_path, arguments):
    ran = Cli(tmp_path)(*arguments)
    assert ran.code == EXIT_UNAVAILABLE
    assert ran.err.count("\n") == 1 and "packhorse up" in ran.err and "DATABASE_URL" in ran.err
    error = Cli(tmp_path)(*arguments, "--json").error
    assert error["code"] == "unavailable" and error["field"] == "database_url" and error["hint"]


def test_an_unreachable_database_is_one_line_and_exit_69(tmp_path):
    ran = Cli(tmp_path, "postgresql://somebody:s3cret@127.0.0.1:1/nowhere")("queue", "list")
    assert ran.code == EXIT_UNAVAILABLE and ran.err.count("\n") == 1 and "refused" in ran.err
    assert "s3cret" not in ran.err


def test_a_database_that_does_not_exist_says_so(tmp_path, server):
    ran = Cli(tmp_path, server.url("no_such_database"))("queue", "list", "--json")
    assert ran.code == EXIT_UNAVAILABLE and "no_such_database" in ran.error["message"]


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret@h:port/x?nosuch=1", "nosuch=s3cret", "mysql://u:s3cret@h/x"]
)
def test_a_connection_string_that_cannot_be_read_is_a_configuration_error(tmp_path, url):
    ran = Cli(tmp_path, url)("queue", "list")
    assert ran.code == EXIT_USAGE and "database_url" in ran.err and "s3cret" not in ran.err


def test_a_database_without_the_schema_is_exit_78_and_names_the_command(tmp_path, empty_database):
    ran = Cli(tmp_path, empty_database.admin_url)("queue", "list", "--json")
    assert ran.code == EXIT_SCHEMA and ran.error["code"] == "schema" and "migrate up" in ran.error["hint"]


def test_a_read_only_database_can_be_read_and_refuses_writes_in_one_line(cli, database):
    cli.environment["PGOPTIONS"] = "-c default_transaction_read_only=on"
    assert cli("queue", "list").code == EXIT_OK
    ran = cli("queue", "pause", "default", "--json")
    assert (
        ran.code == EXIT_UNAVAILABLE
        and "read-only" in ran.error["message"]
        and "primary" in ran.error["hint"]
    )
    assert database.value("select paused_at from queues where name = 'default'") is None


def test_a_role_without_privileges_is_told_which_role_has_them(tmp_path, database):
    database.query(
        "do $$ begin create role packhorse_nobody login; exception when duplicate_object then null; end $$"
    )
    ran = Cli(tmp_path, database.server.url(database.name, "packhorse_nobody"))("message", "list", "--json")
    assert (
        ran.code == EXIT_FAILED
        and ran.error["code"] == "rejected"
        and "packhorse_worker" in ran.error["hint"]
    )


def test_all_configuration_problems_are_shown_at_once(tmp_path):
    cli = Cli(tmp_path, PACKHORSE_THREADS="many", PACKHORSE_PROCESES="2", PACKHORSE_LOG_LEVEL="loud")
    for command in (["config", "check"], ["config", "show"], ["queue", "list"], ["worker", "x"], ["up"]):
        ran = cli(*command)
        assert ran.code == EXIT_USAGE, command
        assert len(ran.err.splitlines()) == 3, ran.err
        assert "threads" in ran.err and "log_level" in ran.err and "did you mean 'processes'" in ran.err
    error = cli("config", "check", "--json").error
    assert error["code"] == "config" and len(error["problems"]) == 3


def test_config_show_hides_passwords(tmp_path):
    cli = Cli(tmp_path, "postgresql://me:s3cret@host/db")
    assert "s3cret" not in cli("config", "show").out
    assert cli("config", "show", "--json").document["database_url"] == "postgresql://me:***@host/db"


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, lambda path: path.symlink_to("nowhere.toml")],
    ids=["folder", "link that leads nowhere"],
)
def test_a_configuration_that_is_no_file_is_not_passed_over(tmp_path, make):
    make(tmp_path / "packhorse.toml")
    ran = Cli(tmp_path)("config", "check")
    assert (
        ran.code == EXIT_USAGE
        and "packhorse.toml: is there, but is no file" in ran.err
        and len(ran.err.splitlines()) == 1
    ), ran.err


def test_a_misspelt_section_is_proposed(tmp_path):
    (tmp_path / "packhorse.toml").write_text("[retenton.orders]\n")
    assert "no setting 'retenton'; did you mean 'retention'?" in Cli(tmp_path)("config", "check").err


def test_a_toml_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "packhorse.toml").write_text("threads = = 3")
    ran = Cli(tmp_path)("config", "check")
    assert ran.code == EXIT_USAGE and "packhorse.toml" in ran.err and len(ran.err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["quue"], "quue"),
        (["queue", "list", "--jsno"], "--jsno"),
        (["message", "show"], "ID"),
        (["message", "show", "abc"], "ID"),
        (["message", "list", "--limit", "0"], "--limit"),
        (["message", "list", "--state", "sleeping"], "sleeping"),
        (["enqueue", "x", "--delay", "soon"], "soon"),
        (["enqueue", "x", "--run-at", "2030-01-01T00:00:00"], "time zone"),
        (["queue", "set", "default", "max_concurrency"], "NAME=VALUE"),
        (["dead-letter", "redrive"], "--all"),
        (["dead-letter", "purge", "--all", "--queue", "default"], "combined"),
        (["worker", "x", "--processes", "0"], "processes"),
        (["worker"], "actors"),
        (["maintenance", "history", "nope"], "nope"),
        (["dead-letter", "purge", "--older-than", "9999999999d"], "100 years"),
        (["message", "cancel", "9" * 20], "ID"),
        (["message", "retry", "9" * 20], "ID"),
        (["dead-letter", "redrive", "9" * 20], "ID"),
        (["dead-letter", "redrive", "1", "--rate", "inf"], "--rate"),
        (["enqueue", "x", '{"a": ' + "9" * 5000 + "}"], "4300 digits"),
        (["enqueue", "x", '{"a": 1e5000}', "--allow-unknown-type"], "payload"),
        (["queue", "set", "default", "rate_limit=1e400"], "1e400"),
        (["queue", "set", "default", "max_concurrency="], "max_concurrency"),
        (["queue", "set", "default", "max_concurrency=3", "max_concurrency=4"], "given twice"),
    ],
)
def test_wrong_usage_is_exit_2_and_names_what_is_wrong(cli, arguments, word):
    ran = cli(*arguments)
    assert ran.code == EXIT_USAGE and word in ran.err
    error = cli(*arguments, "--json").error if arguments[0] != "worker" else None
    assert error is None or error["message"]


def test_a_closed_pipe_is_no_error(cli):
    import subprocess

    from tests.support.cli import COMMAND

    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    writer = subprocess.run(
        [*COMMAND, "config", "show"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        env=cli.environment,
        cwd=cli.folder,
        check=False,
    )
    reader.stdin.close()
    reader.wait()
    assert b"Traceback" not in writer.stderr and b"BrokenPipe" not in writer.stderr


def test_the_traceback_option_shows_where_an_error_came_from(tmp_path):
    import subprocess

    from tests.support.cli import COMMAND

    cli = Cli(tmp_path)
    done = subprocess.run(
        [*COMMAND, "--traceback", "queue", "list"],
        env=cli.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr and "CommandError" in done.stderr


def test_json_documents_are_parseable_whatever_stands_in_a_message(cli, database):
    database.query(
        "select enqueue_message('default', 'effect', %s::jsonb)",
        json.dumps({"key": "[red]\u202e \x1b[31m </script> ü"}),
    )
    row = cli("message", "list", "--json").document[0]
    shown = cli("message", "show", row["id"], "--json").document
    assert shown["payload"] == {"key": "[red]\u202e \x1b[31m </script> ü"}
    table = cli("message", "show", row["id"]).out
    assert "[red]" in table and "\x1b" not in table and "\u202e" not in table

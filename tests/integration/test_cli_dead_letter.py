"""packhorse dead-letter: group, look, edit, redrive at a pace, purge, export (SPEC Q4)."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from packhorse.worker.cli import dead_letter
from packhorse.worker.db.connection import connect
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from packhorse.worker.ops.redrive import redrive
from packhorse.worker.store import browse, dead_letters
from packhorse.worker.store.dead_letters import Selection
from tests.support.cli import COMMAND, Cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(tmp_path, database):
    return Cli(tmp_path, database.url, USER="ada", LOGNAME="ada")


def bury(database, count=1, cause="boom", message_type="effect"):
    """Dead letters with one cause; their ids, ascending."""
    ids = [
        row[0]
        for row in database.query(
            "select (enqueue_message('default', %s, jsonb_build_object('key', n))).message_id from generate_series(1, %s) n",
            message_type,
            count,
        )
    ]
    database.query(
        "select count(bury_message(id, null, 'failed', 'ValueError', %s)) from unnest(%s::bigint[]) as id",
        cause,
        ids,
    )
    return sorted(ids)


def dead(database):
    return [row[0] for row in database.query("select id from dead_letters order by id")]


def test_groups_count_by_cause_and_list_filters(cli, database):
    bury(database, 3, "connection refused")
    odd = bury(database, 1, "no such customer", "fails")
    groups = cli("dead-letter", "groups", "--json").document
    assert [group["count"] for group in groups] == [3, 1]
    listed = cli("dead-letter", "list", "--fingerprint", groups[1]["fingerprint"], "--json").document
    assert [row["id"] for row in listed] == odd
    assert [row["id"] for row in cli("dead-letter", "list", "--type", "fails", "--json").document] == odd
    assert cli("dead-letter", "groups", "--queue", "nope").code == EXIT_FAILED


def test_groups_of_many_letters_are_bounded_and_say_so(database, monkeypatch, capsys):
    """In this process, with bounds that a small table meets."""
    for number in range(3):
        declare = f"select declare_queue('q{number}')"
        database.query(declare)
        database.query(
            "select count(bury_message((enqueue_message(%s, 'effect', '{}')).message_id, null, 'failed', %s))"
            " from generate_series(1, 20)",
            f"q{number}",
            f"Error{number}",
        )
    database.query("analyze dead_letters")
    for name, bound in (("MOST_LETTERS", 0), ("MOST_LETTERS_COUNTED", 30), ("NEWEST_LETTERS", 30)):
        monkeypatch.setattr(browse, name, bound)

    @contextmanager
    def here():
        opened = connect(database.url)
        yield opened
        opened.close()

    monkeypatch.setattr("packhorse.worker.cli.dead_letter.database", here)
    dead_letter.list_groups(None, 50, True)
    ran = capsys.readouterr()
    found = json.loads(ran.out)
    assert [(row["error_class"], row["estimated"]) for row in found] == [
        (f"Error{number}", True) for number in (2, 1, 0)
    ]
    assert ran.err == ""
    dead_letter.list_groups(None, 50, False)
    assert "~" in capsys.readouterr().out
    dead_letter.list_groups("q1", 50, True)
    ran = capsys.readouterr()
    assert [row["count"] for row in json.loads(ran.out)] == [11]
    assert "only the newest 30 dead letters of all queues were looked at" in ran.err
    monkeypatch.setattr(browse, "MOST_CAUSES", 2)
    dead_letter.list_groups(None, 50, True)
    ran = capsys.readouterr()
    assert len(json.loads(ran.out)) == 2 and "only the first 2 causes by fingerprint" in ran.err


def test_edit_shows_the_difference_and_records_who_and_which_keys(cli, database):
    (letter,) = bury(database)
    ran = cli("dead-letter", "edit", letter, "--payload", '{"key": "good"}', "--reason", "typo")
    assert ran.code == EXIT_OK
    assert '-  "key": 1' in ran.out and '+  "key": "good"' in ran.out
    assert database.value("select payload from dead_letters") == {"key": "good"}
    assert database.query("select operator, reason, details -> 'changed' from operator_actions") == [
        ("ada", "typo", ["key"])
    ]


def test_edit_of_a_message_that_is_not_dead_says_what_it_is_and_what_fits(cli, database):
    (alive,) = database.query("select message_id from enqueue_message('default', 'effect')")[0]
    for command in (["edit", alive, "--payload", "{}"], ["show", alive]):
        ran = cli("dead-letter", *command, "--json")
        assert (ran.code, ran.error["code"], ran.error["field"]) == (EXIT_FAILED, "not_found", "id")
        assert (
            ran.error["message"] == f"message {alive} is pending, not dead"
            and f"packhorse message cancel {alive}" in ran.error["hint"]
        )
    database.query("select cancel_message(%s, 'x', 'ada')", alive)
    ran = cli("dead-letter", "edit", alive, "--payload", "{}")
    assert f"message {alive} is cancelled, not dead" in ran.err and f"message show {alive}" in ran.err
    assert "no dead letter has the id" in cli("dead-letter", "edit", alive + 1, "--payload", "{}").err


def test_edit_in_an_editor_and_a_dry_run_that_changes_nothing(cli, database, tmp_path):
    (letter,) = bury(database)
    editor = tmp_path / "editor.sh"
    editor.write_text("#!/bin/sh\nsed -i 's/1/2/' \"$1\"\n")
    editor.chmod(0o755)
    dry = cli("dead-letter", "edit", letter, "--dry-run", "--json", EDITOR=str(editor)).document
    assert dry["after"] == {"key": 2} and dry["changed"] is False
    assert database.value("select payload from dead_letters") == {"key": 1}
    assert cli("dead-letter", "edit", letter, "--yes", EDITOR=str(editor)).code == EXIT_OK
    assert database.value("select payload from dead_letters") == {"key": 2}


def test_dead_letters_of_a_queue_that_nobody_declared_can_be_seen_and_redriven(cli, database):
    (letter,) = bury(database)
    database.query("update dead_letters set queue = 'nowhere'")
    assert cli("dead-letter", "list", "--queue", "nowhere", "--json").document[0]["id"] == letter
    assert cli("dead-letter", "groups", "--queue", "nowhere", "--json").document[0]["count"] == 1
    assert cli("dead-letter", "redrive", "--queue", "nowhere", "--yes", "--json").document["redriven"] == 1
    assert cli("message", "list", "--queue", "nowhere", "--json").document[0]["id"] == letter
    for command in (
        ["dead-letter", "list"],
        ["dead-letter", "groups"],
        ["dead-letter", "purge", "--yes"],
        ["message", "list", "--state", "dead"],
    ):
        assert cli(*command, "--queue", "nowhere", "--json").error["code"] == "unknown_queue"


def test_a_redrive_says_that_some_are_left_and_why(cli, database):
    letters = bury(database, 2)
    database.query(
        "insert into message_queue (id, queue, message_type) values (%s, 'default', 'effect')", letters[0]
    )
    ran = cli("dead-letter", "redrive", "--all", "--yes")
    assert (ran.code, ran.out) == (EXIT_OK, "redrove 1 of 2 dead letter(s)\n") and "1 left" in ran.err


def test_two_who_edit_at_once_do_not_undo_each_other(cli, database, tmp_path):
    (letter,) = bury(database)
    editor = tmp_path / "editor.sh"
    editor.write_text(
        f"#!/bin/sh\n{sys.executable} -m packhorse.worker.cli.program dead-letter edit {letter} --payload '{{\"key\": 3}}' >&2\nsed -i 's/1/2/' \"$1\"\n"
    )
    editor.chmod(0o755)
    ran = cli("dead-letter", "edit", letter, "--yes", "--json", EDITOR=str(editor))
    assert (ran.code, ran.out) == (EXIT_FAILED, "") and '"code": "conflict"' in ran.err
    assert database.value("select payload from dead_letters") == {"key": 3}


@pytest.mark.parametrize(
    ("options", "environment", "code"),
    [
        (["--payload", "{"], {}, EXIT_USAGE),
        (["--payload", "[]"], {}, EXIT_USAGE),
        (["--payload", '{"a": "\\u0000"}'], {}, EXIT_USAGE),
        ([], {"EDITOR": "", "VISUAL": ""}, EXIT_USAGE),
        ([], {"EDITOR": "false"}, EXIT_FAILED),
        ([], {"EDITOR": "/no/such/editor"}, EXIT_FAILED),
    ],
)
def test_edit_refuses_bad_payloads_and_broken_editors(cli, database, options, environment, code):
    (letter,) = bury(database)
    ran = cli("dead-letter", "edit", letter, *options, "--json", **environment)
    assert ran.code == code and ran.error["field"] == "payload"
    assert database.value("select payload from dead_letters") == {"key": 1}


def test_redrive_by_id_needs_no_confirmation_and_is_recorded(cli, database):
    ids = bury(database, 3)
    ran = cli("dead-letter", "redrive", ids[0], ids[2], "--reason", "mended", "--json")
    assert ran.code == EXIT_OK
    assert ran.document == {"selected": 2, "redriven": 2, "left": 0, "died_again": 0, "ended": "finished"}
    assert dead(database) == [ids[1]]
    assert database.query(
        "select message_id, operator, reason from operator_actions order by message_id"
    ) == [(ids[0], "ada", "mended"), (ids[2], "ada", "mended")]


def test_redrive_by_filter_shows_the_count_and_wants_a_yes(cli, database):
    mended, other = bury(database, 5, "refused"), bury(database, 1, "other cause")
    refused = cli("dead-letter", "redrive", "--queue", "default", "--json")
    assert refused.code == EXIT_USAGE and "6" in refused.error["hint"] and len(dead(database)) == 6
    fingerprint = database.value("select fingerprint from dead_letters where id = %s", mended[0])
    assert (
        cli("dead-letter", "redrive", "--fingerprint", fingerprint, "--limit", "2", "--yes").code == EXIT_OK
    )
    assert dead(database) == [*mended[2:], *other]  # oldest first
    assert cli("dead-letter", "redrive", "--all", "--yes", "--rate", "0").code == EXIT_OK
    assert dead(database) == []


def test_redrive_of_nothing_says_so(cli, database):
    assert cli("dead-letter", "redrive", 1).code == EXIT_FAILED
    assert cli("dead-letter", "redrive", "--fingerprint", "abc", "--yes").code == EXIT_FAILED
    ran = cli("dead-letter", "redrive", "--all", "--json")
    assert ran.code == EXIT_OK and ran.document["redriven"] == 0


def test_redrive_stops_when_the_redriven_ones_die_again(database):
    """A cause that was not mended costs a few messages: the rest stay where they are."""
    bury(database, 60)
    connection = connect(database.url)
    stop = threading.Event()

    def bury_again():
        with database.connect() as other:
            while not stop.is_set():
                other.execute(
                    "select bury_message(id, null, 'failed', 'ValueError', 'still') from message_queue"
                )
                stop.wait(0.02)

    grave = threading.Thread(target=bury_again)
    grave.start()
    try:
        _, dead_by = dead_letters.count(connection, Selection())
        result = redrive(connection, Selection(), dead_by, operator="t", rate=20, stop_after=3)
    finally:
        stop.set()
        grave.join()
        connection.close()
    assert result.ended == "failing" and result.died_again >= 3
    assert result.redriven < 60


def test_redrive_without_a_stop_redrives_each_letter_once(database):
    """Letters that die again during the walk are not redriven a second time."""
    ids = bury(database, 1200)
    connection = connect(database.url)
    redriven = []

    def die_again(count):
        redriven.append(count)
        database.query(
            "select count(bury_message(id, null, 'failed', 'ValueError', 'again')) from message_queue"
        )

    _, dead_by = dead_letters.count(connection, Selection())
    result = redrive(connection, Selection(), dead_by, operator="t", report=die_again)
    connection.close()
    assert result.redriven == sum(redriven) == len(ids) and result.ended == "finished"
    assert database.value("select count(*) from operator_actions where action = 'redrive'") == len(ids)


def test_redrive_keeps_its_pace_and_ctrl_c_ends_it_between_batches(cli, database, tmp_path):
    bury(database, 200)
    process = cli.start(
        "dead-letter", "redrive", "--all", "--yes", "--rate", "20", "--json", output=tmp_path / "out"
    )
    wait_until(lambda: 200 - len(dead(database)) >= 8)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == EXIT_FAILED
    told = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert told["ended"] == "interrupted" and told["redriven"] == 200 - len(dead(database)) == database.value(
        "select count(*) from message_queue"
    )
    assert told["redriven"] < 200


def test_purge_needs_a_yes_and_deletes_what_was_selected(cli, database):
    ids = bury(database, 4)
    assert cli("dead-letter", "purge", ids[0]).code == EXIT_USAGE
    assert cli("dead-letter", "purge", "--all", "--older-than", "1h", "--yes").code == EXIT_USAGE
    assert cli("dead-letter", "purge", "--older-than", "1h", "--yes", "--json").document["purged"] == 0
    assert dead(database) == ids
    assert cli("dead-letter", "purge", ids[0], "--yes", "--reason", "spam").code == EXIT_OK
    assert cli("dead-letter", "purge", "--queue", "default", "--yes", "--json").document == {
        "selected": 3,
        "purged": 3,
    }
    assert database.query(
        "select action, reason, count(*) from operator_actions group by 1, 2 order by 2"
    ) == [("purge", "spam", 1), ("purge", None, 3)]


def test_export_writes_one_json_document_per_line_oldest_first(cli, database, tmp_path):
    ids = bury(database, 1100)
    lines = [json.loads(line) for line in cli("dead-letter", "export").out.splitlines()]
    assert [line["id"] for line in lines] == ids
    assert lines[0]["payload"] == {"key": 1} and lines[0]["dead_at"]
    target = tmp_path / "letters.jsonl"
    assert cli("dead-letter", "export", ids[5], "--output", target).code == EXIT_OK
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == [ids[5]]
    refused = cli("dead-letter", "export", "--output", target)
    assert refused.code == EXIT_USAGE and "letters.jsonl" in refused.err


def test_an_export_that_the_disk_cannot_take_leaves_no_half_file(cli, database, tmp_path):
    bury(database, 200)
    target = tmp_path / "letters.jsonl"
    ran = subprocess.run(
        [*COMMAND, "dead-letter", "export", "--output", str(target)],
        env=cli.environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        check=False,
    )
    assert ran.returncode == EXIT_FAILED and "cannot be written" in ran.stderr and "wrote" not in ran.stderr
    assert not target.exists()
    ran = cli("dead-letter", "export", "--output", target)
    assert "wrote 200 dead letter(s)" in ran.err and len(target.read_text().splitlines()) == 200


@pytest.mark.parametrize("verb", ["purge", "redrive"])
def test_what_was_done_before_the_connection_broke_is_said(cli, database, verb):
    ids = bury(database, 1100)
    database.query("""create function cut() returns trigger language plpgsql security definer as $$
        begin perform pg_terminate_backend(pg_backend_pid()); return old; end $$""")
    database.query(
        f"create trigger cut before delete on dead_letters for each row when (old.id = {ids[700]}) execute function cut()"
    )
    options = ["--rate", 0, "--stop-after-failures", 0] if verb == "redrive" else []
    ran = cli("dead-letter", verb, "--all", "--yes", "--json", *options)
    assert (ran.code, ran.error["code"]) == (EXIT_UNAVAILABLE, "unavailable")
    assert dead(database) == ids[500:]
    if verb == "purge":
        assert ran.document == {"selected": 1100, "purged": 500}
    else:
        assert ran.document == {
            "selected": 1100,
            "redriven": 500,
            "left": 600,
            "died_again": None,
            "ended": "error",
        }
    database.query("drop trigger cut on dead_letters")
    again = cli("dead-letter", verb, "--all", "--yes", "--json", *options).document
    assert again["selected"] == 600 and dead(database) == []


@pytest.mark.parametrize("verb", ["purge", "redrive"])
def test_ctrl_c_within_a_batch_lets_it_end_and_counts_it(cli, database, tmp_path, verb):
    ids = bury(database, 1100)
    options = ["--rate", 0, "--stop-after-failures", 0] if verb == "redrive" else []
    with database.connect() as other, other.transaction():
        other.execute("select from dead_letters where id = %s for update", (ids[700],))
        process = cli.start(
            "dead-letter", verb, "--all", "--yes", "--json", *options, output=tmp_path / "output"
        )
        waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        wait_until(lambda: database.value(waiting) == 1, 20, "the batch waits for the locked letter")
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == EXIT_FAILED
    documents = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    told = next(document for document in documents if "selected" in document)
    assert told["purged" if verb == "purge" else "redriven"] == 1000
    assert dead(database) == ids[1000:]
    if verb == "purge":
        assert [document["error"]["code"] for document in documents if "error" in document] == ["interrupted"]
    else:
        assert told["ended"] == "interrupted"


def with_step(database):
    """A dead letter with a step."""
    (letter,) = bury(database)
    step = '{"answer": {"value": "a secret answer", "at": "2026-01-01T00:00:00Z", "attempt": 1}}'
    database.query("update dead_letters set steps = %s::jsonb where id = %s", step, letter)
    return letter


def test_steps_are_listed_and_their_values_shown_when_asked(cli, database):
    letter = with_step(database)
    for command in ("dead-letter", "message"):
        plain = cli(command, "show", letter)
        assert "answer" in plain.out and "secret" not in plain.out
        assert cli(command, "show", letter, "--json").document["steps"] == [
            {"name": "answer", "attempt": 1, "at": "2026-01-01T00:00:00Z", "bytes": 17}
        ]
        assert (
            cli(command, "show", letter, "--step-values", "--json").document["steps"][0]["value"]
            == '"a secret answer"'
        )
    assert "1 stored, not run again: answer" in cli("message", "explain", letter).out
    exported = json.loads(cli("dead-letter", "export", letter).out)
    assert exported["steps"]["answer"]["value"] == "a secret answer"


def test_an_edit_says_that_steps_come_from_the_old_payload(cli, database):
    ran = cli("dead-letter", "edit", with_step(database), "--payload", '{"key": "good"}')
    assert "1 step(s)" in ran.err and "--fresh" in ran.err
    ran = cli("dead-letter", "edit", with_step(database), "--payload", '{"key": "good"}', "--json")
    assert ran.document["steps"] == ["answer"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_redrive_keeps_steps_unless_it_is_fresh(cli, database, fresh):
    letter = with_step(database)
    cli("dead-letter", "redrive", letter, *(["--fresh"] if fresh else []))
    assert database.value("select steps is null from message_queue where id = %s", letter) is fresh

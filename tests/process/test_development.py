"""What a developer sees (SPEC W13): tracebacks on the console, imports that fail, and new code after each
change.
"""

from __future__ import annotations

import json
import signal

import pytest

from packhorse.worker.exits import EXIT_USAGE
from tests.support.accounting import enqueue, quick_backoff
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

HEAD = "import dramatiq\nfrom tests.support.notes import note\n\n"
HANDLER = HEAD + "@dramatiq.actor\ndef effect(key):\n    note('effect', f'{key}-%s')\n"
TRACEBACK = "Traceback (most recent call last)"


def path_of(folder):
    return {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONDONTWRITEBYTECODE": "1"}


def broken(line):
    return HEAD + "@dramatiq.actor\ndef effect(key):\n    pass\n\n" + line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("def half(:\n", "SyntaxError"),
        ("undefined()\n", "NameError: name 'undefined' is not defined"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class Mine(Exception): pass\nraise Mine('at the import')\n", "Mine: at the import"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("@dramatiq.actor(priority=11)\ndef other(): pass\n", "priority"),
    ],
    ids=["syntax", "name", "import", "own", "exit", "refused option"],
)
def test_an_import_that_fails_ends_the_first_start_with_one_traceback(
    database, start_daemon, tmp_path, line, said
):
    """Others of its processes fail for the same reason, and nobody starts them again."""
    (tmp_path / "broken_actors.py").write_text(broken(line))
    daemon = start_daemon(database, actors="broken_actors", extra=path_of(tmp_path), processes=3)
    assert daemon.process.wait(30) == EXIT_USAGE, daemon.log
    assert daemon.log.count(TRACEBACK) == 1 and said in daemon.log
    assert f'File \\"{tmp_path}/broken_actors.py\\", line ' in daemon.log
    assert daemon.log.count('"config_error"') == 1 and "child_failed" not in daemon.log
    assert all(line.startswith("{") for line in daemon.log.splitlines()), "JSON, a line per event"


@pytest.mark.slow
def test_a_module_that_is_not_there_is_one_sentence(database, start_daemon):
    daemon = start_daemon(database, actors="no_such_module", processes=2)
    assert daemon.process.wait(30) == EXIT_USAGE
    assert daemon.log.count("cannot import 'no_such_module'") == 1 and "Traceback" not in daemon.log


FAILING = """\
import dramatiq
from tests.support.notes import note

class CardRefused(Exception):
    pass

def charge(secret):
    raise CardRefused(f"refused: {secret}")

@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=100)
def fails(key):
    note("start", key)
    local = "of-no-interest"
    charge(key)
"""


@pytest.mark.slow
def test_a_console_shows_the_traceback_of_each_failed_attempt_without_what_it_was_about(
    database, ledger, start_daemon, tmp_path
):
    (tmp_path / "failing_actors.py").write_text(FAILING)
    daemon = start_daemon(
        database, ledger, actors="failing_actors", extra=path_of(tmp_path), log_format="console"
    ).wait_ready()
    (message_id,) = enqueue(database, [{"message_type": "fails", "payload": {"key": "payload-4711"}}])
    wait_until(lambda: database.value("select count(*) from dead_letters") == 1)
    assert daemon.stop() == 0
    log = daemon.log
    assert log.count(TRACEBACK) == 2, "one per attempt"
    assert (
        log.count("failing_actors.CardRefused") == 2
        and log.count("in charge") == 2
        and 'raise CardRefused(f"refused: {secret}")' in log
    )
    assert log.count("of packhorse, dramatiq or import") == 2 and "in contain" not in log
    assert f"packhorse message show {message_id}" in log
    assert "payload-4711" not in log and "local = " not in log and "'of-no-interest'" not in log


@pytest.mark.slow
def test_json_lines_have_no_tracebacks_of_failed_attempts(database, ledger, start_daemon, tmp_path):
    (tmp_path / "failing_actors.py").write_text(FAILING)
    daemon = start_daemon(database, ledger, actors="failing_actors", extra=path_of(tmp_path)).wait_ready()
    enqueue(database, [{"message_type": "fails", "payload": {"key": "k"}}])
    wait_until(lambda: database.value("select count(*) from dead_letters") == 1)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log and daemon.log.count('"message_failed"') == 2
    assert all(json.loads(line) for line in daemon.log.splitlines())


def seen(ledger, database, expected):
    """Until a message is handled by this version of the code."""

    def handled():
        enqueue(database, [{"message_type": "effect", "payload": {"key": "k"}}])
        return ledger.counts("effect")[f"k-{expected}"]

    wait_until(handled, 40, expected)


@pytest.mark.slow
def test_each_change_of_a_source_file_loads_the_code_anew(database, ledger, start_daemon, tmp_path):
    """And a syntax error keeps the old code."""
    pytest.importorskip("watchfiles")
    quick_backoff(database)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    source = tmp_path / "app" / "actors.py"
    source.write_text(HANDLER % "first")
    daemon = start_daemon(
        database, ledger, actors="app.actors", extra=path_of(tmp_path), cwd=tmp_path, options=("--reload",)
    ).wait_ready()
    wait_until(lambda: "reload_watches" in daemon.log)
    seen(ledger, database, "first")
    (tmp_path / "notes.txt").write_text("not source code")
    source.write_text(HANDLER % "second")
    seen(ledger, database, "second")
    assert "notes.txt" not in daemon.log

    source.write_text(HANDLER % "third" + "def half(:\n")
    wait_until(lambda: "reload_refused" in daemon.log)
    assert daemon.log.count(TRACEBACK) == 1 and "SyntaxError" in daemon.log and f"{source}" in daemon.log
    seen(ledger, database, "second")

    source.write_text(HANDLER % "fourth")
    seen(ledger, database, "fourth")
    assert daemon.stop() == 0
    assert daemon.log.count(TRACEBACK) == 1 and "child_failed" not in daemon.log


@pytest.mark.slow
def test_up_takes_reload_and_threads(database, ledger, start_daemon, tmp_path):
    """As the page for developers says; new processes have as many threads as the first."""
    pytest.importorskip("watchfiles")
    source = tmp_path / "app_actors.py"
    source.write_text(HANDLER % "first")
    options = ("--reload", "--threads", "3", "--processes", "2")
    given = {
        "actors": "app_actors",
        "extra": path_of(tmp_path),
        "cwd": tmp_path,
        "command": "up",
        "options": options,
    }
    daemon = start_daemon(database.admin_url, ledger, **given).wait_ready(2)
    wait_until(lambda: "reload_watches" in daemon.log)
    assert "2 x 3 threads: app_actors" in daemon.log
    seen(ledger, database, "first")
    source.write_text(HANDLER % "second")
    wait_until(lambda: daemon.log.count("worker_started") >= 4, 40, "both processes are new")
    seen(ledger, database, "second")
    wait_until(lambda: database.query("select threads from workers where state = 'running'") == [(3,), (3,)])
    assert daemon.stop() == 0 and TRACEBACK not in daemon.log


@pytest.mark.slow
def test_the_watcher_ends_with_its_parent(database, ledger, start_daemon, tmp_path):
    pytest.importorskip("watchfiles")
    (tmp_path / "its_actors.py").write_text(HANDLER % "first")
    daemon = start_daemon(
        database, ledger, actors="its_actors", extra=path_of(tmp_path), cwd=tmp_path, options=("--reload",)
    ).wait_ready()
    wait_until(lambda: "reload_watches" in daemon.log)
    children = daemon.children()
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)
    wait_until(lambda: not any(alive(pid) for pid in children), 30, "no child is left")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""packhorse up and packhorse worker as real processes: start, work, drain, exit codes, log lines (SPEC W6,
Embedded default).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest

from packhorse.worker.db.embedded import running_url
from packhorse.worker.exits import EXIT_OK, EXIT_SCHEMA, EXIT_USAGE
from tests.support.cli import Cli
from tests.support.http import free_port, get
from tests.support.waiting import wait_until
from tests.support.workers import Ledger

pytestmark = pytest.mark.slow
ACTORS = "tests.support.actors"


@pytest.fixture
def folder():
    """A short path: the socket is inside."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def start(folder):
    """Start a command line in the background; killed with its server at the end, whatever happens."""
    running = []

    def started(cli, *arguments):
        output = folder / f"output-{len(running)}"
        running.append(cli.start(*arguments, output=output))
        running[-1].output = output
        return running[-1]

    yield started
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    if running_url(folder / ".packhorse") is not None:
        os.kill(int((folder / ".packhorse/postgres/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)


def said(process, text, timeout_seconds=40.0):
    wait_until(
        lambda: text in process.output.read_text() or process.poll() is not None, timeout_seconds, text
    )
    assert text in process.output.read_text()


def events(process):
    """The JSON log lines of a process."""
    return [json.loads(line) for line in process.output.read_text().splitlines() if line.startswith("{")]


def test_up_in_an_empty_folder_works_end_to_end_and_ctrl_c_ends_with_0(folder, start):
    cli = Cli(folder)
    up = start(cli, "up")
    said(up, "Ctrl-C")
    assert cli("queue", "list", "--json").document[0]["queue"] == "default"
    assert cli("enqueue", "greet", '{"name": "a"}', "--allow-unknown-type").code == EXIT_OK
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == EXIT_OK
    assert running_url(folder / ".packhorse") is None
    assert "packhorse up" in cli("queue", "list").err


def test_up_runs_workers_as_a_role_that_is_no_superuser_and_drains(folder, start):
    ledger = Ledger(folder / "ledger")
    cli = Cli(folder, LEDGER=str(ledger.path))
    up = start(cli, "up", "--actors", ACTORS, "--processes", "2")
    wait_until(lambda: up.output.read_text().count("worker_started") == 2, 40)
    message = cli("enqueue", "effect", '{"key": "slow", "seconds": 2}').out.strip()
    wait_until(lambda: ledger.counts("start")["slow"])
    with psycopg.connect(running_url(folder / ".packhorse", role="postgres")) as admin:
        roles = admin.execute(
            "select distinct usename from pg_stat_activity where application_name like 'packhorse %' and backend_type = 'client backend'"
        )
        assert roles.fetchall() == [("packhorse",)]
    assert {row["state"] for row in cli("workers", "--json").document} == {"running"}
    up.terminate()
    assert up.wait(30) == EXIT_OK
    assert ledger.counts("effect")["slow"] == 1
    again = start(cli, "up")
    said(again, "Ctrl-C")
    assert cli("message", "show", message, "--json").document["state"] == "done"


def test_a_worker_in_another_terminal_keeps_the_server_when_up_ends(folder, start):
    ledger = Ledger(folder / "ledger")
    cli = Cli(folder, LEDGER=str(ledger.path))
    up = start(cli, "up")
    said(up, "Ctrl-C")
    other = start(cli, "worker", ACTORS)
    said(other, "worker_started")
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == EXIT_OK and "left to the others" in up.output.read_text()
    assert cli("enqueue", "effect", '{"key": "after"}').code == EXIT_OK
    wait_until(lambda: ledger.counts("effect")["after"] == 1)
    other.send_signal(signal.SIGTERM)
    assert other.wait(30) == EXIT_OK
    assert running_url(folder / ".packhorse") is None


def test_up_with_a_database_of_their_own_migrates_it_and_starts_no_server(folder, empty_database, start):
    cli = Cli(folder, empty_database.admin_url)
    up = start(cli, "up", ACTORS)  # as `packhorse worker` takes them
    said(up, "worker_started")
    assert cli("migrate", "check").code == EXIT_OK
    assert not (folder / ".packhorse").exists()
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == EXIT_OK
    assert cli("up").code == EXIT_USAGE  # no actors, nothing to keep up


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_still_drains(folder, database, start):
    """The terminal signals parent and children alike: together that is one Ctrl-C, not two."""
    ledger = Ledger(folder / "ledger")
    cli = Cli(folder, database.url, LEDGER=str(ledger.path))
    worker = start(cli, "worker", ACTORS)
    said(worker, "worker_started")
    cli("enqueue", "sleeper", '{"key": "s", "seconds": 2}')
    wait_until(lambda: ledger.counts("start")["s"] == 1)
    os.killpg(worker.pid, signal.SIGINT)
    assert worker.wait(30) == EXIT_OK
    assert ledger.counts("effect")["s"] == 1
    assert database.query("select state, attempt from all_messages where message_type = 'sleeper'") == [
        ("done", 1)
    ]


def test_worker_waits_for_a_database_that_is_not_there_yet(folder, own_server, start):
    database = own_server.create_database()
    own_server.stop()
    worker = start(Cli(folder, database.url), "worker", ACTORS)
    said(worker, "database_unavailable")
    own_server.start()
    said(worker, "worker_started")
    worker.terminate()
    assert worker.wait(30) == EXIT_OK


def test_worker_on_a_database_without_the_schema_ends_with_78(folder, empty_database, start):
    worker = start(Cli(folder, empty_database.admin_url), "worker", ACTORS)
    assert worker.wait(30) == EXIT_SCHEMA
    assert any(event["event"] == "schema_mismatch" for event in events(worker))


@pytest.mark.parametrize("module", ["no.such.module", "tests.support.waiting"])
def test_worker_with_a_module_without_actors_ends_with_2_and_names_it(folder, database, start, module):
    worker = start(Cli(folder, database.url), "worker", module)
    assert worker.wait(30) == EXIT_USAGE
    problem = next(event for event in events(worker) if event["event"] == "config_error")
    assert module in problem["note"]
    assert "Traceback" not in worker.output.read_text()


def test_worker_options_override_settings(folder, database, start):
    cli = Cli(folder, database.url, PACKHORSE_THREADS="2")
    worker = start(cli, "worker", ACTORS, "--processes", "2", "--threads", "3", "--queues", "default,other")
    wait_until(lambda: worker.output.read_text().count("worker_started") == 2, 40)
    rows = cli("workers", "--json").document
    assert [(row["threads"], row["queues"]) for row in rows] == [(3, ["default", "other"])] * 2
    worker.terminate()
    assert worker.wait(30) == EXIT_OK


def test_log_lines_are_json_with_typed_keys_and_never_a_payload(folder, database, start):
    cli = Cli(folder, database.url)
    worker = start(cli, "worker", ACTORS)
    said(worker, "worker_started")
    cli("enqueue", "fails", '{"key": "s3cret-payload"}', "--max-attempts", "1", "--correlation-id", "r-1")
    said(worker, "message_failed")
    worker.terminate()
    worker.wait(30)
    found = {event["event"]: event for event in events(worker)}
    assert {
        "supervisor_started",
        "worker_started",
        "message_failed",
        "worker_stopped",
        "supervisor_stopped",
    } <= set(found)
    assert found["worker_started"]["threads"] == 8 and found["worker_stopped"]["exit_code"] == 0
    assert found["message_failed"]["error_class"] == "RuntimeError" and found["message_failed"]["level"] in (
        "info",
        "warning",
    )
    assert len(worker.output.read_text().splitlines()) == len(events(worker)), (
        "every line is one JSON document"
    )
    assert "s3cret-payload" not in json.dumps(
        [event for event in events(worker) if event["event"] != "message_failed"]
    )


def test_an_idle_worker_process_needs_at_most_60_mib(folder, database, start):
    worker = start(Cli(folder, database.url), "worker", ACTORS)
    said(worker, "worker_started")
    children = subprocess.run(
        ["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    resident = [
        int(line.split()[1]) / 1024
        for pid in children
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    assert len(resident) == 1 and resident[0] <= 60


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this kernel does not tell it")
def test_all_processes_of_an_idle_worker_need_at_most_75_mib(folder, database, start):
    """Parent, child and exporter; what they share counts once."""
    port = free_port()
    worker = start(Cli(folder, database.url, PACKHORSE_METRICS_PORT=str(port)), "worker", ACTORS)
    said(worker, "worker_started")
    wait_until(lambda: get(port, "/metrics")[0] == 200, message="the exporter has answered once")
    tree = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    sizes = [process.memory_full_info().pss / 2**20 for process in tree]
    assert len(sizes) == 3 and sum(sizes) <= 75, sizes

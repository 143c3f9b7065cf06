"""O2: every parent serves metrics and probes from a process of their own, which can neither stop nor slow the
work.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from packhorse.worker.fleet.exporter import RETRY_SECONDS
from tests.support.accounting import effects, enqueue, wait_for_end
from tests.support.cli import Cli
from tests.support.http import free_port, get, metric, problems, scale
from tests.support.notes import nap
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_two_processes_are_one_page_and_a_killed_one_takes_nothing_away(database, ledger, start_daemon):
    port = free_port()
    daemon = start_daemon(database, ledger, processes=2, threads=2, metrics_port=port).wait_ready(2)
    wait_until(
        lambda: (
            problems(port, "/startupz") == []
            and problems(port, "/readyz") == []
            and problems(port, "/livez") == []
        )
    )
    effects(database, 200, seconds=0.005)
    wait_for_end(database)
    done = {"queue": "default", "outcome": "done"}
    wait_until(lambda: metric(port, "messages_finished_total", **done) == 200)
    assert metric(port, "worker_processes") == 2 and metric(port, "worker_threads") == 4
    os.kill(worker_pids(daemon)[0], signal.SIGKILL)
    wait_until(lambda: metric(port, "process_restarts_total", reason="crashed") == 1)
    assert metric(port, "messages_finished_total", **done) == 200
    wait_until(lambda: metric(port, "worker_processes") == 2 and metric(port, "worker_threads") == 4)
    enqueue(database, [{"message_type": "fails", "payload": {"key": "f"}, "max_attempts": 1}])
    wait_until(lambda: metric(port, "messages_finished_total", queue="default", outcome="dead") == 1)
    assert metric(port, "actor_messages_finished_total", actor="fails", outcome="failed") == 1
    assert (
        metric(port, "message_wait_seconds_count", queue="default")
        == 201
        == metric(port, "message_duration_seconds_count")
    )
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=get(port, "/metrics")[1],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert get(port, "/nope")[0] == 404 and '"packhorse"' in get(port, "/version")[1]
    assert daemon.stop() == 0
    assert get(port, "/metrics")[0] == 0, "nothing is left behind"


def test_a_port_in_use_is_named_once_and_the_worker_goes_on(database, ledger, start_daemon):
    port = 65535  # no port comes after it
    with socket.create_server(("127.0.0.1", port)):
        daemon = start_daemon(database, ledger, metrics_port=port).wait_ready()
        wait_until(lambda: "endpoints_failed" in daemon.log)
        effects(database, 1)
        wait_until(lambda: ledger.counts("effect")["m0"] == 1)
        nap(RETRY_SECONDS * 1.5)  # it has tried again, and says nothing
    wait_until(
        lambda: metric(port, "observability_errors_total", part="endpoints") is not None,
        20,
        "the port is free: served",
    )
    assert metric(port, "observability_errors_total", part="endpoints") >= 2
    assert daemon.log.count("endpoints_failed") == 1 and str(port) in daemon.log
    assert daemon.stop() == 0


def test_both_lines_of_the_procfile_start_with_one_port_and_the_second_says_which_it_took(
    database, ledger, start_daemon, tmp_path
):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port).wait_ready()
    wait_until(lambda: problems(port, "/livez") == [])
    process = Cli(
        tmp_path, database.url, PACKHORSE_METRICS_PORT=str(port), PACKHORSE_LOG_FORMAT="json"
    ).start("scheduler", output=tmp_path / "log")
    try:
        lines = []

        def said(event):
            lines[:] = [
                json.loads(line)
                for line in (tmp_path / "log").read_text().splitlines()
                if line.startswith("{")
            ]
            return any(line["event"] == event for line in lines)

        wait_until(lambda: said("endpoints_moved") and said("worker_started"))
        (line,) = [line for line in lines if line["event"] == "endpoints_moved"]
        assert line["taken_port"] == port < line["port"] <= port + 10
        wait_until(lambda: metric(line["port"], "worker_threads") == 4)
        assert metric(port, "worker_threads") != 4, "the first is where it was"
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        (exporter,) = {int(pid) for pid in children} - {
            record["pid"] for record in lines if record["event"] == "worker_started"
        }
        os.kill(exporter, signal.SIGKILL)
        wait_until(lambda: metric(line["port"], "observability_errors_total", part="exporter") == 1)
        assert (tmp_path / "log").read_text().count("endpoints_moved") == 1, "it came back where it was"
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert daemon.stop() == 0


def test_a_killed_exporter_is_replaced_and_the_work_does_not_notice(database, ledger, start_daemon):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port).wait_ready()
    wait_until(lambda: metric(port, "worker_processes") == 1)
    before = worker_pids(daemon)
    (exporter,) = set(daemon.children()) - set(before)
    effects(database, 1)
    wait_until(lambda: metric(port, "messages_finished_total", queue="default", outcome="done") == 1)
    os.kill(exporter, signal.SIGKILL)
    wait_until(lambda: metric(port, "observability_errors_total", part="exporter") == 1)
    assert metric(port, "messages_finished_total", queue="default", outcome="done") == 1, (
        "the numbers are not the exporter's"
    )
    assert worker_pids(daemon) == before
    effects(database, 1, "later")
    wait_until(lambda: ledger.counts("effect")["later0"] == 1)
    assert daemon.stop() == 0


def test_it_listens_on_loopback_unless_told_otherwise_and_not_at_all_by_default(
    database, ledger, start_daemon
):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port).wait_ready()
    wait_until(lambda: get(port, "/livez")[0] == 200)
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == port] == [
        "0100007F"
    ]
    assert daemon.stop() == 0
    silent = start_daemon(database, ledger).wait_ready()
    assert len(silent.children()) == 1, "no exporter"
    assert silent.stop() == 0


def test_the_fleets_numbers_and_the_scale_follow_the_backlog(database, ledger, start_daemon):
    port = free_port()
    database.query("select pause_queue('default', 'test')")
    daemon = start_daemon(
        database, ledger, metrics_port=port, threads=2, fleet_seconds=1, scale_target_wait_seconds=2
    ).wait_ready()
    wait_until(lambda: metric(port, "queue_paused", queue="default") == 1 and scale(port).get("workers") == 0)
    effects(database, 10, seconds=0.2)
    wait_until(lambda: metric(port, "queue_messages", queue="default", state="pending") == 10)
    assert scale(port).get("workers") == 0, "no number of workers starts messages of a paused queue"
    assert metric(port, "workers", state="running") == 1 and metric(port, "fleet_age_seconds") < 60
    database.query("select resume_queue('default', 'test')")
    wait_for_end(database)
    wait_until(lambda: scale(port).get("workers") == 0)
    mean = scale(port)["mean_seconds"]
    assert 0.2 <= mean < 1
    effects(database, 100, "later", seconds=0.2)
    answer = {"backlog": 0}

    def asked():
        answer.update(scale(port))
        return answer["backlog"] > 0

    wait_until(asked)
    assert (answer["slots"], answer["workers"]) == (
        2,
        math.ceil(answer["backlog"] * answer["mean_seconds"] / 2 / 2),
    )
    assert daemon.stop() == 0


def test_before_anything_has_ended_a_message_counts_as_a_second(database, ledger, start_daemon):
    port = free_port()
    effects(database, 10, seconds=60)
    start_daemon(
        database, ledger, metrics_port=port, threads=2, fleet_seconds=1, scale_target_wait_seconds=2
    ).wait_ready()
    wait_until(lambda: scale(port).get("backlog") == 10)
    assert scale(port).get("workers") == 3, "two threads, two seconds"


@pytest.mark.slow
def test_a_schema_that_does_not_fit_any_more_turns_ready(database, ledger, start_daemon):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port, fleet_seconds=1).wait_ready()
    wait_until(lambda: problems(port, "/readyz") == [])
    database.query(
        "insert into packhorse_migrations (name, checksum, release, objects) values ('9999_from_the_future', 'x', '99.0.0', '{}')"
    )
    wait_until(lambda: any("9999_from_the_future" in problem for problem in problems(port, "/readyz") or []))
    assert problems(port, "/livez") == []
    assert daemon.stop() == 0


def test_a_read_only_database_is_named_by_readiness_and_once_in_the_log(database, ledger, start_daemon):
    """From the start on, then while it works: with what says so in the server's configuration."""
    name = "the database is read-only: default_transaction_read_only is on"
    database.server.command("alter database {} set default_transaction_read_only = on", database.name)
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port, fleet_seconds=1)
    wait_until(lambda: any(name in problem for problem in problems(port, "/readyz") or []))
    wait_until(lambda: name in daemon.log)
    database.server.command("alter database {} reset default_transaction_read_only", database.name)
    kick(database)
    wait_until(lambda: problems(port, "/readyz") == [], 30)
    assert daemon.log.count(name) == 1, daemon.log
    database.server.command("alter database {} set default_transaction_read_only = on", database.name)
    kick(database)
    wait_until(lambda: any(name in problem for problem in problems(port, "/readyz") or []), 30)
    wait_until(lambda: "database_read_only" in daemon.log)
    kick(database)
    nap(2.5)  # it has looked again, and says nothing
    assert daemon.log.count("database_read_only") == 1
    database.server.command("alter database {} reset default_transaction_read_only", database.name)
    kick(database)
    wait_until(lambda: problems(port, "/readyz") == [], 30)
    assert daemon.stop() == 0


def kick(database):
    """A setting counts in new sessions."""
    database.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'packhorse %' and datname = current_database()"
    )


@pytest.mark.slow
def test_metrics_are_served_while_a_worker_drains_and_it_is_not_ready(database, ledger, start_daemon):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port, threads=1).wait_ready()
    effects(database, 1, "m", "sleeper", seconds=3)
    wait_until(lambda: metric(port, "worker_busy_threads") == 1)
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: problems(port, "/readyz") == ["draining"])
    assert metric(port, "worker_draining") == 1 and problems(port, "/livez") == []
    assert daemon.process.wait(20) == 0


def worker_pids(daemon):
    """Pids of the workers below the parent: those that have said so."""
    started = [json.loads(line)["pid"] for line in daemon.log.splitlines() if "worker_started" in line]
    return sorted(set(daemon.children()) & set(started))

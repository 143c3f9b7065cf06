"""O4: alive means that work goes on. Things are broken on purpose; a hung process is replaced by its
parent.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.process.test_endpoints import worker_pids
from tests.support.accounting import effects, enqueue, quick_backoff
from tests.support.http import free_port, metric, problems
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

QUICK = {"hang_seconds": 5, "call_deadline_seconds": 1, "connect_timeout_seconds": 1}


def start(start_daemon, database, ledger, **settings):
    port = free_port()
    daemon = start_daemon(
        database, ledger, actors="tests.support.breaking", metrics_port=port, threads=2, **settings
    ).wait_ready()
    wait_until(lambda: problems(port, "/readyz") == [])
    return daemon, port


def break_it(database, ledger, what):
    enqueue(database, [{"message_type": "break", "payload": {"what": what}}])
    wait_until(lambda: ledger.counts("start")[what.replace(" ", "-")] >= 1)


@pytest.mark.parametrize(
    ("what", "loop"),
    [
        ("block fetcher", "fetcher"),
        pytest.param("kill fetcher", "fetcher", marks=pytest.mark.slow),
        ("kill heartbeat", "heartbeat"),
        pytest.param("block timekeeper", "timekeeper", marks=pytest.mark.slow),
    ],
)
def test_a_loop_that_does_not_tick_is_seen_and_its_process_replaced(
    database, ledger, start_daemon, what, loop
):
    quick_backoff(database)
    daemon, port = start(start_daemon, database, ledger, **QUICK)
    before = worker_pids(daemon)
    break_it(database, ledger, what)
    wait_until(lambda: "child_hung" in daemon.log, 30)
    assert loop in daemon.log.split("child_hung")[1].splitlines()[0]
    wait_until(lambda: worker_pids(daemon) and not set(before) & set(worker_pids(daemon)), 20)
    wait_until(lambda: problems(port, "/livez") == [] and problems(port, "/readyz") == [], 20)
    assert metric(port, "process_restarts_total", reason="hung") == 1
    effects(database, 1, "later")
    wait_until(lambda: ledger.counts("effect")["later0"] == 1, 30)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_stopped_child_is_killed_and_replaced(database, ledger, start_daemon):
    quick_backoff(database)
    daemon, port = start(start_daemon, database, ledger, processes=2, **QUICK)
    daemon.wait_ready(2)
    victim = worker_pids(daemon)[0]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: victim not in daemon.children(), 30)
    wait_until(lambda: len(worker_pids(daemon)) == 2, 20)
    assert metric(port, "process_restarts_total", reason="hung") == 1
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_whole_group_that_stood_still_is_not_blamed(database, ledger, start_daemon):
    """The host slept: no loop ticked, the parent's neither. Nobody is killed for it."""
    daemon, port = start(start_daemon, database, ledger, lease_seconds=60, **QUICK)
    before = worker_pids(daemon)
    os.killpg(daemon.process.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() - stopped_at > 8, 20)
    os.killpg(daemon.process.pid, signal.SIGCONT)
    effects(database, 1, "later")
    wait_until(lambda: ledger.counts("effect")["later0"] == 1, 20)
    wait_until(lambda: problems(port, "/livez") == [], 20)
    assert worker_pids(daemon) == before and "child_hung" not in daemon.log
    assert daemon.stop() == 0


@pytest.mark.slow
def test_the_probe_sees_a_stopped_process_before_anybody_acts(database, ledger, start_daemon):
    """The parent itself stands still: only the probe is left to say so."""
    daemon, port = start(start_daemon, database, ledger, **QUICK)
    os.kill(daemon.process.pid, signal.SIGSTOP)
    wait_until(lambda: any("parent" in problem for problem in problems(port, "/livez") or []), 20)
    os.kill(daemon.process.pid, signal.SIGCONT)
    wait_until(lambda: problems(port, "/livez") == [], 20)
    assert daemon.stop() == 0


def test_a_stopped_database_turns_ready_but_not_alive(own_server, ledger, start_daemon):
    database = own_server.create_database()
    daemon, port = start(start_daemon, database, ledger)
    own_server.stop("immediate")
    wait_until(lambda: problems(port, "/readyz"))
    assert problems(port, "/livez") == [] and problems(port, "/startupz") == []
    own_server.start()
    wait_until(lambda: problems(port, "/readyz") == [], 20)
    wait_until(lambda: (metric(port, "db_errors_total", **{"class": "unavailable"}) or 0) > 0)
    assert metric(port, "claims_total", result="error") > 0
    assert daemon.stop() == 0


def test_before_the_database_was_ever_there_it_is_alive_but_neither_started_nor_ready(start_daemon):
    port = free_port()
    daemon = start_daemon("postgresql://nobody@127.0.0.1:1/none", metrics_port=port)
    wait_until(lambda: "database_unavailable" in daemon.log)
    wait_until(lambda: problems(port, "/startupz") and problems(port, "/readyz"))
    assert problems(port, "/livez") == []
    assert daemon.stop(15) == 0


@pytest.mark.slow
def test_a_lane_that_lost_its_wake_ups_is_replaced(database, ledger, start_daemon):
    quick_backoff(database)
    daemon, _ = start(start_daemon, database, ledger, hold_seconds=60, **QUICK)
    enqueue(database, [{"message_type": "lose_wakeups"}])
    wait_until(lambda: ledger.counts("start")["lose_wakeups"] == 1)
    effects(database, 20, "m")
    wait_until(lambda: "child_hung" in daemon.log, 30)
    assert "pool" in daemon.log.split("child_hung")[1].splitlines()[0]
    wait_until(lambda: len(ledger.counts("effect")) == 20, 60)
    assert daemon.stop() == 0

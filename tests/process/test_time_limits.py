"""W4: a soft limit interrupts the handler; past a hard limit the process is replaced, and nobody else pays
for it.
"""

from __future__ import annotations

import os
import time

import pytest

from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import load_settings
from packhorse.worker.exits import EXIT_REPLACED
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from tests.support.accounting import effects, enqueue, quick_backoff, wait_for_end
from tests.support.harness import QUICK
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_soft_limit_interrupts_the_handler_and_is_retried(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger).wait_ready()
    (pid,) = daemon.children()
    enqueue(
        database,
        [
            {
                "message_type": "sleeper",
                "payload": {"key": "m"},
                "max_attempts": 2,
                "options": {"time_limit": 200},
            }
        ],
    )
    wait_for_end(database, 20)
    assert ledger.counts("start") == {"m": 2} and ledger.counts("effect") == {}
    assert database.query("select reason, error_class, attempt from dead_letters") == [
        ("failed", "TimeLimitExceeded", 2)
    ]
    assert daemon.children() == [pid], "a soft limit costs no process"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_hard_limit_replaces_the_process_and_its_neighbours_lose_no_attempt(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=3).wait_ready()
    (pid,) = daemon.children()
    enqueue(
        database,
        [
            {"message_type": "stuck", "payload": {"key": "stuck"}, "max_attempts": 2},
            *({"message_type": "sleeper", "payload": {"key": f"n{n}", "seconds": 1.5}} for n in range(2)),
        ],
    )
    wait_until(lambda: len(ledger.lines("start")) == 3)
    waiting = effects(database, 20, "w", seconds=0.02)
    wait_for_end(database, 40)
    assert database.query("select reason, error_class, attempt, crashes from dead_letters") == [
        ("failed", "HardTimeLimitExceeded", 2, 0)
    ]
    assert ledger.counts("start")["stuck"] == 2
    assert database.query(
        "select max(attempt), max(crashes), count(*) from message_archive where state = 'done'"
    ) == [(1, 0, 2 + len(waiting))]
    assert ledger.counts("start")["n0"] == ledger.counts("start")["n1"] == 1, (
        "a running neighbour finished before the process went"
    )
    wait_until(lambda: daemon.children() and pid not in daemon.children())
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_after_a_hard_limit_the_retry_starts_when_the_first_attempt_is_gone(database, ledger, start_daemon):
    """A neighbour keeps the process draining; the handler that ignored its limits could do anything
    meanwhile.
    """
    quick_backoff(database)
    start_daemon(database, ledger, threads=2).wait_ready()
    enqueue(
        database,
        [
            {"message_type": "sleeper", "payload": {"key": "neighbour", "seconds": 4}},
            {
                "message_type": "stuck",
                "payload": {"key": "stuck"},
                "max_attempts": 2,
                "conversation_key": "c",
            },
            {"message_type": "effect", "payload": {"key": "next"}, "conversation_key": "c"},
        ],
    )
    wait_until(lambda: len(ledger.lines("start")) == 2)
    first = int(ledger.lines("start")[0][2])
    start_daemon(database, ledger, threads=2).wait_ready()
    wait_until(lambda: ledger.counts("start")["stuck"] == 2, 20)
    assert not os.path.exists(f"/proc/{first}"), "the first attempt still lives"
    wait_for_end(database, 20)
    assert ledger.counts("start") == {"neighbour": 1, "stuck": 2, "next": 1}
    assert database.query("select reason, error_class, attempt, crashes from dead_letters") == [
        ("failed", "HardTimeLimitExceeded", 2, 0)
    ]


@pytest.mark.slow
def test_after_a_hard_limit_the_policy_of_the_actor_decides(database, ledger, start_daemon):
    """Nobody who ends such an attempt has the actor's code: what it says of retries is in the database."""
    daemon = start_daemon(database, ledger, threads=3).wait_ready()
    enqueue(
        database, [{"message_type": kind, "payload": {"key": kind}} for kind in ("stuck_once", "stuck_often")]
    )
    wait_for_end(database, 60)
    assert database.query("select message_type, reason, attempt from dead_letters order by 1") == [
        ("stuck_often", "failed", 4),
        ("stuck_once", "failed", 1),
    ]
    assert ledger.counts("start") == {"stuck_once": 1, "stuck_often": 4}
    assert [row[1] for row in ledger.lines("gave_up")] == ["stuck_once:stuck_once:0"]
    assert daemon.stop() == 0


def test_a_hard_limit_does_not_stop_the_watch_over_other_leases(server, database, monkeypatch):
    """The database says nothing: who would write the overdue message's outcome now would wait."""
    proxy = Proxy(server.socket_dir)
    monkeypatch.setattr(
        "packhorse.worker.runtime.process.load_broker", lambda settings: PostgresBroker(settings=settings)
    )
    settings = {
        **QUICK,
        "database_url": proxy.url(database.name, ROLE),
        "queues": ("default",),
        "connect_timeout_seconds": 20,
    }
    enqueue(database, [{"message_type": "stuck", "payload": {"key": key}} for key in "ab"])
    process = WorkerProcess(load_settings({}, **settings), RunningIds(4))
    process.fetcher.claims.intakes[0].types.append("stuck")
    process.fetcher.run_once()
    overdue, other = process.pool.ready
    for slot, message in zip(process.pool.slots, (overdue, other), strict=False):
        slot.enter(message, time.monotonic())
        slot.interrupted = KeyError  # told already
    proxy.go_deaf()
    overdue.hard_deadline, other.lease_until = time.monotonic(), time.monotonic() + 0.3
    fenced: list[bool] = []
    process.timekeeper._on_lease_over = lambda: fenced.append(True)
    process.timekeeper.start()
    try:
        wait_until(lambda: fenced, 10, "long before a connection is given up")
    finally:
        proxy.close()
        process.timekeeper.stop()
        assert process.timekeeper.wait(10)
    assert process.exit_code == EXIT_REPLACED and overdue.stage is AttemptStage.RUNNING

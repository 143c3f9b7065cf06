"""W4: a soft limit interrupts the handler; past a hard limit the process is replaced, and nobody else pays for it."""

from __future__ import annotations

import pytest

from tests.support.accounting import effects, enqueue, quick_backoff, wait_for_end
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_soft_limit_interrupts_the_handler_and_is_retried(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger).wait_ready()
    (pid,) = daemon.children()
    enqueue(database, [{"message_type": "sleeper", "payload": {"key": "m"}, "max_attempts": 2, "options": {"time_limit": 200}}])
    wait_for_end(database, 20)
    assert ledger.counts("start") == {"m": 2} and ledger.counts("effect") == {}
    assert database.query("select reason, error_class, attempt from dead_letters") == [("failed", "TimeLimitExceeded", 2)]
    assert daemon.children() == [pid], "a soft limit costs no process"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_hard_limit_replaces_the_process_and_its_neighbours_lose_no_attempt(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=3).wait_ready()
    (pid,) = daemon.children()
    enqueue(database, [{"message_type": "stuck", "payload": {"key": "stuck"}, "max_attempts": 2},
                       *({"message_type": "sleeper", "payload": {"key": f"n{n}", "seconds": 1.5}} for n in range(2))])
    wait_until(lambda: len(ledger.lines("start")) == 3)
    waiting = effects(database, 20, "w", seconds=0.02)
    wait_for_end(database, 40)
    assert database.query("select reason, error_class, attempt, crashes from dead_letters") == [("failed", "HardTimeLimitExceeded", 2, 0)]
    assert ledger.counts("start")["stuck"] == 2
    assert database.query("select max(attempt), max(crashes), count(*) from message_archive where state = 'done'") == [(1, 0, 2 + len(waiting))]
    assert ledger.counts("start")["n0"] == ledger.counts("start")["n1"] == 1, "a running neighbour finished before the process went"
    wait_until(lambda: daemon.children() and pid not in daemon.children())
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log

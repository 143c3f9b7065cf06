"""P8: what becomes of the log lines never stops the work."""

from __future__ import annotations

import signal

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.pipes import full_pipe
from tests.support.waiting import wait_until


@pytest.fixture
def unread_pipe():
    with full_pipe() as (_, write):
        yield write


@pytest.mark.slow
def test_a_log_that_nobody_reads_stops_neither_work_nor_reload_nor_drain(
    database, ledger, start_daemon, unread_pipe
):
    daemon = start_daemon(database, ledger, stderr=unread_pipe, log_outcomes="all", processes=1)
    effects(database, 20, "m")
    wait_for_end(database, 30)
    (before,) = daemon.children()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: len(daemon.children()) == 1 and before not in daemon.children(), 30)
    assert daemon.stop() == 0

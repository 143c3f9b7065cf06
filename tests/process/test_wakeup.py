"""Q10: an idle worker starts a new message by NOTIFY; polling alone stays correct; a lost LISTEN connection
comes back.
"""

from __future__ import annotations

import statistics
import time

import pytest

from tests.support.accounting import effects
from tests.support.waiting import wait_until

#: Far longer than any of these tests waits: what starts in time was not found by polling.
LONG_POLL = 60


def _latencies(database, ledger, count, prefix):
    result = []
    for number in range(count):
        key = f"{prefix}{number}-0"
        sent = time.monotonic()
        effects(database, 1, f"{prefix}{number}-")
        wait_until(lambda key=key: ledger.counts("effect")[key] == 1, 10)
        result.append(time.monotonic() - sent)
    return result


def _sleeping(database):
    """An idle worker has asked for NOTIFY."""
    return database.value(
        "select coalesce(bool_or(wake_until > clock_timestamp()), false) from queue_wakeups"
    )


def test_an_idle_worker_is_woken_by_notify(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, poll_seconds=LONG_POLL).wait_ready()
    wait_until(lambda: _sleeping(database))
    # wait_until looks every 20 ms and each enqueue opens a connection: this is an upper bound, far below any
    # poll
    assert statistics.median(_latencies(database, ledger, 10, "m")) < 0.5
    assert daemon.stop() == 0


@pytest.mark.slow
def test_without_listen_the_poll_finds_new_messages(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, wakeups="poll", poll_seconds=0.2).wait_ready()
    _latencies(database, ledger, 5, "m")
    assert (
        database.value("select count(*) from pg_stat_activity where application_name = 'packhorse listen'")
        == 0
    )
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_killed_listen_connection_comes_back_and_nothing_in_between_is_missed(
    database, ledger, start_daemon
):
    daemon = start_daemon(database, ledger, poll_seconds=LONG_POLL).wait_ready()
    listening = "select pid from pg_stat_activity where datname = current_database() and query like 'listen%%' and state = 'idle'"
    for number in range(3):
        ((pid,),) = wait_until(lambda: database.query(listening))
        wait_until(lambda: _sleeping(database))
        database.query("select pg_terminate_backend(%s)", pid)
        effects(database, 1, f"between{number}-")  # its NOTIFY may have nobody to go to
        wait_until(lambda number=number: ledger.counts("effect")[f"between{number}-0"] == 1, 15)
        wait_until(lambda pid=pid: (rows := database.query(listening)) and rows[0][0] != pid)
        _latencies(database, ledger, 2, f"after{number}-")
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_delayed_message_starts_when_it_is_due_though_nobody_notifies(database, ledger, start_daemon):
    """run_at in the future sends no NOTIFY; the default poll finds it within its interval."""
    daemon = start_daemon(database, ledger, poll_seconds=1).wait_ready()
    database.query(
        "select enqueue_message('default', 'effect', '{\"key\": \"later\"}', p_delay => '2 seconds')"
    )
    wait_until(lambda: ledger.counts("effect")["later"] == 1, 10)
    assert database.value("select claimed_at - created_at >= interval '1.9 seconds' from all_messages")
    assert daemon.stop() == 0


@pytest.mark.slow
def test_one_worker_asleep_and_one_busy_both_get_work(database, ledger, start_daemon):
    busy = start_daemon(database, ledger, threads=1, poll_seconds=LONG_POLL).wait_ready()
    idle = start_daemon(database, ledger, threads=1, poll_seconds=LONG_POLL).wait_ready()
    wait_until(lambda: _sleeping(database))
    effects(database, 12, "m", seconds=0.3)
    wait_until(lambda: len(ledger.lines("effect")) == 12, 20)
    assert len({line[2] for line in ledger.lines("effect")}) == 2, "one of them slept through"
    assert busy.stop() == 0 and idle.stop() == 0

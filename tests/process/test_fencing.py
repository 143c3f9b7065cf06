"""P2: a second start only when the first holder was lost; a stale holder that wakes up changes nothing."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, quick_backoff, wait_for_end
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_stopped_holder_that_wakes_up_changes_nothing(database, ledger, start_daemon):
    quick_backoff(database)
    first = start_daemon(database, ledger, threads=1).wait_ready()
    (ident,) = effects(database, 1, "m", seconds=1.0)
    wait_until(lambda: ledger.counts("start")["m0"] == 1)
    (stopped,) = first.children()
    os.kill(stopped, signal.SIGSTOP)
    (holder_before,) = database.query("select lease_holder from message_queue where id = %s", ident)
    second = start_daemon(database, ledger, threads=1).wait_ready()
    wait_until(lambda: ledger.counts("start")["m0"] == 2, 30, "the second daemon rescues it after the lease")
    wait_for_end(database)
    (row,) = database.query("select lease_holder, attempt, crashes from message_archive where id = %s", ident)
    assert row[0] != holder_before[0] and row[1:] == (1, 1)
    os.kill(stopped, signal.SIGCONT)
    # it is told so: by the answer to its completion, by its heartbeat, or by its own clock, which ends the
    # process
    wait_until(lambda: any(event in first.log for event in ("lease_lost", "worker_fenced")), 20)
    assert second.stop() == 0
    (later,) = effects(database, 1, "later")
    wait_until(lambda: ledger.counts("effect")["later0"] == 1, 20)
    wait_for_end(database)
    assert assert_every_message_ended_once(database, [ident, later]) == {ident: "done", later: "done"}
    assert database.query(
        "select lease_holder, attempt, crashes from message_archive where id = %s", ident
    ) == [row]
    assert first.stop() == 0


@pytest.mark.slow
def test_a_worker_out_of_contact_stops_its_handler_before_the_lease_ends(own_server, ledger, start_daemon):
    """Self-fencing: the handler is interrupted while its lease still holds; it never runs beside a second
    start.
    """
    database = own_server.create_database()
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=1, lease_seconds=6, call_deadline_seconds=1).wait_ready()
    effects(database, 1, "m", "sleeper", seconds=30)
    wait_until(lambda: ledger.counts("start")["m0"] == 1)
    own_server.stop("immediate")
    wait_until(lambda: "lease_not_renewed" in daemon.log or "worker_fenced" in daemon.log, 20)
    own_server.start()
    wait_until(lambda: ledger.counts("start")["m0"] == 2, 30)
    assert ledger.counts("effect")["m0"] == 0
    database.query("update message_queue set cancel_requested_at = clock_timestamp()")
    wait_for_end(database)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_heartbeat_keeps_a_handler_longer_than_its_lease(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    other = start_daemon(database, ledger, threads=2).wait_ready()
    effects(database, 2, "long", "sleeper", seconds=9)  # the lease is 4 s
    wait_for_end(database, 30)
    assert ledger.counts("start") == {"long0": 1, "long1": 1}
    assert daemon.stop() == 0 and other.stop() == 0


@pytest.mark.slow
def test_a_running_message_can_be_cancelled(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=1).wait_ready()
    (ident,) = effects(database, 1, "m", "sleeper", seconds=60)
    wait_until(lambda: ledger.counts("start")["m0"] == 1)
    assert database.value("select cancel_message(%s, 'not wanted')", ident) == "requested"
    wait_for_end(database, 20)
    assert database.query("select state, attempt from all_messages") == [("cancelled", 1)]
    assert ledger.counts("effect")["m0"] == 0
    assert daemon.stop() == 0

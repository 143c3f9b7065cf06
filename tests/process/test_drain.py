"""W6: SIGTERM finishes what runs and hands back the rest; a second one, or the grace limit, interrupts. Exit
codes.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.waiting import wait_until


def _states(database):
    return dict(database.query("select payload ->> 'key', state || ' ' || attempt from all_messages"))


def test_sigterm_finishes_what_runs_and_hands_back_the_rest(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=2, hold_seconds=30).wait_ready()
    effects(database, 2, "running", seconds=1.2)
    wait_until(lambda: len(ledger.lines("start")) == 2)
    effects(database, 3, "waiting")
    assert daemon.stop() == 0
    states = _states(database)
    assert states == {
        "running0": "done 1",
        "running1": "done 1",
        "waiting0": "pending 0",
        "waiting1": "pending 0",
        "waiting2": "pending 0",
    }
    assert len(ledger.lines("start")) == 2
    assert database.value("select count(*) from workers") == 0, "a drained worker has deregistered"
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_messages_that_were_claimed_and_never_started_are_handed_back(database, ledger, start_daemon):
    """More is claimed than threads can start while handlers are quick; a stop gives it back, no attempt
    spent.
    """
    effects(database, 3000, "m", seconds=0.001)
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    wait_until(lambda: len(ledger.lines("effect")) > 200)
    assert daemon.stop() == 0
    done = len(ledger.lines("effect"))
    assert ledger.counts("start") == ledger.counts("effect")
    assert sorted(
        database.query("select state, attempt, crashes, count(*) from all_messages group by 1, 2, 3")
    ) == [("done", 1, 0, done), ("pending", 0, 0, 3000 - done)]


@pytest.mark.slow
def test_a_second_sigterm_interrupts_and_spends_no_attempt(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=1, drain_seconds=60).wait_ready()
    effects(database, 1, "m", "sleeper", seconds=60)
    wait_until(lambda: ledger.lines("start"))
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: database.query("select state from workers") == [("draining",)])
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(15) == 0
    assert _states(database) == {"m0": "pending 0"}
    assert ledger.counts("effect") == {}


@pytest.mark.parametrize("first", ["group", "reload", "recycling"])
@pytest.mark.slow
def test_a_child_that_is_told_twice_of_one_stop_finishes_what_runs(database, ledger, start_daemon, first):
    """A process manager signals the whole group; or the child drains already, because of a reload or by
    itself. Only a second stop of the parent interrupts."""
    daemon = start_daemon(
        database, ledger, threads=2, max_messages=1 if first == "recycling" else 0
    ).wait_ready()
    effects(database, 1, "m", seconds=2.5)
    wait_until(lambda: ledger.lines("start"))
    if first == "reload":
        daemon.signal(signal.SIGHUP)
    elif first == "recycling":
        effects(database, 1, "quick")
    if first == "group":
        os.killpg(daemon.process.pid, signal.SIGTERM)
    else:
        wait_until(lambda: database.query("select state from workers") == [("draining",)])
        daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(30) == 0
    assert ledger.counts("effect")["m0"] == 1
    assert _states(database)["m0"] == "done 1"


@pytest.mark.slow
def test_the_grace_limit_interrupts_as_a_second_signal_does(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=1, drain_seconds=0.3).wait_ready()
    effects(database, 1, "m", "sleeper", seconds=60)
    wait_until(lambda: ledger.lines("start"))
    assert daemon.stop(15) == 0
    assert _states(database) == {"m0": "pending 0"}


@pytest.mark.slow
def test_heartbeats_outlive_a_long_drain(database, ledger, start_daemon):
    """The drain takes longer than the lease (4 s): nobody rescues what the draining worker still runs
    (W5).
    """
    daemon = start_daemon(database, ledger, threads=1, drain_seconds=30).wait_ready()
    effects(database, 1, "m", "sleeper", seconds=7)
    wait_until(lambda: ledger.lines("start"))
    daemon.signal(signal.SIGTERM)
    other = start_daemon(database, ledger, threads=1).wait_ready()
    assert daemon.process.wait(20) == 0
    assert ledger.counts("start") == {"m0": 1} and _states(database) == {"m0": "done 1"}
    assert other.stop() == 0


@pytest.mark.slow
def test_a_handler_that_cannot_be_interrupted_does_not_hold_up_the_stop(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=1, drain_seconds=0.3, time_limit_seconds=300).wait_ready()
    effects(database, 1, "m", "effect", seconds=3600)  # one C call
    wait_until(lambda: ledger.lines("start"))
    assert daemon.stop(30) == 0
    assert _states(database) == {"m0": "pending 0"}


@pytest.mark.slow
def test_a_handler_that_cannot_be_interrupted_keeps_its_message_until_its_process_is_gone(
    database, ledger, start_daemon
):
    """Handed back before, it would run twice at once: the handler does not know that the worker stops
    (P2).
    """
    daemon = start_daemon(database, ledger, threads=1, drain_seconds=0.3, time_limit_seconds=300).wait_ready()
    effects(database, 1, "m", "effect", seconds=3600)
    wait_until(lambda: ledger.lines("start"))
    (child,) = daemon.children()
    daemon.signal(signal.SIGTERM)
    state = "running 1"
    with database.connect() as connection:
        while state == "running 1":
            ((state,),) = connection.execute("select state || ' ' || attempt from message_queue").fetchall()
    assert child not in daemon.children(), "it was handed back while its handler ran"
    assert daemon.process.wait(20) == 0 and state == "pending 0"
    assert "handlers_left" in daemon.log


@pytest.mark.slow
def test_a_stop_during_an_outage_ends_by_itself(own_server, ledger, start_daemon):
    database = own_server.create_database()
    daemon = start_daemon(database, ledger, threads=1, call_deadline_seconds=1).wait_ready()
    own_server.stop("immediate")
    assert daemon.stop(20) == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_what_was_handed_back_is_done_by_the_next_worker(database, ledger, start_daemon):
    first = start_daemon(database, ledger, threads=1).wait_ready()
    effects(database, 200, "m", seconds=0.005)
    wait_until(lambda: len(ledger.lines("effect")) > 5)
    assert first.stop() == 0
    second = start_daemon(database, ledger, threads=4).wait_ready()
    wait_for_end(database, 20)
    assert set(ledger.counts("effect").values()) == {1} and len(ledger.counts("effect")) == 200
    assert second.stop() == 0

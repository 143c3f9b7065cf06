"""Hundreds of coroutines in real processes, and what a fault among them does to the others (SPEC W3, W4, P1,
P2, P5).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from tests.support.accounting import (
    assert_effects_fit,
    assert_every_message_ended_once,
    effects,
    enqueue,
    live,
    wait_for_end,
)
from tests.support.waiting import wait_until

ACTORS = "tests.support.async_actors"
MANY = 300


def waiting(database, count=MANY, seconds=3.0, prefix="w"):
    return effects(database, count, prefix, "waits", seconds=seconds)


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its own task", "in a task that it made"])
def test_one_that_blocks_the_loop_past_its_hard_limit_costs_the_others_no_attempt(
    database, ledger, start_daemon, elsewhere
):
    daemon = start_daemon(database, ledger, ACTORS, drain_seconds=5, lease_seconds=6).wait_ready()
    (child,) = daemon.children()
    ids = waiting(database, 50, 2.0)
    wait_until(lambda: len(ledger.lines("start")) == 50, 20)
    (stuck,) = enqueue(
        database, [{"message_type": "blocks", "payload": {"key": "b", "elsewhere": elsewhere}}]
    )
    wait_until(
        lambda: (
            database.query("select id, error_class from dead_letters") == [(stuck, "HardTimeLimitExceeded")]
        ),
        40,
    )
    wait_for_end(database, 40)
    assert child not in daemon.children(), "the process was replaced"
    assert_every_message_ended_once(database, [*ids, stuck])
    assert database.query("select distinct attempt from message_archive") == [(1,)], (
        "no neighbour lost an attempt"
    )
    assert ledger.counts("start")["b"] == 1
    line = next(line for line in daemon.log.splitlines() if "loop_blocked" in line)
    assert f'"message_id": {stuck}' in line or f"message_id={stuck}" in line
    assert "in block" in line, "the stack says where"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_the_time_of_the_others_stands_still_while_one_blocks_the_loop(database, ledger, start_daemon):
    """Their limit is 2.5 s and they need 1.5 s; the loop is blocked for 2 s in between, and its process lives
    on.
    """
    daemon = start_daemon(database, ledger, ACTORS, time_limit_seconds=30, lease_seconds=10).wait_ready()
    before = daemon.children()
    ids = effects(database, 20, "l", "limited")
    wait_until(lambda: len(ledger.lines("start")) == 20, 20)
    enqueue(
        database,
        [
            {
                "message_type": "blocks",
                "payload": {"key": "b", "seconds": 2},
                "options": {"time_limit": 20_000},
            }
        ],
    )
    wait_for_end(database, 30)
    states = assert_every_message_ended_once(database, ids)
    assert {states[key] for key in ids} == {"done"}
    assert daemon.children() == before
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_kill_among_hundreds_costs_each_of_them_one_crash(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, ACTORS, processes=2, coroutines=MANY, threads=2).wait_ready()
    ids = waiting(database, MANY)
    effects(database, 20, "t", seconds=0.01)
    wait_until(lambda: sum(ledger.counts("start").values()) >= MANY, 30)
    os.kill(int(ledger.lines("start")[0][2]), signal.SIGKILL)
    effects(database, 20, "u", seconds=0.01)
    wait_for_end(database, 60)
    states = assert_every_message_ended_once(database, ids)
    assert set(states.values()) == {"done"}
    assert database.value("select max(crashes) from message_archive") == 1
    assert_effects_fit(database, ledger)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_drain_lets_them_finish_and_hands_back_the_rest_without_an_attempt(database, ledger, start_daemon):
    each = 2500
    daemon = start_daemon(
        database, ledger, ACTORS, coroutines=2 * each, drain_seconds=10, lease_seconds=10
    ).wait_ready()
    long = waiting(database, each, 300.0, "l")
    short = waiting(database, each, 5.0, "s")
    wait_until(lambda: len(ledger.lines("start")) == 2 * each, 60)
    assert daemon.stop() == 0
    rows = dict(database.query("select id, state from all_messages"))
    assert {rows[key] for key in short} == {"done"} and {rows[key] for key in long} == {"pending"}
    assert database.query("select distinct attempt, crashes from message_queue") == [(0, 0)]


@pytest.mark.slow
def test_an_outage_while_hundreds_wait_is_waited_out(database, ledger, start_daemon, server):
    """The connections go while they wait and while they end; nothing runs twice, nothing is lost."""
    daemon = start_daemon(database, ledger, ACTORS, coroutines=MANY, lease_seconds=10).wait_ready()
    ids = waiting(database, MANY, 2.0)
    wait_until(lambda: len(ledger.lines("start")) == MANY, 30)
    for _ in range(4):
        database.query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'packhorse %' and datname = current_database()"
        )
        wait_until(lambda: live(database) >= 0, 5)
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert set(ledger.counts("start").values()) == {1}
    assert daemon.stop() == 0


@pytest.mark.slow
def test_transactional_coroutines_write_once_whatever_is_killed(database, ledger, start_daemon):
    database.query("create table public.written (key text); grant insert on public.written to public")
    daemon = start_daemon(database, ledger, ACTORS, processes=2, async_connections=4).wait_ready(2)
    ids = effects(database, 200, "x", "writes")
    for _ in range(3):
        wait_until(lambda: len(ledger.lines("start")) >= 20, 20)
        pid = int(ledger.lines("start")[-1][2])
        with suppress(ProcessLookupError):  # it was killed in the round before, and nothing has started since
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda killed=pid: len({*daemon.children()} - {killed}) >= 2, 20)
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert database.query("select count(*), count(distinct key) from public.written") == [(200, 200)]
    assert daemon.stop() == 0

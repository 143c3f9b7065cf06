"""Duties (worker/observe/duties.py): since when a loop cannot do what it must, in memory that others read."""

from __future__ import annotations

import os
import time

import pytest

from packhorse.worker.errors import StoreRejected, StoreUnavailable
from packhorse.worker.observe.duties import BUDGET_SECONDS, DUTIES, VITAL_BUDGET_SECONDS, Duties
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.observe.probes import ready, warnings
from packhorse.worker.observe.process_stats import CONTACT_AT, REGISTERED
from packhorse.worker.service import Service
from packhorse.worker.store.workers import UPKEEP_STEPS

#: Duties note failures by the clock of this machine, which may have started a minute ago.
NOW = time.monotonic()


def texts(duties, now=NOW):
    return [problem.text for problem in duties.problems(now)]


def a_board(children=1):
    """A worker that is ready at NOW."""
    fleet_stats = FleetStats(children)
    for stats in fleet_stats.children:
        stats.states[REGISTERED] = 1
        stats.states[CONTACT_AT] = NOW
    return fleet_stats


def is_ready(fleet_stats):
    return ready(fleet_stats, NOW, contact_seconds=20, budget_seconds=30)


def refused(sqlstate="42501"):
    error = StoreRejected("no")
    error.sqlstate = sqlstate
    return error


def test_a_duty_is_a_problem_once_it_has_failed_for_longer_than_its_budget_until_it_is_done():
    duties = Duties()
    duties.failing("rescue", refused(), began=NOW)
    assert texts(duties, NOW + BUDGET_SECONDS) == []
    assert texts(duties, NOW + BUDGET_SECONDS + 1) == [
        f"rescue has failed for {BUDGET_SECONDS + 1:.0f} s (42501)"
    ]
    duties.failing("rescue", StoreUnavailable("gone"), began=NOW + 30)
    assert texts(duties, NOW + 31) == ["rescue has failed for 31 s (StoreUnavailable)"], (
        "since the first failure, by the last cause"
    )
    duties.well("rescue")
    assert texts(duties, NOW + 100) == [] and duties.failing_seconds(NOW + 100) == {}


def test_what_waits_for_a_duty_is_told():
    duties = Duties()
    duties.failing("complete", "23514", 20, began=NOW)
    assert texts(duties, NOW + 31) == ["complete has failed for 31 s (23514), 20 messages wait"]
    duties.well("complete")
    duties.failing("complete", "23514", began=NOW + 40)
    assert texts(duties, NOW + 71) == ["complete has failed for 31 s (23514)"]


def test_a_completion_that_failed_is_not_told_for_ever_when_nothing_is_left_to_complete():
    duties = Duties()
    duties.failing("complete", "23514", 1)
    duties.failing("claim", "23514")
    now = time.monotonic()
    assert [text.split()[0] for text in texts(duties, now + 299)] == ["claim", "complete"]
    assert [text.split()[0] for text in texts(duties, now + 301)] == ["claim"], (
        "it is tried again in any case"
    )


def test_a_duty_that_nobody_does_is_overdue():
    duties = Duties()
    duties.expect("beat", 6.0)
    now = time.monotonic()
    assert texts(duties, now + 6 + VITAL_BUDGET_SECONDS - 1) == []
    assert texts(duties, now + 30) == ["beat was last done 30 s ago"]
    duties.well("beat")
    assert texts(duties, time.monotonic() + 6) == []


def test_the_loop_is_named_only_when_none_of_its_duties_is_and_vital_ones_come_first():
    duties = Duties()
    duties.failing("heartbeat", ValueError("a bug"), began=NOW)
    assert texts(duties, NOW + 20) == ["heartbeat has failed for 20 s (ValueError)"]
    duties.failing("rescue", "42501", began=NOW)
    duties.failing("beat", "42501", began=NOW)
    assert [text.split()[0] for text in texts(duties, NOW + 20)] == ["beat", "rescue"]


def test_every_loop_that_raises_is_noted():
    class Broken(Service):
        def run_once(self):
            raise KeyError("x")

    duties, service = Duties(), Broken()
    service.noted = lambda error, began: (duties.note("timekeeper", error, began), service.stop())
    service.start()
    assert service.wait(10)
    assert texts(duties, time.monotonic() + 20)[0].startswith("timekeeper has failed for 20 s (KeyError)")


def test_a_step_of_the_upkeep_has_a_place_and_an_unknown_one_harms_nobody():
    assert set(UPKEEP_STEPS) <= {duty.name for duty in DUTIES}
    duties = Duties()
    duties.failing("upkeep_of_tomorrow", "42501", began=NOW)
    assert texts(duties, NOW + 20) == ["upkeep has failed for 20 s (42501)"]


@pytest.mark.parametrize("code", ["", "x" * 100, "é" * 40, "\0"])
def test_any_code_fits(code):
    duties = Duties()
    duties.failing("beat", code, began=NOW)
    duties.failing("rescue", "42501", began=NOW)
    assert texts(duties, NOW + 20)[1] == "rescue has failed for 20 s (42501)"


def test_another_process_reads_them():
    duties = Duties()
    if not (pid := os.fork()):
        duties.failing("claim", "57014", began=NOW)
        os._exit(0)
    os.waitpid(pid, 0)
    assert texts(duties, NOW + 20) == ["claim has failed for 20 s (57014)"]


def test_a_process_that_replaces_another_goes_on_with_what_fails():
    """A fault that ends processes would begin anew with each of them. What is not done again by itself is
    forgotten.
    """
    fleet_stats = a_board()
    duties = fleet_stats.children[0].duties
    duties.expect("rescue", 6.0)
    duties.failing("beat", "42501", began=NOW - 31)
    duties.failing("complete", "23514", 3, began=NOW - 31)
    fleet_stats.fold(0)
    assert texts(duties) == ["beat has failed for 31 s (42501)"]
    assert texts(duties, NOW + 1000) == ["beat has failed for 1031 s (42501)"], (
        "nobody was to rescue meanwhile"
    )


@pytest.mark.parametrize("vital", ["fetcher", "claim", "complete", "beat", "timekeeper", "pool", "scheduler"])
def test_one_child_that_cannot_do_what_is_vital_makes_a_worker_unready(vital):
    fleet_stats = a_board(children=2)
    fleet_stats.children[1].duties.failing(vital, "42501", began=NOW - 31)
    assert is_ready(fleet_stats) == [f"child 1: {vital} has failed for 31 s (42501)"]
    fleet_stats.children[1].duties.well(vital)
    assert is_ready(fleet_stats) == []


@pytest.mark.parametrize("duty", [duty.name for duty in DUTIES if not duty.vital])
def test_what_is_not_vital_is_said_and_leaves_it_ready(duty):
    fleet_stats = a_board(children=2)
    fleet_stats.children[1].duties.failing(duty, "42501", began=NOW - 31)
    assert is_ready(fleet_stats) == [] and warnings(fleet_stats, NOW) == [
        f"child 1: {duty} has failed for 31 s (42501)"
    ]


def test_the_first_child_tells_of_the_exporter_which_has_no_row():
    fleet_stats = a_board(children=2)
    fleet_stats.duties.failing("fleet", "42501", began=NOW - 31)
    assert [texts(stats.duties) for stats in fleet_stats.workers] == [
        ["fleet has failed for 31 s (42501)"],
        [],
    ]
    assert warnings(fleet_stats, NOW) == ["fleet has failed for 31 s (42501)"], "once"

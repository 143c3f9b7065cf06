"""What the parent concludes from ticks, and what it tells systemd (worker/fleet/monitor.py,
observe/systemd.py, observe/probes.py).
"""

from __future__ import annotations

import os

import pytest

from packhorse.worker.fleet.monitor import STANDSTILL_SECONDS, Monitor
from packhorse.worker.observe import probes
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.observe.process_stats import (
    CLAIM_FAILING,
    CONTACT_AT,
    DRAINING,
    LOOPS,
    QUIET,
    REGISTERED,
)
from packhorse.worker.observe.systemd import Notifier
from tests.support.notify import Manager

BUDGET = 30.0


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def pass_(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr("packhorse.worker.fleet.monitor.time.monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def manager(tmp_path):
    with Manager(str(tmp_path / "notify")) as manager:
        yield manager


def working(fleet_stats, now, children=None):
    for stats in fleet_stats.workers[:children]:
        stats.states[REGISTERED] = 1
        stats.states[CONTACT_AT] = now
        for loop in LOOPS:
            stats.tick(loop, now)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_late_loop_of_one_child_is_not_alive(loop):
    fleet_stats = FleetStats(2)
    working(fleet_stats, 1000.0)
    assert probes.alive(fleet_stats, 1000.0 + BUDGET, BUDGET) == []
    for other in LOOPS:
        fleet_stats.children[1].tick(other, 1000.0 + (0 if other == loop else BUDGET))
    fleet_stats.children[0].states[:] = fleet_stats.children[0].states
    for other in LOOPS:
        fleet_stats.children[0].tick(other, 1000.0 + BUDGET)
    (problem,) = probes.alive(fleet_stats, 1001.0 + BUDGET, BUDGET)
    assert "child 1" in problem and loop in problem


def test_a_loop_that_has_not_begun_or_has_ended_is_not_late():
    fleet_stats = FleetStats(1)
    assert probes.alive(fleet_stats, 5000.0, BUDGET) == []
    working(fleet_stats, 1000.0)
    for loop in LOOPS:
        fleet_stats.children[0].tick(loop, 0.0)
    assert probes.alive(fleet_stats, 5000.0, BUDGET) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((CLAIM_FAILING, 1.0), "claim failed"),
        ((DRAINING, 1.0), "draining"),
        ((QUIET, 1.0), "quiet"),
        ((REGISTERED, 0.0), "not registered"),
        ((CONTACT_AT, 900.0), "not answered"),
    ],
)
def test_ready_needs_a_child_that_claims(change, says):
    fleet_stats = FleetStats(2)
    working(fleet_stats, 1000.0)
    fleet_stats.children[0].states[change[0]] = change[1]
    assert probes.ready(fleet_stats, 1001.0, 20, BUDGET) == [], "the other one would take a message"
    fleet_stats.children[1].states[change[0]] = change[1]
    found = probes.ready(fleet_stats, 1001.0, 20, BUDGET)
    assert len(found) == 2 and says in found[0]


def test_a_child_is_not_blamed_for_time_in_which_the_parent_did_not_look_either(clock):
    fleet_stats = FleetStats(1)
    watch = Monitor(fleet_stats, Notifier({}), BUDGET)
    working(fleet_stats, clock.now)
    watch.look(1, False, False)
    clock.pass_(3600)
    watch.look(1, False, False)
    assert watch.hung(0) == []
    for _ in range(int(BUDGET)):
        clock.pass_(1)
        watch.look(1, False, False)
    assert watch.hung(0) == []
    clock.pass_(1)
    assert watch.hung(0) == list(LOOPS), "from then on it has the usual time"


def test_systemd_hears_of_the_whole_life(clock, manager):
    fleet_stats = FleetStats(1, [lambda: 2])
    watch = Monitor(
        fleet_stats, Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "10000000"}), BUDGET
    )
    watch.look(1, False, False)
    assert manager.all("READY") == [] and manager.all("EXTEND_TIMEOUT_USEC") == ["15000000"], (
        "the start may take as long as the database is away"
    )
    working(fleet_stats, clock.now)
    watch.look(1, False, False)
    assert manager.all("READY") == ["1"]
    watch.reloading()
    clock.pass_(1)
    watch.look(1, False, True)
    assert manager.order("READY", "RELOADING") == ["READY", "RELOADING"]
    watch.look(1, False, False)
    assert manager.order("READY", "RELOADING") == ["READY", "RELOADING", "READY"]
    assert manager.all("MONOTONIC_USEC")[0].isdecimal()
    watch.stopping()
    for _ in range(3):
        clock.pass_(5)
        watch.look(1, True, False)
    assert manager.all("STOPPING") == ["1"] and manager.all("EXTEND_TIMEOUT_USEC")[1:] == ["15000000"] * 3
    assert manager.all("STATUS")[-1] == "draining: 1 processes, 2 of 0 threads busy"


def test_the_watchdog_is_fed_at_half_its_interval_and_only_while_every_loop_ticks(clock, manager):
    fleet_stats = FleetStats(1)
    watch = Monitor(
        fleet_stats, Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000000"}), 5.0
    )
    for _ in range(30):
        clock.pass_(1)
        working(fleet_stats, clock.now)
        watch.look(1, False, False)
    assert len(manager.all("WATCHDOG")) == 3
    for _ in range(30):
        clock.pass_(1)
        for loop in LOOPS[1:]:
            fleet_stats.children[0].tick(loop, clock.now)
        watch.look(1, False, False)
    assert len(manager.all("WATCHDOG")) == 4, "once more before it was late, never after"
    clock.pass_(1)
    working(fleet_stats, clock.now)
    watch.look(1, False, False)
    assert len(manager.all("WATCHDOG")) == 5 and STANDSTILL_SECONDS < 30


def test_an_abstract_socket_is_understood():
    with Manager(f"@packhorse-test-{os.getpid()}") as manager:
        assert Notifier({"NOTIFY_SOCKET": manager.address}).send("READY=1", "STATUS=x")
        assert manager.heard() == [{"READY": "1", "STATUS": "x"}]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
        {"WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_manager_nothing_happens(environ):
    notifier = Notifier(environ)
    assert notifier.send("READY=1") is False and notifier.watchdog_seconds == 0
    assert notifier.failures == (1 if environ.get("NOTIFY_SOCKET") else 0)


def test_a_manager_that_does_not_read_does_not_stop_us(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    sent = sum(notifier.send("STATUS=" + "x" * 1000) for _ in range(5000))
    assert 0 < sent < 5000 and notifier.failures == 5000 - sent


@pytest.mark.parametrize("hang_seconds", [30.0, 3600.0])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_does_not_tick_is_named_before_its_process_is_killed(clock, loop, hang_seconds):
    fleet_stats = FleetStats(1)
    watch = Monitor(fleet_stats, Notifier({}), hang_seconds)
    working(fleet_stats, clock.now)
    for _ in range(21):
        watch.look(1, False, False)
        clock.pass_(1.0)
        for other in LOOPS:
            if other != loop:
                fleet_stats.children[0].tick(other, clock.now)
    watch.look(1, False, False)
    assert watch.hung(0) == []
    assert [problem.text for problem in fleet_stats.children[0].duties.problems(clock.now)] == [
        f"{loop} has failed for 21 s (does not tick)"
    ]
    fleet_stats.children[0].tick(loop, clock.now)
    watch.look(1, False, False)
    assert fleet_stats.children[0].duties.problems(clock.now) == []


def test_what_a_loop_itself_notes_is_left_alone_by_the_parent(clock):
    fleet_stats = FleetStats(1)
    working(fleet_stats, clock.now)
    fleet_stats.children[0].duties.failing("scheduler", "42501", began=clock.now - 15)
    Monitor(fleet_stats, Notifier({}), 30.0).look(1, False, False)
    assert [problem.code for problem in fleet_stats.children[0].duties.problems(clock.now)] == ["42501"]

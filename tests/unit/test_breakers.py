"""Circuit breakers as one process sees them: which endpoint is called, and what is told (SPEC W10)."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.worker.calls.breakers import Breaker, ServiceBreakers
from packhorse.worker.calls.declarations import declare
from packhorse.worker.store.services import EndpointState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """The breakers of one process, whose clock and database a test plays."""

    def __init__(self, *endpoints: str, fallback: tuple[str, ...] = (), away: bool = False) -> None:
        self.clock = Clock()
        self.away = away
        declaration = declare(
            "ai",
            {
                "endpoints": endpoints or ("a",),
                "fallback": fallback,
                "breaker": {"least_calls": 3, "reset_seconds": 10, "trials": 2},
            },
        )
        self.breakers = ServiceBreakers(declaration, is_away=lambda: self.away, clock=self.clock)

    def told(self, endpoint: str = "a", state: str = "closed", epoch: int = 1, **changes: Any) -> None:
        given: dict[str, Any] = {
            "forced": None,
            "retry_in": None,
            "probing": False,
            "failures_in_row": 0,
            "healthy": None,
            "changed": False,
        }
        self.breakers.apply([EndpointState("ai", endpoint, state, epoch=epoch, **(given | changes))])

    def call(self, succeeded: bool, breaker: Breaker | None = None) -> None:
        found = breaker or self.breakers.ready()
        assert found is not None
        self.breakers.record(found, found.epoch, succeeded)

    def chosen(self, count: int) -> list[str]:
        found = [self.breakers.ready() for _ in range(count)]
        return sorted(breaker.endpoint for breaker in found if breaker is not None)


def test_what_was_counted_is_told_once() -> None:
    process = Process()
    process.told()
    for succeeded in (True, False, False):
        process.call(succeeded)
    report = {
        "service": "ai",
        "endpoint": "a",
        "epoch": 1,
        "calls": 3,
        "failures": 2,
        "in_row": 2,
        "succeeded": True,
    }
    assert process.breakers.take() == [report] and process.breakers.take() == []
    process.breakers.give_back([report])
    process.call(False, process.breakers.breakers[0])
    assert process.breakers.take() == [report | {"calls": 4, "failures": 3, "in_row": 3}]


def test_a_call_that_began_under_another_epoch_counts_in_the_totals_only() -> None:
    process = Process()
    process.told()
    breaker = process.breakers.breakers[0]
    process.call(False)
    process.told(epoch=2)
    process.breakers.record(breaker, 1, False)
    assert [(r["epoch"], r["calls"], r["failures"]) for r in process.breakers.take()] == [(0, 2, 2)]


def test_calls_before_the_first_answer_of_the_database_are_kept() -> None:
    process = Process()
    process.call(False)
    assert process.breakers.unknown
    process.told(epoch=7)
    assert [(r["epoch"], r["calls"]) for r in process.breakers.take()] == [(7, 1)]


def test_the_one_with_the_fewest_failures_is_called_and_equal_ones_in_turn() -> None:
    process = Process("a", "b", "c")
    for endpoint in "abc":
        process.told(endpoint)
    assert process.chosen(6) == ["a", "a", "b", "b", "c", "c"]
    process.call(False, process.breakers.breakers[0])
    assert process.chosen(4) == ["b", "b", "c", "c"]
    process.clock.now += 3
    assert process.chosen(3) == ["a", "b", "c"], "a failure is forgiven, else it would never be asked again"


def test_fallback_endpoints_are_called_when_no_other_can_be() -> None:
    process = Process("a", "b", fallback=("c",))
    for endpoint in "abc":
        process.told(endpoint)
    process.told("a", "open", retry_in=5.0)
    assert process.chosen(2) == ["b", "b"]
    process.told("b", healthy=False)
    assert process.chosen(1) == ["c"]
    process.told("c", "open", retry_in=5.0)
    assert process.breakers.ready() is None and [b.endpoint for b in process.breakers.unhealthy()] == ["b"]


def test_an_open_breaker_is_probed_when_its_time_has_come_and_asked_for_now_and_then() -> None:
    process = Process()
    process.told(state="open", retry_in=5.0)
    assert process.breakers.ready() is None and process.breakers.to_probe() == []
    assert 5.0 < process.breakers.wait_seconds() < 6.0
    process.clock.now += 5
    assert len(process.breakers.to_probe()) == 1 and process.breakers.to_probe() == [], (
        "not by everybody at once"
    )
    process.clock.now += 0.2
    assert len(process.breakers.to_probe()) == 1


@pytest.mark.parametrize(("forced", "state", "ready"), [("open", "closed", False), ("closed", "open", True)])
def test_what_an_operator_forces_counts_more_than_what_was_seen(forced: str, state: str, ready: bool) -> None:
    process = Process()
    process.told(state=state, forced=forced, retry_in=0.0)
    process.clock.now += 1
    assert (process.breakers.ready() is not None) is ready and process.breakers.to_probe() == []


def test_while_the_database_is_away_a_process_decides_by_its_own_calls() -> None:
    process = Process(away=True)
    for succeeded in (True, False, False):
        process.call(succeeded)
    breaker = process.breakers.breakers[0]
    assert process.breakers.ready() is None and process.breakers.begin_own_probe(breaker) is None
    process.clock.now += 10
    assert (
        process.breakers.begin_own_probe(breaker) == -1 and process.breakers.begin_own_probe(breaker) is None
    ), "one at a time"
    process.breakers.end_own_probe(breaker, False)
    process.clock.now += 10
    for _ in range(2):
        assert process.breakers.begin_own_probe(breaker) == -1
        process.breakers.end_own_probe(breaker, True)
    assert process.breakers.ready() is breaker
    process.call(False)
    assert process.breakers.ready() is breaker, "the window begins anew"


def test_a_process_that_has_seen_enough_failures_in_a_row_waits_for_no_report() -> None:
    process = Process()
    process.told()
    for _ in range(12):
        assert process.breakers.ready() is not None
        process.call(False)
    assert process.breakers.ready() is None and 0 < process.breakers.wait_seconds() < 1, (
        "open until the database has answered"
    )
    process.told()
    assert process.breakers.ready() is None, "that was the answer to an earlier report"
    process.breakers.take()
    process.told()
    assert process.breakers.ready() is not None, "another process has seen a success"
    process.told(failures_in_row=11)
    process.call(True)
    process.call(False)
    assert process.breakers.ready() is not None
    process.breakers.take()
    process.told(failures_in_row=11)
    process.call(False)
    assert process.breakers.ready() is None, "what others have seen counts"


def test_failures_that_are_old_open_nothing_while_the_database_is_away() -> None:
    process = Process(away=True)
    for _ in range(2):
        process.call(False)
    process.clock.now += 61
    process.call(False)
    assert process.breakers.ready() is not None

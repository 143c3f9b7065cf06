"""Who passes on what it heard, and who calls others; what idle ones do by the clock they share (SPEC Q10)."""

from __future__ import annotations

import time
from contextlib import nullcontext
from math import inf
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from packhorse.worker.attempt.heartbeat import MOST_STRETCH, Heartbeat, stretched
from packhorse.worker.config import load_settings
from packhorse.worker.runtime.ring import FEW, POINTS, Word
from packhorse.worker.runtime.wakeups import CALL_SECONDS, PASSES, Wakeups


class Asked:
    """In the place of the connection: answers call_workers, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, int]] = []  # queues, how many are called, passed

    def connection(self) -> Any:
        return nullcontext(self)

    def execute(self, query: str, given: Any) -> Any:
        assert "call_workers" in query
        queues, numbers, passed = given
        self.calls.append((queues, len(numbers), passed))
        return SimpleNamespace(fetchone=lambda: ([f"{queue}@1+{passed}" for queue in queues],))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands until the test moves it: clock.now."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("packhorse.worker.runtime.wakeups.time.monotonic", lambda: clock.now)
    return clock


def among(asked: Asked, peers: int) -> Wakeups:
    """Of one process among so many, to whom the whole ring belongs."""
    wakeups = Wakeups(asked, UUID(int=POINTS - 1 << 96), ["q", "r"], ["a"], lambda: True)  # type: ignore[arg-type]
    wakeups.peers, wakeups.before = lambda: peers, lambda: UUID(int=0)
    return wakeups


def test_who_has_no_room_passes_on_what_it_was_told_and_not_for_ever(asked: Asked) -> None:
    wakeups = among(asked, 10)
    told: list[str] = []
    wakeups.tell = told.extend
    for text in ["q@7", "q@8", "r@9+2"]:
        assert wakeups.hear(Word.read(text))
    wakeups.answer(room=False)
    assert asked.calls == [(["q"], 1, 1), (["r"], FEW, PASSES)], "the last time to some at once"
    assert told == ["q@1+1", "r@1+3"], "also to those who hear by Redis"
    wakeups.hear(Word.read("q@7+3"))
    wakeups.answer(room=False)
    wakeups.hear(Word.read("q!"))
    wakeups.answer(room=False)
    assert len(asked.calls) == 2, "passed on often enough; told to all"


@pytest.mark.parametrize(("peers", "room"), [(10, True), (5, False)])
def test_who_has_room_or_few_peers_passes_nothing_on(asked: Asked, peers: int, room: bool) -> None:
    wakeups = among(asked, peers)
    wakeups.hear(Word.read("q@7"))
    wakeups.answer(room=room)
    wakeups.peers = lambda: 10
    wakeups.answer(room=False)
    assert asked.calls == [], "not later, either"


def called(asked: Asked, clock: Any, seconds: float, fast: bool = False) -> list[int]:
    """Milliseconds after which a process with a backlog calls others."""
    wakeups, began, times = among(asked, 10), clock.now, []
    while clock.now < began + seconds:
        wakeups.spread(backlog=True, fast=fast)
        if len(asked.calls) > len(times):
            times.append(round(1000 * (clock.now - began)))
        assert wakeups.call_at > clock.now
        clock.now += 0.001
    return times


def test_a_backlog_that_stays_is_told_to_others_one_by_one(asked: Asked, clock: Any) -> None:
    times = called(asked, clock, 5)
    assert times[:4] == pytest.approx([25, 75, 175, 375], abs=8)
    assert len(times) == pytest.approx(5 + 4, abs=1), "then each second"
    assert {(*queues, count, passed) for queues, count, passed in asked.calls} == {("q", "r", 1, PASSES)}


def test_where_handlers_are_fast_others_are_called_seldom(asked: Asked, clock: Any) -> None:
    assert called(asked, clock, 2, fast=True) == pytest.approx([100, 300, 700, 1500], abs=8)


def test_a_backlog_that_goes_soon_is_told_to_nobody(asked: Asked, clock: Any) -> None:
    wakeups = among(asked, 10)
    for _ in range(10):
        wakeups.spread(backlog=True, fast=False)
        assert wakeups.next_turn == wakeups.call_at == clock.now + CALL_SECONDS
        clock.now += CALL_SECONDS * 0.9
        wakeups.spread(backlog=True, fast=False)
        wakeups.spread(backlog=False, fast=False)
        clock.now += CALL_SECONDS
    assert asked.calls == [] and wakeups.call_at == inf


def test_few_tell_each_other_nothing_for_all_have_heard(asked: Asked) -> None:
    wakeups = among(asked, 5)
    wakeups.spread(backlog=True, fast=False)
    assert wakeups.call_at == inf


def test_the_more_they_are_the_more_seldom_each_does_what_the_clock_asks() -> None:
    assert [stretched(peers) for peers in (0, 1, 5, 10, 25, 1000)] == [1, 1, 1, 2, MOST_STRETCH, MOST_STRETCH]


def test_when_most_peers_are_gone_their_messages_are_looked_for_at_once() -> None:
    """They beat until their leases end, so they are missed when there is something to rescue."""
    heartbeat = Heartbeat(no_connection, uuid4(), load_settings({}), list, lambda message, held: None)
    heartbeat._see(100)
    later = heartbeat._next_rescue = time.monotonic() + 25
    heartbeat._see(60)
    assert heartbeat._next_rescue == later
    heartbeat._see(20)
    assert heartbeat._next_rescue <= time.monotonic()
    assert heartbeat.peers == 20


def no_connection() -> Any:
    raise AssertionError("nothing is asked")

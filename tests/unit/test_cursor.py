"""Where claims look (SPEC W2, held snapshots): every sweep sees all that lies behind the front, whatever the
slices cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.worker.runtime import cursor as module
from packhorse.worker.runtime.cursor import MARK_EVERY, PRIORITIES, ClaimCursor, Look


class Clock:
    """The module's monotonic clock, moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def text(moment: int) -> str:
    return f"2026-01-01 {moment // 3600:02}:{moment // 60 % 60:02}:{moment % 60:02}+00"


def contains(look: Look, moment: str, place: int = 4) -> bool:
    since = look.since[place] if look.since else None
    until = look.until[place] if look.until else None
    return (since is None or moment >= since) and (until is None or (until != "-infinity" and moment < until))


def run_front(
    cursor: ClaimCursor, clock: Clock, moments: range, count: int = MARK_EVERY, took: float = 0.001
) -> None:
    """The front claims `count` messages at each of these moments; no sweep is due meanwhile."""
    for moment in moments:
        look = cursor.look(["q"])
        assert look.front
        cursor.claimed(look, {("q", 5): text(moment)}, count)
        cursor.looked(look, took, exhausted=False)


def sweep(cursor: ClaimCursor, clock: Clock, costs: Any, front: float = 0.001) -> list[Look]:
    """All slices of the next sweep, taking these seconds one after the other; `front`: looks at the front."""
    looks: list[Look] = []
    for _ in range(10_000):
        clock.now = max(clock.now, cursor.next_sweep)
        look = cursor.look(["q"])
        if look.front and not look.whole:
            cursor.looked(look, front, exhausted=True)
            continue
        looks.append(look)
        cursor.looked(look, next(costs), exhausted=True)
        if look.whole:
            return looks
    raise AssertionError("the sweep does not end")


def test_the_first_look_is_at_everything(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    assert cursor.look(["q"]) is module.ALL


def test_a_look_at_everything_keeps_its_distance_by_its_cost(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=True)
    run_front(cursor, clock, range(1), count=1)
    for _ in range(2):
        cursor.looked(module.ALL, 0.501, exhausted=True)
    cursor.look_again_soon()
    assert cursor.next_sweep == pytest.approx(10.0)


def test_a_connection_that_makes_every_look_slow_makes_none_dear(clock: Clock) -> None:
    """Else slices are never joined there, and a sweep takes longer with every message since the start:
    minutes, after a day.
    """
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.2, exhausted=False)
    run_front(cursor, clock, range(1, 60), took=0.2)
    assert [len(sweep(cursor, clock, iter([0.2] * 100), front=0.2)) for _ in range(4)][-1] == 1
    clock.now = cursor.next_sweep
    assert cursor.look(["q"]) is module.ALL
    for _ in range(2):
        cursor.looked(module.ALL, 0.2, exhausted=True)
    assert cursor.next_sweep == clock.now + module.SWEEP_SECONDS


def test_a_rest_ends_when_the_front_is_as_slow(clock: Clock) -> None:
    """A lock that claims wait for makes every look dear: to rest for it would leave what lies behind the
    front for ten seconds.
    """
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=True)
    run_front(cursor, clock, range(1), count=1)
    for _ in range(2):
        cursor.looked(module.ALL, 0.501, exhausted=True)
    run_front(cursor, clock, range(1), count=1)
    assert cursor.next_sweep == pytest.approx(10.0)
    run_front(cursor, clock, range(1), count=1, took=0.501)
    assert cursor.next_sweep == clock.now + module.SWEEP_SECONDS


def test_one_slow_look_at_the_front_makes_no_sweep_cheap(clock: Clock) -> None:
    """What is joined is not cut again."""
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 9))
    run_front(cursor, clock, range(9, 10), took=0.05)
    assert len(sweep(cursor, clock, iter([0.02] * 100))) == 10


def test_a_long_sweep_lets_the_front_be_looked_at(clock: Clock) -> None:
    """Without NOTIFY an idle worker looks when the next slice is due, and finds a new message at the front
    only.
    """
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 200))
    clock.now = cursor.next_sweep
    looks: list[tuple[float, Look]] = []
    while not looks or not looks[-1][1].whole:
        clock.now = max(clock.now, cursor.next_sweep)
        looks.append((clock.now, cursor.look(["q"])))
        cursor.looked(looks[-1][1], 0.001 if looks[-1][1].front else 0.011, exhausted=True)
    fronts = [moment for moment, look in looks if look.front]
    assert len(looks) > 200 and max(after - before for before, after in pairwise([*fronts, clock.now])) < 1.5


def test_one_slow_look_keeps_nobody_waiting(clock: Clock) -> None:
    """A new connection, a busy machine: what lies behind the front would wait for seconds after each."""
    cursor = ClaimCursor(["q"])
    for took in (0.5, 0.001, 0.5):
        cursor.looked(module.ALL, took, exhausted=True)
        assert cursor.next_sweep == clock.now + module.SWEEP_SECONDS
        cursor.look_again_soon()
        assert cursor.next_sweep == clock.now + module.SOON_SECONDS
        clock.now += 1


def test_a_short_front_asks_for_the_next_sweep(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=True)
    assert cursor.next_sweep == 1.0
    cursor.look_again_soon()
    assert cursor.next_sweep == module.SOON_SECONDS


@given(
    st.lists(st.sampled_from([0.0005, 0.003, 0.02]), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_every_sweep_sees_everything_behind_the_front(costs: list[float], claims: int, sweeps: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(module, "time", clock)
        cursor = ClaimCursor(["q"])
        cursor.looked(module.ALL, 0.001, exhausted=False)
        moment = 0
        for _ in range(sweeps):
            run_front(cursor, clock, range(moment + 1, moment + claims + 1))
            moment += claims
            supply = iter(costs * 10_000)
            looks = sweep(cursor, clock, supply)
            front = cursor.look(["q"])
            for late in range(moment + 2):
                assert any(contains(look, text(late)) for look in [*looks, front]), text(late)
            assert [look.whole for look in looks] == [False] * (len(looks) - 1) + [True]


def test_a_dear_sweep_is_cut_where_messages_were_claimed(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 9))
    looks = sweep(cursor, clock, iter([0.01] * 100))
    assert [(look.since[4], look.until[4]) for look in looks if look.since and look.until] == [
        (None, text(1)),
        *[(text(moment), text(moment + 1)) for moment in range(1, 8)],
        (text(8), text(8)),
    ]
    assert len(sweep(cursor, clock, iter([0.01] * 100))) == 9, "dear slices stay as they are"


def test_cheap_slices_become_one_look_at_everything(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 60))
    sizes = [len(sweep(cursor, clock, iter([0.0001] * 100))) for _ in range(4)]
    assert sizes[0] <= 7 and sizes[-1] == 1, sizes
    clock.now = cursor.next_sweep
    assert cursor.look(["q"]) is module.ALL


def costed(
    cursor: ClaimCursor, clock: Clock, cost: Callable[[int], float], front: float = 0.001
) -> list[int]:
    """A sweep where each of the moments costs that many seconds, beyond the front's one; how many dear ones
    each slice looked at.
    """
    widths: list[int] = []

    def costs() -> Iterator[float]:
        while True:
            look = cursor.look(["q"])
            inside = [moment for moment in range(99) if contains(look, text(moment))]
            widths.append(sum(cost(moment) > 0 for moment in inside))
            yield 0.001 + sum(map(cost, inside))

    sweep(cursor, clock, costs(), front)
    return widths


@pytest.mark.parametrize("before", [1, 30])
def test_slices_are_as_wide_as_their_stretches_are_cheap(clock: Clock, before: int) -> None:
    """Some old stretches cost nothing, new ones a millisecond each: what was learnt from the old ones makes
    no slice of many new ones.
    """
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, before))
    for moment in range(before, before + 20):
        run_front(cursor, clock, range(moment, moment + 1))
        widths = costed(cursor, clock, lambda moment: 0.0 if moment < before else 0.001)
        assert max(widths, default=0) <= 5, widths
    run_front(cursor, clock, range(before + 20, before + 60))
    widths = costed(cursor, clock, lambda moment: 0.0 if moment < before else 0.001)
    assert max(widths) <= 5 and sum(widths) >= 40, widths


def test_what_the_front_completes_makes_no_slice_cheap(clock: Clock) -> None:
    """A look at the front takes its time for what it completes and claims; one behind it does neither."""
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    for moment in range(1, 20):
        run_front(cursor, clock, range(moment, moment + 1), took=0.004)
        assert max(costed(cursor, clock, lambda moment: 0.001, front=0.004)) <= 5


def test_a_slow_look_at_a_stretch_is_forgotten_with_the_next_one(clock: Clock) -> None:
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 41))
    assert len(sweep(cursor, clock, iter([1.0] + [0.001] * 100))) < 10
    assert len(sweep(cursor, clock, iter([0.001] * 100))) <= 2
    assert len(sweep(cursor, clock, iter([0.001] * 100))) == 1


def first_slice(clock: Clock) -> tuple[ClaimCursor, Look]:
    """A cursor whose front has been looked at, and its first look behind it."""
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 4))
    clock.now = cursor.next_sweep
    return cursor, cursor.look(["q"])


def test_slices_rest_after_what_they_cost(clock: Clock) -> None:
    cursor, look = first_slice(clock)
    cursor.looked(look, 0.004, exhausted=True)
    assert cursor.next_sweep == pytest.approx(clock.now), "no more than the look before it"
    clock.now = cursor.next_sweep
    cursor.looked(cursor.look(["q"]), 0.004, exhausted=True)
    assert cursor.next_sweep == pytest.approx(clock.now + 0.06), (
        "what it cost more than the front, twenty times"
    )


def test_a_slice_that_gave_all_it_was_asked_for_is_looked_at_again(clock: Clock) -> None:
    cursor, look = first_slice(clock)
    cursor.claimed(look, {("q", 5): text(0)}, 100)
    cursor.looked(look, 0.003, exhausted=False)
    assert cursor.look(["q"]) == look
    clock.now -= 1
    assert cursor.look(["q"]).since == [None] * 4 + [text(3)] + [None] * 5, (
        "a slice never takes the front back"
    )


def test_a_sweep_without_a_look_at_the_front_is_not_whole(clock: Clock) -> None:
    """Without NOTIFY an idle worker finds a new message by its poll: the front belongs to each sweep."""
    cursor = ClaimCursor(["q"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    run_front(cursor, clock, range(1, 4))
    sweep(cursor, clock, iter([0.01] * 100))
    clock.now = cursor.next_sweep + 10
    assert cursor.look(["q"]).front


def test_priorities_and_queues_keep_their_own_front(clock: Clock) -> None:
    cursor = ClaimCursor(["a", "b"])
    cursor.looked(module.ALL, 0.001, exhausted=False)
    look = cursor.look(["a", "b"])
    cursor.claimed(look, {("b", 1): text(7), ("a", 10): text(3)}, 2)
    since = cursor.look(["a", "b"]).since
    assert since is not None
    assert {place: moment for place, moment in enumerate(since) if moment} == {
        PRIORITIES - 1: text(3),
        PRIORITIES: text(7),
    }
    cursor.claimed(look, {("b", 1): text(6)}, 1)
    assert cursor.look(["a", "b"]).since == since, "a message that was claimed by its id takes nothing back"

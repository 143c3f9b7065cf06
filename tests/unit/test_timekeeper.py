"""What is due for a running handler at which moment: soft limit, hard limit, lease (SPEC P2, W4); without
threads, at times that the tests name.
"""

from __future__ import annotations

import math
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq.middleware import TimeLimitExceeded

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import LeaseInterrupt
from packhorse.worker.runtime.coroutines import Blockage
from packhorse.worker.runtime.drive import CoroutineSlot
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.timekeeper import (
    ABANDON_MARGIN_SECONDS,
    ABANDONED_SECONDS,
    FENCE_MARGIN_SECONDS,
    NOBODYS_SECONDS,
    SWEEP_SECONDS,
    Timekeeper,
)
from tests.support.claimed import claimed

#: The handlers of these tests began at START; their leases last LEASE seconds.
START, LEASE = 1000.0, 60.0


class Interrupted(Slot):
    """A thread's slot that notes what it is interrupted with, once per message as a real one."""

    __slots__ = ("raised",)

    def __init__(self) -> None:
        super().__init__(0, RunningIds(2))
        self.raised: list[type[BaseException]] = []

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        if self.message is not message or self.raised:
            return False
        self.raised.append(exception)
        return True


class Loop:
    """In the place of the pool of coroutines: calls go through at once."""

    steps = 0

    def __init__(self) -> None:
        self.slots: list[CoroutineSlot] = []
        self.earliest = math.inf
        self.blocked: Blockage | None = None

    def call(self, function: Any, *args: Any) -> None:
        function(*args)

    def expect(self, slot: CoroutineSlot) -> None: ...

    def contain(self, error: BaseException | None) -> None: ...

    def running_slots(self) -> list[CoroutineSlot]:
        return self.slots

    def blockage(self, now: float) -> Blockage | None:
        return self.blocked


class Watch:
    """A timekeeper, and what it has said: (stuck messages, whether a lease was over)."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pool: Any = SimpleNamespace(
            ready=deque(), running=0, slots=[0, 1], stopping=False, started_total=0
        )
        self.stuck: list[ClaimedMessage | None] = []
        self.leases_over = 0
        self.keeper = Timekeeper(self.pool, self.loop, self.stuck.append, self._over)  # type: ignore[arg-type]

    def _over(self) -> None:
        self.leases_over += 1

    def look(self, slot: Slot, seconds: float) -> float:
        """So many seconds after the start; when it wants to look again, counted from the start."""
        return self.keeper._look_at(slot, START + seconds) - START

    def loop_at(self, seconds: float) -> None:
        self.keeper._watch_loop(START + seconds)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def run_in(
    slot: Slot, token: int = 1, soft: float | None = None, hard: float | None = None
) -> ClaimedMessage:
    message = claimed(token, token)
    message.lease_until = START + LEASE
    message.deadline = None if soft is None else START + soft
    message.hard_deadline = None if hard is None else START + hard
    slot.enter(message, START)
    return message


def coroutine(watch: Watch, **limits: Any) -> tuple[CoroutineSlot, ClaimedMessage]:
    slot = CoroutineSlot(len(watch.loop.slots), RunningIds(0, coroutines=4), watch.loop)
    watch.loop.slots.append(slot)
    return slot, run_in(slot, len(watch.loop.slots), **limits)


def test_a_handler_is_told_of_its_soft_limit_once_and_not_before(watch: Watch) -> None:
    slot = Interrupted()
    run_in(slot, soft=10)
    watch.look(slot, 9.9)
    assert slot.raised == []
    watch.look(slot, 10)
    watch.look(slot, 11)
    assert slot.raised == [TimeLimitExceeded] and watch.stuck == []


def test_past_its_hard_limit_a_thread_is_stuck_and_said_so_once(watch: Watch) -> None:
    slot = Interrupted()
    message = run_in(slot, soft=10, hard=20)
    for seconds in (19.9, 20, 21):
        watch.look(slot, seconds)
    assert watch.stuck == [message]


def test_the_next_attempt_of_a_message_that_was_stuck_can_be_stuck_as_well(watch: Watch) -> None:
    slot = Interrupted()
    for token in (1, 2):
        run_in(slot, token, hard=20)
        watch.look(slot, 20)
    assert [message.lease_token for message in watch.stuck if message] == [1, 2]


def test_past_its_hard_limit_a_coroutine_is_abandoned_and_no_process_ends(watch: Watch) -> None:
    slot, _ = coroutine(watch, hard=20)
    watch.look(slot, 20)
    watch.look(slot, 20 + ABANDONED_SECONDS - 0.01)
    assert slot.abandoned and slot.interrupted is TimeLimitExceeded and watch.stuck == []


def test_a_coroutine_that_was_abandoned_and_is_still_there_is_stuck(watch: Watch) -> None:
    slot, message = coroutine(watch, hard=20)
    watch.look(slot, 20)
    watch.look(slot, 20 + ABANDONED_SECONDS)
    assert watch.stuck == [message]


def test_a_handler_is_told_before_its_lease_ends_and_the_process_ends_with_it(watch: Watch) -> None:
    slot = Interrupted()
    run_in(slot)
    watch.look(slot, LEASE - FENCE_MARGIN_SECONDS - 0.01)
    assert slot.raised == []
    watch.look(slot, LEASE - FENCE_MARGIN_SECONDS)
    assert (slot.raised, watch.leases_over) == ([LeaseInterrupt], 0)
    watch.look(slot, LEASE)
    assert watch.leases_over == 1


def test_a_coroutine_that_goes_on_without_a_lease_is_abandoned_before_it_is_over(watch: Watch) -> None:
    slot, _ = coroutine(watch)
    watch.look(slot, LEASE - FENCE_MARGIN_SECONDS)
    watch.look(slot, LEASE - ABANDON_MARGIN_SECONDS - 0.01)
    assert slot.interrupted is LeaseInterrupt and not slot.abandoned
    watch.look(slot, LEASE - ABANDON_MARGIN_SECONDS)
    assert slot.abandoned and watch.leases_over == 0


def test_a_renewed_lease_is_no_reason_to_interrupt(watch: Watch) -> None:
    slot = Interrupted()
    run_in(slot).lease_until += LEASE
    watch.look(slot, LEASE)
    assert (slot.raised, watch.leases_over) == ([], 0)


def test_what_is_committed_has_no_limits(watch: Watch) -> None:
    """The database knows; what its handler still does ends by itself."""
    slot = Interrupted()
    run_in(slot, soft=10, hard=20).move(AttemptStage.COMMITTED)
    assert watch.look(slot, 100) == math.inf
    slot.leave()
    assert watch.look(slot, 100) == math.inf
    assert (slot.raised, watch.stuck, watch.leases_over) == ([], [], 0)


@pytest.mark.parametrize(
    ("soft", "hard", "at", "again"),
    [
        (None, None, 0, LEASE - FENCE_MARGIN_SECONDS),
        (10, 20, 0, 10),
        (10, 20, 10, 20),
        (100, None, 0, LEASE - FENCE_MARGIN_SECONDS),
        (None, None, LEASE - 1.5, LEASE - 1.5 + ABANDON_MARGIN_SECONDS / 2),
        (None, None, LEASE - 0.1, LEASE),
    ],
)
def test_it_looks_again_when_the_next_thing_is_due(
    watch: Watch, soft: float | None, hard: float | None, at: float, again: float
) -> None:
    slot = Interrupted()
    run_in(slot, soft=soft, hard=hard)
    assert watch.look(slot, at) == pytest.approx(again)


def test_while_one_blocks_the_loop_the_limits_of_the_others_stand_still(watch: Watch) -> None:
    culprit, its = coroutine(watch, soft=10, hard=20)
    _, others = coroutine(watch, soft=10, hard=20)
    watch.loop.blocked = Blockage(START + 1, culprit, "stack")
    watch.loop_at(2)
    assert watch.keeper.blocked
    later, young = coroutine(watch, soft=10, hard=20)
    later.started_at = START + 5  # it began when the loop went on
    watch.loop.blocked = None
    watch.loop_at(5)
    assert [(m.deadline, m.hard_deadline) for m in (its, others, young)] == [
        (START + 10, START + 20),
        (START + 14, START + 24),
        (START + 10, START + 20),
    ]
    assert watch.keeper.loop_blocked == (1, 4.0) and not watch.keeper.blocked


def test_who_blocks_the_loop_past_his_hard_limit_is_stuck(watch: Watch) -> None:
    """No coroutine is abandoned in a loop that does not turn."""
    culprit, its = coroutine(watch, hard=20)
    other, _ = coroutine(watch, hard=20)
    watch.loop.blocked = Blockage(START + 1, culprit, "stack")
    for seconds in (2, 20, 21):
        watch.loop_at(seconds)
    assert watch.stuck == [its] and not culprit.abandoned and not other.abandoned


def test_a_loop_that_nobody_is_known_to_block_ends_the_process_after_a_while(watch: Watch) -> None:
    watch.loop.blocked = Blockage(START, None, "stack")
    watch.loop_at(NOBODYS_SECONDS - 1)
    assert watch.stuck == []
    watch.loop_at(NOBODYS_SECONDS)
    assert watch.stuck == [None]


def test_a_blocked_loop_keeps_no_lease_from_being_over(watch: Watch) -> None:
    culprit, _ = coroutine(watch)
    watch.loop.blocked = Blockage(START, culprit, "stack")
    watch.loop_at(LEASE - 0.01)
    assert watch.leases_over == 0
    watch.loop_at(LEASE)
    assert watch.leases_over == 1


def test_coroutines_are_looked_at_when_the_earliest_is_due_and_now_and_then(watch: Watch) -> None:
    slot, _ = coroutine(watch, soft=0.5)
    watch.loop_at(0)
    assert watch.loop.earliest == pytest.approx(START + 0.5)
    watch.loop_at(0.4)
    assert slot.interrupted is None
    watch.loop_at(0.5)
    assert slot.interrupted is TimeLimitExceeded
    late, message = coroutine(watch)
    message.deadline = START + 0.6  # set behind its back
    watch.loop_at(0.5 + SWEEP_SECONDS)
    assert late.interrupted is TimeLimitExceeded


@pytest.mark.parametrize(
    ("ready", "running", "stopping", "begun", "alive"),
    [
        (0, 0, False, 0, True),
        (3, 2, False, 0, True),  # each thread has something to do
        (3, 1, False, 0, False),  # one is free, messages are ready, and none is begun
        (3, 1, False, 1, True),
        (3, 1, True, 0, True),
    ],
)
def test_a_pool_that_begins_nothing_though_it_could_does_not_tick(
    watch: Watch, ready: int, running: int, stopping: bool, begun: int, alive: bool
) -> None:
    ticks: list[float] = []
    watch.keeper.pool_ticked = ticks.append
    watch.pool.ready.extend(range(ready))
    watch.pool.running, watch.pool.stopping, watch.pool.started_total = running, stopping, begun
    watch.keeper._watch_pool(START)
    assert bool(ticks) is alive

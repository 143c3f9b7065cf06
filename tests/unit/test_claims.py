"""When a process claims, for which kind of handler, from which queue first, and how many (SPEC W2); without a
database.
"""

from __future__ import annotations

import math
import time
from collections import deque
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from packhorse.worker.config import load_settings
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.records import Hints
from packhorse.worker.runtime.claims import ISOLATION_POLL_SECONDS, Claims, Intake, Kind, Request
from packhorse.worker.runtime.cursor import ALL, Look
from tests.support.claimed import claimed

FRONT = Look(["2026-01-01"], None, front=True, whole=False)


class NoDatabase:
    """In the place of the connection: raises."""

    def __init__(self) -> None:
        self.error: Exception = StoreUnavailable("cut")

    def connection(self) -> Any:
        raise self.error


class Meter:
    def __init__(self) -> None:
        self.results: list[tuple[str, Any]] = []

    def claimed(self, result: str, seconds: float, error: Any = None) -> None:
        self.results.append((result, error))

    def publish(self) -> None: ...


def pool(size: int = 4) -> Any:
    return SimpleNamespace(size=size, ready=deque(), running=0)


def claims(*kinds: Kind, queues: tuple[str, ...] = ("q", "r"), isolation: bool = False) -> Claims:
    made = Claims(
        NoDatabase(),  # type: ignore[arg-type]
        uuid4(),
        load_settings({}, poll_seconds=2.0),
        list(queues),
        list(kinds) or [Kind(pool(), ["effect"])],
        Meter(),  # type: ignore[arg-type]
        isolation=isolation,
    )
    made.heard_by(lambda: False)
    return made


def rest(intake: Intake) -> Intake:
    """It has looked, and there was nothing."""
    intake.signalled, intake.backlog, intake.next_poll = False, False, math.inf
    return intake


def learn(
    intake: Intake, limit: int, claimed_count: int, look: Look = ALL, next_in: float | None = None
) -> float:
    """An answer of so many messages has come now (monotonic)."""
    request, now = Request(limit, look, ["q"]), time.monotonic()
    intake.read(request, [], Hints(next_in=next_in), now, now)
    intake.learn(request, 0, claimed_count, now, now + 0.001)
    return now


@pytest.mark.parametrize(
    ("ready", "running", "room", "full"),
    [(0, 0, 4, False), (1, 2, 1, False), (2, 2, 0, True), (3, 4, 0, True)],
)
def test_what_waits_and_what_runs_takes_room(ready: int, running: int, room: int, full: bool) -> None:
    threads = pool()
    (intake,) = claims(Kind(threads, ["effect"])).intakes
    threads.ready.extend(range(ready))
    threads.running = running
    assert (intake.room(), intake.full()) == (room, full)


def test_a_kind_with_a_limit_of_its_own_counts_also_what_is_not_handed_back() -> None:
    """What its handlers have ended holds their transactions until it is written."""
    (intake,) = claims(Kind(pool(), ["effect"], most=2)).intakes
    assert intake.room() == 2
    intake.held = 1
    assert intake.room() == 1
    intake.held = 3
    assert intake.room() == 0


def test_it_looks_when_there_is_a_reason_and_not_otherwise() -> None:
    (intake,) = claims().intakes
    assert intake.due(), "it has never looked"
    assert not rest(intake).due()
    for reason in ({"backlog": True}, {"signalled": True}, {"next_poll": 0.0}):
        vars(rest(intake)).update(reason)
        assert intake.due(), reason
    rest(intake).conversation_went_on(claimed(conversation="c"))
    assert intake.due()


def test_one_without_a_conversation_makes_nothing_startable() -> None:
    (intake,) = claims().intakes
    rest(intake).conversation_went_on(claimed())
    assert not intake.due()


def test_no_queue_is_served_before_another() -> None:
    (intake,) = claims(queues=("a", "b", "c")).intakes
    assert [intake.request(1).queues for _ in range(3)] == [["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_a_process_for_messages_that_run_apart_looks_at_all_of_them() -> None:
    (intake,) = claims(isolation=True).intakes
    learn(intake, 1, 1)
    assert intake.request(1).look is ALL


def test_a_mere_completion_claims_nothing() -> None:
    (intake,) = claims().intakes
    assert intake.completion().limit == 0


def test_a_claim_that_took_all_it_asked_for_is_followed_by_another_one() -> None:
    (intake,) = claims().intakes
    learn(intake, 3, 3)
    assert intake.backlog
    learn(intake, 3, 2, FRONT)
    assert not intake.backlog


def test_a_slice_behind_the_front_says_nothing_of_what_is_in_front() -> None:
    (intake,) = claims().intakes
    learn(intake, 3, 3)
    learn(intake, 3, 0, Look([None] * 20, ["2026-01-01"] * 20, front=False, whole=True))
    assert intake.backlog


def test_without_work_it_looks_again_within_the_poll_interval_and_when_something_is_due() -> None:
    (intake,) = claims().intakes
    rest(intake)
    learn(intake, 3, 0)
    assert 0 < intake.next_poll - time.monotonic() <= 2.0
    now = learn(intake, 3, 0, next_in=0.5)
    assert intake.next_poll == now + 0.5


def test_a_process_for_messages_that_run_apart_looks_often() -> None:
    (intake,) = claims(isolation=True).intakes
    learn(intake, 1, 0)
    assert intake.next_poll - time.monotonic() <= ISOLATION_POLL_SECONDS


def test_a_mere_completion_says_nothing_of_what_is_due() -> None:
    (intake,) = claims().intakes
    rest(intake)
    learn(intake, 0, 0)
    assert intake.next_poll == math.inf and not intake.backlog


@pytest.mark.parametrize(
    ("error", "suspected", "signalled"),
    [
        (StoreUnavailable("cut"), True, True),
        (StoreError("refused"), False, True),
        (ValueError("an answer that cannot be read"), True, False),
    ],
    ids=["cut", "refused", "unreadable"],
)
def test_when_the_answer_is_lost_messages_may_be_leased_to_us(
    monkeypatch: pytest.MonkeyPatch, error: Exception, suspected: bool, signalled: bool
) -> None:
    made = claims()
    (intake,) = made.intakes
    told: list[bool] = []
    monkeypatch.setattr(made.lost, "suspected", lambda: told.append(True))
    made.link.error = error  # type: ignore[attr-defined]
    with pytest.raises(type(error)):
        intake.run([], Request(1, ALL, ["q"]))
    assert (bool(told), intake.signalled) == (suspected, signalled)


def test_a_refused_statement_is_blamed_on_the_claim_only_when_it_completed_nothing() -> None:
    made = claims()
    (intake,) = made.intakes
    made.link.error = refused = StoreError("refused")  # type: ignore[attr-defined]
    for done in [], [claimed()]:
        with pytest.raises(StoreError):
            intake.run(done, Request(1, ALL, ["q"]))
    assert made.meter.results == [("error", refused), ("error", None)]  # type: ignore[attr-defined]


def test_a_lost_answer_to_a_mere_completion_leases_nothing() -> None:
    made = claims()
    with pytest.raises(StoreUnavailable):
        made.intakes[0].run([claimed()], made.intakes[0].completion())
    assert made.meter.results == []  # type: ignore[attr-defined]


def test_a_signal_is_for_all_kinds_and_one_of_another_queue_for_none() -> None:
    made = claims(Kind(pool(), ["a"]), Kind(pool(), ["b"]))
    for intake in made.intakes:
        rest(intake)
    assert not made.woken("of others") and not made.signalled
    assert made.woken("q") and all(intake.signalled for intake in made.intakes)


def test_of_many_that_hear_of_a_message_those_look_whose_turn_it_is() -> None:
    made = claims()
    intake = made.intakes[0]
    made.heard_by(lambda: True, lambda: 10, lambda: UUID(int=made.worker_id.int - (1 << 96)))
    rest(intake)
    answers = {made.woken(f"q@{number}") for number in range(100)}
    assert answers == {False} and not made.signalled and not intake.due()
    made.heard_by(lambda: True, lambda: 10, lambda: UUID(int=made.worker_id.int + (1 << 96)))
    assert made.woken("q@1") and intake.due()
    rest(intake)
    assert made.woken("q!") and made.signalled
    assert not made.woken("of others!") and not made.woken("of others@1")


def test_a_claim_that_took_all_it_asked_for_is_a_backlog_until_one_takes_less() -> None:
    made = claims()
    said: list[bool] = []
    made.wakeups.spread = lambda *, backlog, fast: said.append(backlog)  # type: ignore[method-assign]
    made.intakes[0].held = 4
    for count in [4, 1]:
        learn(made.intakes[0], 4, count)
        made.tend(free=False, fast=False, going=False)
    learn(made.intakes[0], 4, 4)
    made.tend(free=False, fast=False, going=True)
    assert said == [True, False, False], "who goes leaves it to others"


@pytest.mark.parametrize(
    ("settings", "hears", "times"),
    [
        ({}, True, 20),
        ({}, False, 2.5),
        ({"wakeups": "redis", "redis_url": "redis://there"}, True, 5),
        ({"wakeups": "redis", "redis_url": "redis://there", "listen_url": "host=there"}, True, 20),
        ({"wakeups": "poll"}, False, 2.5),
    ],
)
def test_of_many_each_polls_the_more_seldom_the_more_it_is_told(
    settings: dict[str, Any], hears: bool, times: float
) -> None:
    made = claims()
    made.settings = load_settings({}, **settings)
    made.heard_by(lambda: hears, lambda: 1000)
    assert made.intakes[0]._rest(hears) == times


def test_handlers_are_fast_once_they_have_shown_it() -> None:
    intake = claims().intakes[0]
    assert not intake.fast, "nothing has ended yet"
    intake.ended(0.001)
    assert intake.fast
    intake.ended(0.1)
    assert not intake.fast
    intake.ended(0.001)
    assert intake.fast, "one that was delayed says little"


def test_others_are_called_where_handlers_and_not_claims_take_the_time() -> None:
    made = claims()
    intake, said = made.intakes[0], list[bool]()
    made.wakeups.spread = lambda *, backlog, fast: said.append(backlog)  # type: ignore[method-assign]
    learn(intake, 4, 4)

    def asks(held: int, ran_seconds: float | None = None) -> bool:
        intake.held = held
        if ran_seconds is not None:
            intake.ended(ran_seconds)
        made.tend(free=False, fast=False, going=False)
        return said[-1]

    size = intake.pool.size
    assert not asks(0) and asks(1), "of what has never ended nobody knows how long it takes"
    assert not asks(500, 0.00002), "500 no-ops are done before the next claim is back"
    assert asks(500, 0.0005), "one thread does these, and it has a quarter of a second to do"
    assert asks(size, 5.0) and not asks(0)
    intake.ended(0.01)
    assert asks(6 * size, 0.01) and not asks(2 * size)


def test_the_listener_that_has_just_connected_wakes_all() -> None:
    made = claims()
    rest(made.intakes[0])
    assert made.woken("") and made.signalled


def test_a_message_belongs_to_the_kind_of_its_type_and_kinds_take_turns() -> None:
    first, second = Kind(pool(), ["a"]), Kind(pool(), ["b"])
    made = claims(first, second)
    assert [made.intake_of(claimed(actor=name)).pool for name in "ab"] == [first.pool, second.pool]
    assert [made.in_turn()[0].types for _ in range(3)] == [["b"], ["a"], ["b"]]


def test_what_one_kind_completed_may_let_a_conversation_go_on_in_another() -> None:
    made = claims(Kind(pool(), ["a"]), Kind(pool(), ["b"]))
    one, other = (rest(intake) for intake in made.intakes)
    made.completed_by(one, [claimed(actor="a", conversation="c")])
    assert (one.due(), other.due()) == (False, True), "its own it learns with the answer"


@pytest.mark.parametrize("gone", [True, False])
def test_what_ended_by_another_statement_may_have_made_room(gone: bool) -> None:
    made = claims()
    (intake,) = made.intakes
    rest(intake)
    made.ended(claimed(conversation="c"), gone=gone)
    assert intake.signalled
    intake.signalled = False
    assert intake.due() is gone, "only what has left its conversation lets it go on"

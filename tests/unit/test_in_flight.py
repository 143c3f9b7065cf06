"""What a process holds: each attempt is counted and told once, as what the database made of it (SPEC P2)."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.states import Ended
from tests.support.claimed import claimed


class Told:
    """In the places of the meter and of the log of outcomes: what each is told."""

    def __init__(self) -> None:
        self.metered: list[tuple[int, Ended]] = []
        self.logged: list[tuple[int, Ended]] = []
        self.meter: Any = self
        self.log: Any = Log(self)

    def done(self, messages: list[ClaimedMessage]) -> None:
        self.metered += [(message.id, Ended.DONE) for message in messages]

    def finished(self, message: ClaimedMessage, ended: Ended) -> None:
        self.metered.append((message.id, ended))


class Log:
    def __init__(self, told: Told) -> None:
        self._told = told

    def done(self, messages: list[ClaimedMessage]) -> None:
        self._told.logged += [(message.id, Ended.DONE) for message in messages]

    def ended(self, message: ClaimedMessage, ended: Ended) -> None:
        self._told.logged.append((message.id, ended))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running() -> RunningIds:
    return RunningIds(2, places=2)


@pytest.fixture
def in_flight(told: Told, running: RunningIds) -> InFlight:
    return InFlight(told.meter, told.log, "worker", running)


def test_only_this_very_attempt_is_held(in_flight: InFlight) -> None:
    """The next attempt of a message has the same id."""
    first, second = claimed(7, token=1), claimed(7, token=2)
    in_flight.add(first)
    in_flight.drop(first)
    in_flight.add(second)
    in_flight.drop(first)
    assert in_flight.owns(second) and not in_flight.owns(first)
    assert list(in_flight.ids()) == [7] and len(in_flight) == 1


def test_each_held_message_has_a_place_of_its_own_while_there_are_any(in_flight: InFlight) -> None:
    messages = [claimed(number) for number in (1, 2, 3)]
    for message in messages:
        in_flight.add(message)
    assert sorted(message.place for message in messages) == [-1, 0, 1]
    given = messages[0].place
    in_flight.drop(messages[0])
    in_flight.drop(messages[0])  # late, and once more
    after = [claimed(number) for number in (4, 5)]
    for message in after:
        in_flight.add(message)
    assert [message.place for message in after] == [given, -1]


def test_what_is_held_may_be_dropped_while_somebody_goes_through_it(in_flight: InFlight) -> None:
    for number in (1, 2, 3):
        in_flight.add(claimed(number))
    for message in in_flight:
        in_flight.drop(message)
    assert not in_flight


def test_a_refused_completion_is_shown_to_the_parent_until_it_is_written(
    in_flight: InFlight, running: RunningIds
) -> None:
    message = claimed(7)
    in_flight.add(message)
    in_flight.refused(message)
    assert (running.refused(), running.started(), in_flight.owns(message)) == ([7], [], True)
    in_flight.done([message])
    assert running.refused() == []


def test_one_without_a_place_can_be_refused(in_flight: InFlight, running: RunningIds) -> None:
    for number in (1, 2):
        in_flight.add(claimed(number))
    in_flight.add(last := claimed(3))
    in_flight.refused(last)
    assert running.refused() == []


def test_a_completion_that_came_too_late_is_lost_and_the_others_are_done(
    in_flight: InFlight, told: Told
) -> None:
    messages = [claimed(number) for number in (1, 2, 3)]
    for message in messages:
        in_flight.add(message)
    in_flight.done(messages, lost={2})
    assert in_flight.counts == {Ended.DONE: 2, Ended.LOST: 1}
    assert told.metered == [(2, Ended.LOST), (1, Ended.DONE), (3, Ended.DONE)]
    assert told.logged == [(1, Ended.DONE), (3, Ended.DONE)]
    assert all(message.stage is AttemptStage.ENDED for message in messages) and not in_flight


@pytest.mark.parametrize("ended", [ended for ended in Ended if ended is not Ended.DONE])
def test_every_other_outcome_is_counted_once_and_a_lost_lease_has_a_line_of_its_own(
    in_flight: InFlight, told: Told, ended: Ended
) -> None:
    message = claimed(7)
    in_flight.add(message)
    in_flight.ended(message, ended)
    assert in_flight.counts == {ended: 1} and told.metered == [(7, ended)]
    assert told.logged == ([] if ended is Ended.LOST else [(7, ended)])
    assert message.stage is AttemptStage.ENDED and not in_flight

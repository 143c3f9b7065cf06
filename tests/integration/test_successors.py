"""What follows in a conversation starts when its last message has ended, however that ended (SPEC P4, W2).

The next message of a conversation is older than what claims look at by then. These fetchers never look behind
their cursor: a message whose conversation goes on is claimed by its id or not at all.
"""

from __future__ import annotations

import dramatiq
import pytest

import packhorse
from packhorse.worker.runtime import cursor
from tests.support.harness import House

NEVER_SECONDS = 1e6


@pytest.fixture
def house(database, monkeypatch):
    monkeypatch.setattr(cursor, "SWEEP_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(cursor, "SOON_SECONDS", NEVER_SECONDS)
    house = House("runtime", database, monkeypatch)
    yield house
    house.stop()


def raise_(error):
    raise error


ENDINGS = {
    "done": ({}, lambda: None),
    "done in the handler's transaction": ({"transactional": True}, lambda: None),
    "dead": ({"max_attempts": 1}, lambda: raise_(ValueError("no"))),
    "buried": ({}, lambda: raise_(packhorse.Bury("no"))),
    "cancelled": ({}, lambda: raise_(packhorse.Cancel("no"))),
}


@pytest.mark.parametrize("outcome", ENDINGS)
@pytest.mark.slow
def test_a_conversation_goes_on_without_a_look_behind_the_cursor(house, database, outcome):
    options, end = ENDINGS[outcome]
    seen = []

    @dramatiq.actor(**options)
    def speak(number):
        seen.append(number)
        end()

    @dramatiq.actor
    def later():
        pass

    for number in range(6):
        speak.send_with_options(args=(number,), conversation_key="c")
    later.send()  # claimed with the first of the conversation: the others are behind it
    house.start().drained()
    assert seen == list(range(6))

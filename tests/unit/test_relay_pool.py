"""What a relay publishes of what it has claimed, and what it hands back (worker/amqp/relay_pool.py)."""

from __future__ import annotations

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.observe.duties import Duties
from packhorse.worker.states import Verb
from tests.support.claimed import claimed

relay_pool = pytest.importorskip("packhorse.worker.amqp.relay_pool")


@pytest.fixture
def handed_back() -> list[ClaimedMessage]:
    return []


@pytest.fixture
def pool(handed_back: list[ClaimedMessage]):
    return relay_pool.RelayPool(Settings(amqp_partitions=2), ["q"], handed_back.append, Duties())


def test_what_is_ready_is_published_in_order(pool, handed_back) -> None:
    pool.put([claimed(1), claimed(2, conversation="k"), claimed(3)])
    assert [(letter.message.id, letter.exchange, letter.routing_key) for letter in pool._next(2)] == [
        (1, "", "q"),
        (2, "packhorse.q", "k"),
    ]
    assert [message.id for message in pool.ready] == [3]
    assert handed_back == []


def test_a_message_whose_lease_is_lost_is_not_published(pool, handed_back) -> None:
    lost = claimed(1)
    lost.lost = True
    pool.put([lost, claimed(2)])
    assert [letter.message.id for letter in pool._next(10)] == [2]
    assert handed_back == [lost]


@pytest.mark.parametrize(
    ("given", "verb"),
    [
        ({"lease_seconds": 0.5}, Verb.RELEASE),
        ({"queue": "strange"}, Verb.RELEASE),
        ({"payload": "[1]"}, Verb.BURY),
    ],
)
def test_what_cannot_be_published_is_handed_back_with_its_outcome(pool, handed_back, given, verb) -> None:
    pool.put([claimed(1, **given), claimed(2)])
    assert [letter.message.id for letter in pool._next(10)] == [2]
    assert [(found.id, found.outcome.verb) for found in handed_back] == [(1, verb)]


def test_without_a_connection_there_is_no_room(pool) -> None:
    assert pool.running == pool.size

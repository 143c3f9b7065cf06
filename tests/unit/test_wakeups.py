"""Of many that hear of one message few look at once; what idle ones do by the clock they share (SPEC Q10)."""

from __future__ import annotations

import random
import time
from typing import Any
from uuid import uuid4

import pytest

from packhorse.worker.attempt.heartbeat import MOST_STRETCH, Heartbeat, stretched
from packhorse.worker.config import load_settings
from packhorse.worker.runtime.wakeups import HEARD_GAP_SECONDS, HEARERS, Wakeups

DRAWS = 20_000


def heard_by(peers: int) -> list[float]:
    random.seed(1)
    wakeups = Wakeups(None, ["q"], ["a"], lambda: True)  # type: ignore[arg-type]
    wakeups.peers = lambda: peers
    return [wakeups.look_after() for _ in range(DRAWS)]


@pytest.mark.parametrize("peers", [0, 1, 2, 5])
def test_few_look_at_once_all_of_them(peers: int) -> None:
    assert set(heard_by(peers)) == {0.0}


@pytest.mark.parametrize("peers", [10, 100])
def test_of_many_some_look_at_once_and_the_others_one_after_the_other(peers: int) -> None:
    after = heard_by(peers)
    assert after.count(0.0) / DRAWS * peers == pytest.approx(HEARERS, rel=0.15)
    assert max(after) <= peers * HEARD_GAP_SECONDS
    later = sorted(seconds for seconds in after if seconds)
    assert later[len(later) // 2] == pytest.approx(peers * HEARD_GAP_SECONDS / 2, rel=0.1)


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

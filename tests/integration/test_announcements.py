"""What becomes startable in a process starts there at once (SPEC Q8, Q10, P4): these fetchers poll once an
hour or never.

A poll or a look behind the cursor would hide a claim that nobody asked for.
"""

from __future__ import annotations

import threading
import time

import dramatiq
import pytest

from packhorse.worker.runtime.fetcher import Fetcher
from tests.support.harness import House
from tests.support.waiting import wait_until

HOUR = 300.0  # the longest poll_seconds there is; tests wait for 15 s at most


@pytest.fixture
def house(database, monkeypatch, request):
    house = House("runtime", database, monkeypatch, poll_seconds=HOUR, **getattr(request, "param", {}))
    yield house
    house.stop()


def asleep(house):
    """The fetcher has looked at everything and waits for its poll."""
    return house._worker.fetcher.claims.next_poll > time.monotonic() + HOUR / 2


ENDINGS = {"its handler's transaction": True, "a statement of the fetcher": False}


@pytest.mark.parametrize("transactional", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("limit", ["max_concurrency", "max_concurrency_per_key"])
@pytest.mark.slow
def test_a_message_that_ends_makes_room_for_the_next_one(house, database, limit, transactional):
    seen = []

    @dramatiq.actor(transactional=transactional)
    def step(number):
        wait_until(lambda: asleep(house), 10, "the fetcher to sleep")
        seen.append(number)

    for number in range(3):
        step.send_with_options(args=(number,), concurrency_key="k")
    database.query(f"select set_queue('default', '{{\"{limit}\": 1}}')")
    house.start().drained()
    assert seen == [0, 1, 2]


@pytest.mark.slow
def test_a_wake_up_without_a_free_thread_is_no_reason_to_turn(house, monkeypatch):
    """Nothing can be claimed until a message ends; a fetcher that looks for room all the time takes the
    processor from its handlers.
    """
    go = threading.Event()
    turn, pauses = Fetcher.run_once, []

    @dramatiq.actor
    def busy():
        go.wait(15)

    @dramatiq.actor
    def woken():
        pass

    def watched(fetcher):
        pause = turn(fetcher)
        if house._worker.pool.running == house._worker.pool.size and fetcher.claims.signalled:
            pauses.append(pause)
            if len(pauses) == 3:
                go.set()
        return pause

    monkeypatch.setattr(Fetcher, "run_once", watched)
    house.start()
    for _ in house._worker.pool.slots:
        busy.send()
    wait_until(lambda: house._worker.pool.running == len(house._worker.pool.slots), 15, "full pools")
    woken.send()
    house._worker.fetcher.on_wake("")
    assert go.wait(15)
    assert 0.0 not in pauses
    house.drained()

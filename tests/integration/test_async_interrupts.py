"""What interrupts a handler: it ends the coroutine that an async actor waits for (SPEC W3), and counts
whatever middleware there is (SPEC P1).
"""

from __future__ import annotations

import asyncio
import threading

import dramatiq
import pytest
from dramatiq.middleware import Retries as StockRetries

import packhorse
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt
from tests.support.harness import House
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture
def house(database, monkeypatch):
    house = House("runtime", database, monkeypatch, drain_seconds=1).with_results()
    yield house
    house.stop()


def _waiting_actor(tidy_seconds):
    """An actor that waits for ever, how it ended, and an event for its start."""
    started, ended = threading.Event(), []

    @dramatiq.actor(max_retries=0, time_limit=60_000)
    async def waits():
        started.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(error)
            await asyncio.sleep(tidy_seconds)
            raise

    return waits, started, ended


def test_a_cancelled_message_ends_its_coroutine(house):
    """It went on in the event loop and had its effects, while the message was `cancelled`."""
    waits, started, ended = _waiting_actor(0)
    house.start()
    waits.send()
    assert started.wait(10)
    house.database.query("select cancel_message(id) from message_queue")
    wait_until(lambda: house.database.query("select state from all_messages") == [("cancelled",)])
    assert isinstance(ended[0], asyncio.CancelledError) and isinstance(ended[0], CancelInterrupt)


@pytest.mark.slow
def test_a_coroutine_that_takes_its_time_at_the_drain_limit_loses_no_attempt(house):
    waits, started, ended = _waiting_actor(1.5)  # dramatiq waits for a second
    house.start()
    waits.send()
    assert started.wait(10)
    house.stop()
    assert isinstance(ended[0], asyncio.CancelledError) and isinstance(ended[0], DrainInterrupt)
    assert house.database.query("select state, attempt from all_messages") == [("pending", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("middleware", [[], [StockRetries(max_retries=0)]], ids=["none", "dramatiqs"])
def test_a_handler_at_the_drain_limit_is_neither_done_nor_dead_without_our_retries(house, middleware):
    """Its message was done, or dead, with each deployment that did not wait for it."""
    house.broker.middleware[:] = middleware
    started, snoozed = threading.Event(), threading.Event()

    @dramatiq.actor
    def later():
        snoozed.set()
        raise packhorse.Snooze(60)

    @dramatiq.actor
    def loops():
        started.set()
        while True:
            threading.Event().wait(0.01)

    house.start()
    later.send()
    loops.send()
    assert started.wait(10) and snoozed.wait(10)
    house.stop()
    assert house.database.query("select message_type, state, attempt from all_messages order by id") == [
        ("later", "pending", 0),
        ("loops", "pending", 0),
    ]

"""Async actors (SPEC W3): what interrupts a handler ends the coroutine that it waits for, not only the wait."""

from __future__ import annotations

import asyncio
import threading

import dramatiq
import pytest

from tests.support.databases import emptied, one
from tests.support.houses import House
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def one_database(server):
    yield from one(server)


@pytest.fixture
def database(one_database):
    return emptied(one_database)


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
            ended.append(type(error).__name__)
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
    assert ended == ["CancelledError"]


@pytest.mark.slow
def test_a_coroutine_that_takes_its_time_at_the_drain_limit_loses_no_attempt(house):
    waits, started, ended = _waiting_actor(1.5)  # dramatiq waits for a second
    house.start()
    waits.send()
    assert started.wait(10)
    house.stop()
    assert ended == ["CancelledError"]
    assert house.database.query("select state, attempt from all_messages") == [("pending", 0)]

"""After an outage the loops of a process share their attempts to connect, and say it in a few lines (FAILURES
40, 78).
"""

from __future__ import annotations

import random
import time

import pytest

from packhorse.worker.config import load_settings
from packhorse.worker.db.pool import Link
from packhorse.worker.db.reconnect import LEAST_SECONDS, URGENT_SECONDS, Backoff
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.service import Service
from tests.support.accounting import effects, wait_for_end
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LOOPS = 4
MOST = 3.0


class Asking(Service):
    """A loop that needs the database ten times a second."""

    def __init__(self, settings, name: str, *, holds: bool = False) -> None:
        super().__init__()
        self.name = name
        self._holds = holds
        self._link = Link(lambda: open_work(settings, name))
        self.answers = 0

    def urgent(self) -> bool:
        return self._holds

    def run_once(self) -> float:
        with self._link.connection() as connection:
            connection.execute("select 1")
        self.answers += 1
        return 0.1

    def on_stop(self) -> None:
        self._link.close()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.socket_dir)
    yield proxy
    proxy.close()


@pytest.fixture
def loops(proxy, database):
    settings = load_settings({}, database_url=proxy.url(database.name, ROLE))
    loops = [Asking(settings, f"loop {number}") for number in range(LOOPS)]
    for loop in loops:
        loop.start()
    wait_until(lambda: all(loop.answers for loop in loops))
    yield loops
    for loop in loops:
        loop.stop()
    assert all(loop.wait(20) for loop in loops)


def test_the_loops_of_a_process_try_to_connect_as_one(loops, proxy, monkeypatch):
    # the longest pause there is: the number of attempts follows
    monkeypatch.setattr(random, "random", lambda: 1.0)
    before = proxy.accepted_total
    proxy.refuse(True)
    wait_until(lambda: all(loop.failures for loop in loops), 20, "the outage")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 5, 10)
    assert 2 <= proxy.accepted_total - before <= LOOPS + 5, (
        "one each at first, then after 0.6, 1.1, 2.1 and 3 s"
    )


def test_when_the_database_is_back_all_loops_are_within_seconds(loops, proxy):
    proxy.refuse(True)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 4, 10)
    proxy.refuse(False)
    before = [loop.answers for loop in loops]
    wait_until(
        lambda: all(loop.answers > then for loop, then in zip(loops, before, strict=True)),
        MOST + 7,
        "all of them",
    )


def test_a_connection_that_is_cut_all_the_time_is_said_once_a_second_at_most(
    database, server, ledger, start_daemon, proxy
):
    daemon = start_daemon(proxy.url(database.name, ROLE), ledger).wait_ready()
    began = time.monotonic()
    while time.monotonic() - began < 8:
        proxy.cut()
        time.sleep(0.5)  # the beat itself
    seconds = time.monotonic() - began
    lines = daemon.log.count("service_failed") + daemon.log.count("service_recovered")
    assert 1 <= lines <= seconds + 1, daemon.log
    wait_until(lambda: "service_recovered" in daemon.log, 20, "it is well again")
    effects(database, 5)
    wait_for_end(database)
    assert daemon.stop() == 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(backoff: Backoff, *, urgent: bool = False) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught, backoff.attempt(urgent):
        raise StoreUnavailable("no route")
    return caught.value


def test_pauses_grow_and_stay_within_their_bounds():
    clock = Clock()
    backoff = Backoff(MOST, clock)
    longest = {False: 0.0, True: 0.0}
    for _ in range(200):
        assert refused(backoff).tried
        for urgent, most in ((True, URGENT_SECONDS), (False, MOST)):
            assert LEAST_SECONDS <= backoff.left(urgent) <= most
            longest[urgent] = max(longest[urgent], backoff.left(urgent))
        clock.now += backoff.left(False)
    assert longest[False] > MOST * 0.8 and longest[True] > URGENT_SECONDS * 0.8, "the whole range is used"


def test_nobody_tries_before_its_time_and_success_lets_all_try():
    clock = Clock()
    backoff = Backoff(MOST, clock)
    for _ in range(8):
        refused(backoff)
        clock.now += backoff.left(False)
    refused(backoff)
    other = refused(backoff)
    assert not other.tried and other.blocked is not None and other.blocked() > 0
    clock.now += backoff.left(True)
    with backoff.attempt(True):  # one that holds messages
        assert backoff.left(False) > 0, "it is on its way"
    assert other.blocked() == 0.0
    with backoff.attempt(False):
        pass


def test_attempts_that_began_together_are_one_failure():
    clock = Clock()
    backoff = Backoff(MOST, clock)
    with pytest.raises(StoreUnavailable), backoff.attempt(False):
        with pytest.raises(StoreUnavailable), backoff.attempt(False):
            raise StoreUnavailable("one")
        raise StoreUnavailable("two")
    assert backoff.left(False) <= LEAST_SECONDS + 0.5

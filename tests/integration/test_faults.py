"""What the library does when the database or the network fails: a deadline of our own on every call, one kind
of error.
"""

from __future__ import annotations

import threading
import time

import dramatiq
import pytest

from packhorse import PostgresBroker, StoreUnavailable
from packhorse.worker.db.connection import connect
from tests.support.harness import House, quick_settings
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.socket_dir)
    yield proxy
    proxy.close()


def test_a_call_to_a_server_that_says_nothing_ends_at_our_deadline(database, proxy):
    connection = connect(proxy.url(database.name, ROLE), deadline_seconds=0.5)
    connection.execute("select 1")
    proxy.go_deaf()
    began = time.monotonic()
    with pytest.raises(Exception, match="deadline"):
        connection.execute("select 1")
    # the only promise is that it ends; the margin is for a busy machine
    assert 0.4 < time.monotonic() - began < 5
    assert connection.closed, "nobody may use it again: an answer could still come"


def test_a_connection_to_a_deaf_server_is_given_up(database, proxy):
    proxy.go_deaf()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        connect(proxy.url(database.name, ROLE), connect_timeout_seconds=1)
    assert time.monotonic() - began < 10


def test_a_long_statement_ends_at_the_deadline_too(database):
    connection = connect(database.url, deadline_seconds=0.3)
    with pytest.raises(Exception, match="deadline"):
        connection.execute("select pg_sleep(30)")


@pytest.fixture
def broker(database, proxy, monkeypatch):
    broker = PostgresBroker(
        settings=quick_settings(database).model_copy(
            update={
                "database_url": type(quick_settings(database).database_url)(proxy.url(database.name, ROLE)),
                "call_deadline_seconds": 0.5,
                "connect_timeout_seconds": 1.0,
            }
        )
    )
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    yield broker
    broker.close()


def test_send_raises_store_unavailable_and_works_again_afterwards(database, broker, proxy):
    @dramatiq.actor
    def note(key):
        pass

    note.send("before")
    proxy.go_deaf()
    with pytest.raises(StoreUnavailable):
        note.send("deaf")
    proxy.hear_again()
    note.send("between")
    proxy.refuse(True)
    with pytest.raises(StoreUnavailable):
        note.send("refused 1")  # the connection is cut
    with pytest.raises(StoreUnavailable):
        note.send("refused 2")  # a new one is refused
    proxy.refuse(False)
    note.send("after")
    keys = {row[0] for row in database.query("select payload ->> 'key' from message_queue")}
    # what raised may have been committed (the answer was lost), what did not raise must have been
    assert {"before", "between", "after"} <= keys <= {"before", "between", "after", "deaf", "refused 1"}


def test_an_idle_connection_that_was_cut_costs_at_most_one_error(database, broker, proxy):
    @dramatiq.actor
    def note(key):
        pass

    note.send("before")
    proxy.cut()
    wait_until(
        lambda: (
            not database.query(
                "select 1 from pg_stat_activity where datname = current_database() and application_name like 'packhorse%%'"
            )
        )
    )
    try:
        note.send("maybe")
    except StoreUnavailable:
        pass
    note.send("after")
    assert (
        database.value("select count(*) from message_queue where payload ->> 'key' in ('before', 'after')")
        == 2
    )


def test_after_an_outage_the_pool_gives_out_no_second_dead_connection(database, broker, proxy):
    """Several idle connections died together: the first error tells that, the next caller simply connects."""
    together = threading.Barrier(5)

    @dramatiq.actor
    def note(key):
        pass

    def hold():
        with broker.pool.connection() as connection:
            connection.execute("select 1")
            together.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    proxy.cut()
    wait_until(
        lambda: (
            not database.query(
                "select 1 from pg_stat_activity where datname = current_database() and application_name like 'packhorse%%'"
            )
        )
    )
    with pytest.raises(StoreUnavailable):
        note.send("the first")
    note.send("the second")


def _sent(actor, *args):
    try:
        actor.send(*args)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("house_name", ["runtime", "dramatiq-worker"])
def test_both_ways_to_run_survive_cut_connections(database, monkeypatch, house_name):
    """dramatiq's Worker sees BrokerConnectionError and restarts its consumer; our runtime opens a new
    connection.
    """
    house = House(house_name, database, monkeypatch)
    done = []

    @dramatiq.actor
    def note(n):
        done.append(n)

    try:
        house.start()
        for round_number in range(3):
            for n in range(20):
                wait_until(lambda n=round_number * 20 + n: _sent(note, n), 10)
            database.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'packhorse%%'"
            )
        wait_until(lambda: set(done) == set(range(60)), 40)
        house.drained(30)
        assert house.dead() == []
    finally:
        house.stop()


def test_handlers_that_run_during_an_outage_complete_after_it(own_server, monkeypatch):
    database = own_server.create_database()
    house = House(
        "runtime", database, monkeypatch, lease_seconds=60, heartbeat_seconds=0.5, call_deadline_seconds=1
    )
    running, go_on = threading.Event(), threading.Event()

    @dramatiq.actor
    def slow():
        running.set()
        go_on.wait(20)

    try:
        house.start()
        slow.send()
        assert running.wait(10)
        own_server.stop("immediate")
        go_on.set()
        wait_until(lambda: house._worker.fetcher.failures > 0, 10)
        own_server.start()
        house.drained()
        assert database.query("select state, attempt, crashes from all_messages") == [("done", 1, 0)]
    finally:
        go_on.set()
        house.stop()

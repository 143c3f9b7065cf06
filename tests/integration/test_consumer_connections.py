"""dramatiq's own Worker makes a new consumer after a lost connection; what its handlers hold stays held (SPEC
P2, W1).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import BrokerConnectionError

from packhorse.worker.broker.consumer import PostgresConsumer
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import load_settings
from tests.support.accounting import allow_unreadable
from tests.support.harness import QUICK, House
from tests.support.postgres import ROLE, Database
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

EXPIRY = "select extract(epoch from lease_expires_at) from message_queue"


def beating() -> bool:
    return any(thread.name == "packhorse-heartbeat" for thread in threading.enumerate())


@pytest.mark.slow
def test_a_cut_does_not_start_a_running_message_again(database, monkeypatch):
    for delay in ("CONSUMER_RESTART_DELAY_SECS", "POST_PROCESS_MESSAGE_RETRY_DELAY_SECS"):
        monkeypatch.setattr(f"dramatiq.worker.{delay}", 0.1)
    house = House("dramatiq-worker", database, monkeypatch, lease_seconds=3, call_deadline_seconds=2)
    starts: list[float] = []
    go_on = threading.Event()

    @dramatiq.actor
    def slow():
        starts.append(database.value(EXPIRY))
        go_on.wait(20)

    try:
        house.start()
        slow.send()
        wait_until(lambda: starts)
        first = database.query(
            "select pg_terminate_backend(pid), backend_start from pg_stat_activity"
            " where datname = current_database() and application_name like 'packhorse%%'"
        )
        restarted = max(row[1] for row in first)
        wait_until(
            lambda: database.value(
                "select count(*) > 1 from pg_stat_activity where datname = current_database()"
                " and application_name like 'packhorse%%' and backend_start > %s",
                restarted,
            ),
            10,
            "a new consumer",
        )
        wait_until(
            lambda: len(starts) > 1 or (database.value(EXPIRY) or 0) > starts[0] + 3,
            15,
            "renewed, past its first lease",
        )
        go_on.set()
        house.drained()
        assert len(starts) == 1
        assert database.query("select state, attempt, crashes from message_archive") == [("done", 1, 0)]
    finally:
        go_on.set()
        house.stop()
    assert not beating()


@pytest.fixture
def cut_off(server: Any, database: Database) -> Iterator[tuple[Proxy, PostgresBroker]]:
    proxy = Proxy(server.socket_dir)
    settings = load_settings({}, **{**QUICK, "database_url": proxy.url(database.name, ROLE)})
    broker = PostgresBroker(settings=settings)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        """Its messages are taken by hand."""

    for _ in range(2):
        work.send()
    yield proxy, broker
    broker.close()
    proxy.close()


def test_a_consumer_that_closes_during_an_outage_stops_its_heartbeat(cut_off):
    """Else the heartbeat comes back with the database and renews, for ever, what nobody will run."""
    proxy, broker = cut_off
    consumer = PostgresConsumer(broker, "default", 2, 5.0)
    running = next(consumer)
    assert len(consumer._in_flight.messages) == 2 and beating(), "one handed out, one waiting"
    proxy.refuse(True)
    with pytest.raises(BrokerConnectionError):
        consumer.close()
    consumer.close()  # dramatiq's Worker does
    with pytest.raises(BrokerConnectionError):
        consumer.ack(running)
    assert consumer._in_flight.messages == {running.id: running} and beating(), (
        "a handler works on it, its acknowledgement is tried again"
    )
    proxy.refuse(False)
    successor = PostgresConsumer(broker, "default", 2, 5.0)
    successor.ack(running)
    assert not successor._in_flight.messages and not successor._in_flight.heartbeat.stopping, (
        "a consumer is open"
    )
    successor.close()
    assert not beating()


def test_nothing_is_renewed_for_nobody(cut_off):
    """The last message comes back after the last consumer is gone."""
    _, broker = cut_off
    consumer = PostgresConsumer(broker, "default", 1, 5.0)
    running = next(consumer)
    consumer.close()
    assert beating()
    consumer.ack(running)
    wait_until(lambda: not beating(), 10)


def test_a_row_that_cannot_be_buried_takes_no_neighbour_with_it(database):
    """They were claimed together; those behind it were held by nobody, and counted as crashes when their
    leases ended.
    """
    broker = PostgresBroker(settings=load_settings({}, **{**QUICK, "database_url": database.url}))
    dramatiq.actor(print, broker=broker, actor_name="work")
    allow_unreadable(database)
    with database.connect() as producer, database.connect() as other:
        database.query(
            "insert into message_queue (queue, message_type, payload, conversation_key) values ('default', 'work', %s, 'k')",
            f'{{"n": {"9" * 5000}}}',
        )
        successor = producer.execute(
            "select message_id from enqueue_message('default', 'work', p_conversation_key => 'k')"
        ).fetchone()[0]
        neighbour = producer.execute("select message_id from enqueue_message('default', 'work')").fetchone()[
            0
        ]
        producer.execute("update message_queue set state = 'blocked' where id = %s", (successor,))
        other.execute("begin")
        other.execute("select from message_queue where id = %s for update", (successor,))
        consumer = PostgresConsumer(broker, "default", 3, 5.0)
        claimed = next(consumer)
        assert claimed.id == neighbour and list(consumer._in_flight.messages) == [neighbour]
        other.execute("rollback")
    consumer.ack(claimed)
    consumer.close()
    broker.close()

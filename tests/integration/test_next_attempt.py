"""What is late about one attempt of a message says nothing about the next one, which has the same id (SPEC
P2).
"""

from __future__ import annotations

import time
from typing import Any

import dramatiq
import pytest

from packhorse.worker.attempt.messages import Outcome
from packhorse.worker.broker.consumer import PostgresConsumer
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from tests.support.harness import quick_settings
from tests.support.postgres import Database


@pytest.fixture
def broker(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    broker = PostgresBroker(settings=quick_settings(database))
    monkeypatch.setattr("packhorse.worker.runtime.process.load_broker", lambda settings: broker)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        """Nothing: its attempts are ended by hand."""

    work.send()
    yield broker
    broker.close()


def test_a_late_beat_does_not_forget_the_next_attempt(broker, database):
    """The beat has asked about attempt 1; while it waits for its answer the fetcher writes a snooze and
    claims attempt 2.
    """
    process = WorkerProcess(broker.settings, RunningIds(4))
    fetcher, heartbeat = process.fetcher, process.heartbeat
    fetcher.run_once()
    first = process.pool.ready.popleft()
    first.lease_until = time.monotonic() + 1  # not so young that it needs no beat
    first.outcome = Outcome("snooze", delay_seconds=0.0)
    open_connection = heartbeat._link._open

    def open_late():
        fetcher.on_finished(first)
        fetcher.run_once()
        return open_connection()

    heartbeat._link._open = open_late
    heartbeat.beat()
    second = process.pool.ready.popleft()
    assert first.lost and not second.lost and list(fetcher.in_flight) == [second]
    fetcher.on_finished(second)
    fetcher.run_once()
    assert database.query("select state, attempt from message_archive") == [("done", 1)], (
        "a snooze spends no attempt"
    )
    for link in (fetcher._link, heartbeat._link):
        link.close()


def test_a_consumer_does_not_forget_the_next_attempt(broker, database):
    consumer = PostgresConsumer(broker, "default", 1, 5.0)
    first = next(consumer)
    first.outcome = Outcome("snooze", delay_seconds=0.0)
    consumer.ack(first)
    second = next(consumer)
    consumer._in_flight._attend(first, False)  # what a beat hears that had asked before the acknowledgement
    assert consumer._in_flight.messages == {second.id: second}
    consumer.ack(second)
    consumer.close()
    assert database.query("select state, attempt from message_archive") == [("done", 1)]

"""A process that was out of contact for long: its types are not abandoned, its messages not buried (SPEC
W1b).
"""

from __future__ import annotations

from uuid import uuid4

import dramatiq
import pytest

from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.store import workers as store
from tests.support.harness import quick_settings
from tests.support.postgres import Database


class Fleet:
    """One process with the type `mine`, of which a message is due for two hours."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.outage = False
        self.heartbeat = Heartbeat(
            self._open, uuid4(), quick_settings(database), lambda: [], lambda message, held: None
        )
        with connect(database.url) as connection:
            self.heartbeat.register(connection, ["default"], ["mine"], 4)
        database.query(
            "select enqueue_message('default', 'mine', p_run_at => clock_timestamp() - interval '2 hours')"
        )

    def _open(self):
        if self.outage:
            raise StoreUnavailable("cut off")
        return connect(self.database.url)

    def two_hours_pass(self):
        for table in ("workers", "message_types"):
            self.database.query(f"update {table} set last_seen_at = last_seen_at - interval '2 hours'")

    def dead(self):
        return self.database.query("select reason from dead_letters")


@pytest.fixture
def fleet(database):
    fleet = Fleet(database)
    yield fleet
    fleet.heartbeat.on_stop()


def test_a_process_that_was_forgotten_registers_again_with_its_next_beat(fleet):
    fleet.two_hours_pass()
    fleet.database.query("select forget_dead_workers()")
    fleet.heartbeat.state = "draining"
    fleet.heartbeat.beat()
    fleet.heartbeat.beat()
    assert fleet.database.query("select state, message_types, threads from workers") == [
        ("draining", ["mine"], 4)
    ]
    with connect(fleet.database.url) as connection:
        for step in store.UPKEEP_STEPS:
            store.upkeep(connection, step, 3600)
    assert fleet.dead() == []


def test_what_a_worker_process_registers_its_beat_can_repeat(database, monkeypatch):
    broker = PostgresBroker(settings=quick_settings(database))
    dramatiq.actor(print, broker=broker, actor_name="mine")
    monkeypatch.setattr("packhorse.worker.runtime.process.load_broker", lambda settings: broker)
    process = WorkerProcess(broker.settings, RunningIds(4))
    assert process._wait_for_database()
    registered = database.query(
        "delete from workers returning id, hostname, pid, version, queues, message_types, threads"
    )
    process.heartbeat.beat()
    assert (
        database.query("select id, hostname, pid, version, queues, message_types, threads from workers")
        == registered
    )
    assert registered[0][5] == ["mine"]
    process.heartbeat.on_stop()
    broker.close()


def test_the_first_process_back_after_an_outage_does_not_bury_what_the_others_do(fleet):
    """They come back a moment later; until then nobody has named their types for two hours."""
    first = Heartbeat(
        fleet._open, uuid4(), quick_settings(fleet.database), lambda: [], lambda message, held: None
    )
    fleet.outage = True
    with pytest.raises(StoreUnavailable):
        first.run_once()
    first.failures = 1  # what the loop of a service counts
    fleet.two_hours_pass()
    fleet.outage = False
    first.run_once()
    assert fleet.dead() == []
    fleet.heartbeat.beat()
    first.failures, first._steps = 0, dict.fromkeys(first._steps, 0.0)
    for _ in store.UPKEEP_STEPS:
        first.run_once()
    assert fleet.dead() == []
    first.on_stop()

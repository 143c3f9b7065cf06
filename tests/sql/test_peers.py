"""How many processes could do the same work, who is called, and where sleepers hear by Redis (SPEC Q10):
peers_of_worker, call_workers, wake_channel.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from packhorse.worker.db.connection import connect
from packhorse.worker.store import wakes, workers
from tests.support.postgres import Database


@pytest.fixture
def worker(any_database: Database):
    with connect(any_database.url) as connection:
        yield connection


def registered(connection, queues=("default",), types=("a", "b"), isolation=False) -> UUID:
    worker_id = uuid4()
    workers.register(
        connection, worker_id, "host", 1, "0", list(queues), list(types), 2, 20, isolation, "{}", []
    )
    return worker_id


def beaten(connection, worker_id, **given):
    values = {"state": "running", "running": 0, **given}
    return workers.beat(connection, worker_id, [], [], 20, values["state"], 0, 0, [], values["running"])


def test_peers_are_those_that_live_and_could_take_the_same_messages_now(any_database, worker) -> None:
    own = registered(worker)
    assert beaten(worker, own).peers == 1
    others = [registered(worker) for _ in range(3)]
    registered(worker, types=("a",))
    registered(worker, queues=("default", "more"))
    registered(worker, isolation=True)
    assert beaten(worker, own).peers == 4
    beaten(worker, others[0], running=2)  # all its threads
    beaten(worker, others[1], state="draining")
    any_database.query(
        "update workers set last_seen_at = last_seen_at - interval '21 seconds' where id = %s", others[2]
    )
    assert beaten(worker, own).peers == 1


def test_each_of_a_fleet_knows_the_one_before_it_and_the_first_the_last(worker) -> None:
    assert beaten(worker, registered(worker)).before is None
    ids = [UUID(row[0]) for row in worker.execute("select id::text from packhorse.workers").fetchall()]
    ids += [registered(worker) for _ in range(4)]
    registered(worker, types=("a",))
    ids.sort()
    for place, own in enumerate(ids):
        assert beaten(worker, own).before == ids[place - 1]
    beaten(worker, ids[1], running=2)  # all its threads: its turns are those of the next
    assert beaten(worker, ids[2]).before == ids[0]


def test_workers_are_called_where_somebody_sleeps(any_database, worker) -> None:
    any_database.query("select declare_queue('awake')")
    wakes.announce_sleep(worker, ["default"], 10)
    with any_database.connect(admin=True) as listener:
        listener.execute("listen packhorse_wake")
        words = wakes.call_workers(worker, ["default", "awake", "unknown"], [7, 2**32 - 1], 2)
        assert sorted(words) == ["default@4294967295+2", "default@7+2"]
        assert sorted(note.payload for note in listener.notifies(timeout=5, stop_after=2)) == sorted(words)
    assert wakes.call_workers(worker, ["awake"], [7]) == []


def test_a_beat_of_a_process_that_was_forgotten_says_so(worker) -> None:
    assert beaten(worker, registered(worker)).known
    unknown = beaten(worker, uuid4())
    assert not unknown.known and unknown.attention == [] and unknown.asked is None


def test_the_channel_is_told_where_a_notify_would_be_sent(any_database, worker) -> None:
    channel = wakes.wake_channel(worker)
    assert wakes.wake_channels(worker, ["default", "unknown"]) == set()
    wakes.announce_sleep(worker, ["default"], 10)
    assert wakes.wake_channels(worker, ["default", "unknown"]) == {(channel, "default")}
    wakes.attend_queues(worker, ["default"], ["a"], 10)
    assert wakes.wake_channels(worker, ["default"]) == set()
    assert any_database.value(
        "select has_function_privilege('packhorse_producer', 'wake_channel(text)', 'execute')"
    )

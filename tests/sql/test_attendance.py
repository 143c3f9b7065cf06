"""One awake worker watches a queue, so that producers need no NOTIFY; and when they need it again (SPEC
Q10).
"""

from __future__ import annotations

import pytest

from packhorse.worker.db.connection import connect
from packhorse.worker.store import wakes as store
from tests.support.postgres import Database

pytestmark = pytest.mark.slow


@pytest.fixture
def listening(any_database: Database):
    """A connection that listens, on a database where somebody sleeps on queues a and b."""
    for queue in ("a", "b"):
        any_database.query("select declare_queue(%s)", queue)
    any_database.query("select announce_sleep(array['a', 'b'])")
    with connect(any_database.url) as connection:
        connection.execute("listen packhorse_wake", prepare=False)
        yield connection


def heard(connection, timeout=0.3):
    words = [note.payload for note in connection.notifies(timeout=timeout, stop_after=2)]
    return sorted(word.split("@")[0] for word in words)  # without the number that says whose turn it is


def enqueued(database: Database) -> None:
    database.query("select enqueue_message('a', 'work')")
    database.query("select enqueue_payloads('b', 'work', '[{}]')")


def registered(database: Database, queue: str, *types: str, silent: str = "0 seconds") -> None:
    database.query(
        "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration, last_seen_at) "
        "values (gen_random_uuid(), 'here', 1, '0', array[%s], %s, 1, '20 seconds', clock_timestamp() - %s::interval)",
        queue,
        list(types),
        silent,
    )


def test_producers_notify_for_sleepers_only_while_nobody_watches(any_database: Database, listening) -> None:
    enqueued(any_database)
    assert heard(listening) == ["a", "b"]
    with connect(any_database.url) as worker:
        assert sorted(store.attend_queues(worker, ["a", "b"], ["work"], 30)) == ["a", "b"]
        enqueued(any_database)
        assert heard(listening) == []
        store.hand_over_queues(worker, ["a", "b"], wake=False, leave=True)
        assert heard(listening) == []
        enqueued(any_database)
        assert heard(listening) == ["a", "b"]


def test_a_queue_is_watched_by_one_worker_until_its_time_is_over(any_database: Database) -> None:
    any_database.query("select declare_queue('a')")
    with connect(any_database.url) as one, connect(any_database.url) as other:
        assert store.attend_queues(one, ["a"], ["work"], 30) == ["a"]
        assert store.attend_queues(other, ["a", "default"], ["work"], 30) == ["default"]
        any_database.query(
            "update queue_wakeups set attended_until = clock_timestamp() - interval '1 second' where queue = 'a'"
        )
        assert store.attend_queues(other, ["a"], ["work"], 30) == ["a"]


def test_the_watching_worker_wakes_the_sleepers_and_goes_on_or_leaves(
    any_database: Database, listening
) -> None:
    with connect(any_database.url) as worker:
        store.attend_queues(worker, ["a", "b"], ["work"], 30)
        store.hand_over_queues(worker, ["a", "b"], wake=True, leave=False)
        assert heard(listening) == ["a!", "b!"], "all of them"
        enqueued(any_database)
        assert heard(listening) == []
        store.hand_over_queues(worker, ["a"], wake=True, leave=True)
        assert heard(listening) == ["a!"]
    assert any_database.query("select queue from queue_wakeups where attended_until is not null") == [("b",)]


def test_where_others_run_types_that_it_does_not_a_worker_cannot_watch(
    any_database: Database, listening
) -> None:
    """It would not see their messages, and nobody would be told of them."""
    registered(any_database, "a", "work", "other")
    registered(any_database, "b", "work")
    registered(any_database, "b", "gone", silent="2 minutes")
    with connect(any_database.url) as worker:
        assert store.attend_queues(worker, ["a", "b"], ["work", "more"], 30) == ["b"]
        assert store.keep_attending(worker, ["b"], ["work"], 30) == []
        registered(any_database, "b", "new")  # a rolling deployment
        assert store.keep_attending(worker, ["b"], ["work"], 30) == ["b"]
        assert heard(listening) == ["b!"]
    any_database.query("select enqueue_message('b', 'new')")
    assert heard(listening) == ["b"]


def test_nobody_waits_for_a_row_that_somebody_has_locked(any_database: Database, listening) -> None:
    with (
        any_database.connect(admin=True) as holder,
        connect(any_database.url, deadline_seconds=5) as worker,
        holder.transaction(),
    ):
        holder.execute("select from queue_wakeups where queue = 'a' for update")
        enqueued(any_database)
        assert store.attend_queues(worker, ["a", "b"], ["work"], 30) == ["b"]
        assert store.keep_attending(worker, ["a", "b"], ["work"], 30) == []


def test_a_request_for_notify_ends_by_itself_soon(any_database: Database) -> None:
    """When the last listener is gone, producers pay for NOTIFY for some seconds more, not for ever."""
    any_database.query("select announce_sleep(array['default'])")
    assert any_database.value(
        "select max(wake_until) < clock_timestamp() + interval '11 seconds' from queue_wakeups"
    )

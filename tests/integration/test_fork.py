"""A process that has enqueued forks: a pre-forking web server, multiprocessing. Its children enqueue, too."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator

import dramatiq
import pytest

from tests.support.houses import quick_settings
from tests.support.postgres import Database
from worker.broker import PostgresBroker

forking = multiprocessing.get_context("fork")


@pytest.fixture
def broker(database: Database) -> Iterator[PostgresBroker]:
    broker = PostgresBroker(settings=quick_settings(database))
    yield broker
    broker.close()


def ended(works: list[Callable[[], object]]) -> list[int | None]:
    """Run each in a child of its own, side by side; exit codes, negative for one that had to be killed."""
    children = [forking.Process(target=work) for work in works]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
        child.kill()
        child.join()
    return [child.exitcode for child in children]


def backends(broker: PostgresBroker) -> list[int]:
    with broker.pool.connection() as connection:
        return [row[0] for row in connection.execute("select pg_backend_pid()")]


def test_parent_and_children_enqueue_side_by_side(broker, database):
    @dramatiq.actor(broker=broker)
    def note(n):
        pass

    def enqueue():
        for n in range(30):
            note.send(n)
        broker.close()
        gc.collect()  # nothing that the child throws away may end the session of its parent

    note.send(0)
    before = backends(broker)
    assert ended([enqueue, enqueue]) == [0, 0]
    assert backends(broker) == before
    assert database.value("select count(*) from message_queue") == 61


def test_a_fork_while_a_connection_is_lent(broker):
    """The child does not put what it has inherited into its own pool, whichever way the block ends."""

    def leave_block(error: type[Exception] | None):
        lent = broker.pool.connection()
        connection = lent.__enter__()
        connection.execute("begin")
        pid = connection.info.backend_pid

        def child():
            lent.__exit__(error, error and error(), None)
            assert backends(broker) != [pid]

        codes = ended([child])
        assert connection.execute("select 1").fetchone() == (1,), "the parent's session goes on"
        connection.execute("rollback")
        lent.__exit__(None, None, None)
        return codes

    assert leave_block(None) == [0]
    assert leave_block(RuntimeError) == [0]

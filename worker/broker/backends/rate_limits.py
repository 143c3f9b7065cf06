"""dramatiq's rate-limiter backend on Postgres (SPEC W1): counters in the table rate_limiters, gone after
their ttl.

ConcurrentRateLimiter, BucketRateLimiter, WindowRateLimiter and Barrier (group callbacks) work on it.
Counters live and end on the database clock (SPEC P6); every change commits at once, also inside a
transactional handler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dramatiq.rate_limits import RateLimiterBackend

from packhorse.worker.broker.backends.connections import Connections
from packhorse.worker.store import backends as store

if TYPE_CHECKING:
    from packhorse.worker.broker.postgres import PostgresBroker

#: A waiting party looks this often for the event of its barrier.
WAIT_POLL_SECONDS = 0.05


class PostgresRateLimiterBackend(RateLimiterBackend):
    """Rate limiters on Postgres. broker: its connections are used; or dsn: a connection string. ttl is
    milliseconds everywhere.
    """

    def __init__(self, *, broker: PostgresBroker | None = None, dsn: str | None = None) -> None:
        self._connections = Connections(broker, dsn)

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Set a counter unless it exists."""
        with self._connections.lend() as connection:
            return store.add_rate_limiter(connection, key, value, ttl / 1000)

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """Add to a counter unless it would exceed maximum."""
        with self._connections.lend() as connection:
            return store.change_rate_limiter(connection, key, amount, None, maximum, ttl / 1000)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """Take from a counter unless it would fall below minimum."""
        with self._connections.lend() as connection:
            return store.change_rate_limiter(connection, key, -amount, minimum, None, ttl / 1000)

    def incr_and_sum(
        self, key: str, keys: Callable[[], Sequence[str]], amount: int, maximum: int, ttl: int
    ) -> bool:
        """Add to a counter unless the sum over keys() would exceed maximum."""
        # The keys of a window move with the time, and the SQL function takes its lock on the first of
        # them: callers on both sides of a second would not exclude each other. So the first one is a name
        # that the whole limiter shares; it holds no counter and adds nothing to the sum.
        shared = (key.rpartition("@")[0] or key) + "@window"
        with self._connections.lend() as connection:
            return store.change_rate_limiter(
                connection, key, amount, None, maximum, ttl / 1000, [shared, *keys()]
            )

    def wait(self, key: str, timeout: int | None) -> bool:
        """Wait until wait_notify(key) was called; False after timeout ms (None: no limit). Every waiter is
        told.
        """
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            with self._connections.lend() as connection:
                if store.get_rate_limiter(connection, key) is not None:
                    return True
            remaining = WAIT_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                return False
            threading.Event().wait(min(WAIT_POLL_SECONDS, remaining))

    def wait_notify(self, key: str, ttl: int) -> None:
        """Tell those that wait for key, and those that will within ttl ms."""
        self.add(key, 1, ttl)

    def close(self) -> None:
        """Close the connections of a backend that was made with dsn."""
        self._connections.close()

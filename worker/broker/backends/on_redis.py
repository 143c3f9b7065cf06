"""dramatiq's result and rate-limiter backends on Redis, with a deadline on every call (SPEC W1, FAILURES 42,
47).

worker/redis/server.py has the clients, and says what happens while Redis is away. Imported only where
redis_url is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from dramatiq.rate_limits.backends.redis import RedisBackend as StockLimiters
from dramatiq.results import ResultTimeout
from dramatiq.results.backend import DEFAULT_TIMEOUT
from dramatiq.results.backends.redis import RedisBackend as StockResults

from packhorse.worker.broker.backends.losses import TellsLosses
from packhorse.worker.redis.server import WAIT_SECONDS, RedisServer, server


class RedisResultBackend(TellsLosses, StockResults):
    """Results on Redis. A result that cannot be kept is lost, and said so; its message is done all the same
    (see losses.py).
    """

    def __init__(self, *, url: str, **options: Any) -> None:
        self._server = server(url)
        super().__init__(client=self._server.client, **options)

    def get_result(self, message: Any, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of a message; waits for it up to `timeout` ms (default 10000; whole seconds) when block
        is True.

        Raises ResultMissing, ResultTimeout, ResultFailure (the actor failed), StoreUnavailable (Redis does
        not answer).
        """
        if not block:
            with self._server.call():
                return super().get_result(message)
        key = self.build_message_key(message)
        seconds = int((DEFAULT_TIMEOUT if timeout is None else timeout) / 1000)
        with self._server.call():
            data = (
                self._server.client.rpoplpush(key, key) if seconds <= 0 else _wait(self._server, key, seconds)
            )
        if data is None:
            raise ResultTimeout(message)
        return self.unwrap_result(self.encoder.decode(data))

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        with self._server.call():
            super()._store(message_key, result, ttl)


class RedisRateLimiterBackend(StockLimiters):
    """Rate limiters on Redis. Every call raises StoreUnavailable when Redis does not answer."""

    def __init__(self, *, url: str) -> None:
        self._server = server(url)
        super().__init__(client=self._server.client)

    def add(self, key: str, value: int, ttl: int) -> bool:
        with self._server.call():
            return bool(super().add(key, value, ttl))

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        with self._server.call():
            return bool(super().incr(key, amount, maximum, ttl))

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        with self._server.call():
            return bool(super().decr(key, amount, minimum, ttl))

    def incr_and_sum(
        self, key: str, keys: Callable[[], Sequence[str]], amount: int, maximum: int, ttl: int
    ) -> bool:
        with self._server.call():
            return bool(super().incr_and_sum(key, keys, amount, maximum, ttl))

    def wait(self, key: str, timeout: int | None) -> bool:
        """Wait until wait_notify(key) was called; False after timeout ms, at least 1000 (None: no limit)."""
        with self._server.call():
            return bool(_wait(self._server, key, None if timeout is None else timeout // 1000) == b"x")

    def wait_notify(self, key: str, ttl: int) -> None:
        with self._server.call():
            super().wait_notify(key, ttl)


def _wait(server: RedisServer, key: str, seconds: int | None) -> Any:
    """What comes into the list `key`, which stays there; None after so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        found = server.waiting.brpoplpush(key, key, WAIT_SECONDS)
        if found is not None or (deadline is not None and time.monotonic() >= deadline):
            return found

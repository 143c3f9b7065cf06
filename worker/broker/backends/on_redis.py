"""dramatiq's result and rate-limiter backends on Redis, with a deadline on every call (SPEC W1, FAILURES 42,
47).

A Redis that is frozen, or whose host is gone, answers nothing and refuses nothing: without deadlines each
handler that has a result to keep waits in its slot until all slots wait. With deadlines alone each of them
still pays one. So the first call that gets no answer tells the others: they fail at once, and a thread asks
in the background until Redis answers again.

Imported only where redis_url is set.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from dramatiq.rate_limits.backends.redis import RedisBackend as StockLimiters
from dramatiq.results import ResultTimeout
from dramatiq.results.backend import DEFAULT_TIMEOUT
from dramatiq.results.backends.redis import RedisBackend as StockResults
from redis.backoff import NoBackoff
from redis.retry import Retry

from packhorse.worker import forks
from packhorse.worker.broker.backends.losses import TellsLosses
from packhorse.worker.errors import StoreUnavailable

logger = logging.getLogger("packhorse.redis")

#: To connect, and for each answer. The URL may say otherwise (`?socket_timeout=3`).
DEADLINE_SECONDS = 1.0
#: Who waits for something to come asks Redis for so long at a time; Redis holds the answer back as long.
WAIT_SECONDS = 1
#: An idle connection that is older is tried before it is used.
IDLE_SECONDS = 30
#: Between two looks whether Redis is back.
LOOK_SECONDS = 0.5

_servers: dict[str, RedisServer] = {}
_making = threading.Lock()


class RedisServer:
    """One Redis for all backends of this process that use it: clients with deadlines, and whether it
    answers.
    """

    def __init__(self, url: str) -> None:
        self.client = _client(url, DEADLINE_SECONDS)
        self.waiting = _client(url, WAIT_SECONDS + DEADLINE_SECONDS)
        self._sockets = [_RedisSockets(client.connection_pool) for client in (self.client, self.waiting)]
        self._lock = threading.Lock()
        self._looking: int | None = None  # the process whose thread looks whether it is back

    @property
    def away(self) -> bool:
        """It did not answer, and nobody has seen it answer since. (A forked child has no such thread, and
        finds out itself.)
        """
        return self._looking == os.getpid()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Talk to it. Raises StoreUnavailable: it does not answer, or has not for a while."""
        if self.away:
            raise StoreUnavailable("redis_url: Redis does not answer")
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._lost(error)
            raise StoreUnavailable(f"redis_url: Redis does not answer: {type(error).__name__}") from error

    def _lost(self, error: Exception) -> None:
        with self._lock:
            if self.away:
                return
            self._looking = os.getpid()
        logger.warning("redis_unavailable error_class=%s", type(error).__name__)
        threading.Thread(target=self._look, name="packhorse-redis", daemon=True).start()

    def _look(self) -> None:
        began = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)  # nothing to be woken for: a daemon thread ends with its process
            try:
                self.client.ping()
                break
            except Exception:  # whatever it says: not back
                continue
        self._looking = None
        logger.info("redis_recovered seconds=%.1f", time.monotonic() - began)


class _RedisSockets:
    """A forked child of a handler closes its copies; redis-py opens others when the child asks for
    something.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        for name in ("_available_connections", "_in_use_connections"):
            for connection in list(getattr(self._pool, name, ())):
                if getattr(connection, "_sock", None) is not None:
                    connection._sock.close()


def server(url: str) -> RedisServer:
    """The one of this URL. Raises ValueError for what is no Redis URL."""
    with _making:
        if url not in _servers:
            _servers[url] = RedisServer(url)
        return _servers[url]


def _client(url: str, deadline_seconds: float) -> Any:
    """One more try after a connection that Redis has closed, none after a deadline."""
    pool = redis.ConnectionPool.from_url(
        url,
        socket_timeout=deadline_seconds,
        socket_connect_timeout=DEADLINE_SECONDS,
        health_check_interval=IDLE_SECONDS,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    return redis.Redis(connection_pool=pool)


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

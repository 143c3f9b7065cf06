"""Clients of one Redis with a deadline on every call, and whether it answers (SPEC W1, Q10, FAILURES 42, 47).

A Redis that is frozen, or whose host is gone, answers nothing and refuses nothing: without deadlines each
handler that has a result to keep waits in its slot until all slots wait. With deadlines alone each of them
still pays one. So the first call that gets no answer tells the others: they fail at once, and a thread asks
in the background until Redis answers again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from packhorse.worker import forks
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


@dataclass(frozen=True, slots=True)
class Use:
    """What a Redis is used for; each has a circuit of its own, for they have different patience.

    name: for the log. deadline_seconds: of a call; None: DEADLINE_SECONDS, or what the URL says. doubts: a
    call without an answer is no outage before a second one, with DEADLINE_SECONDS, has none either.
    """

    name: str
    deadline_seconds: float | None = None
    connect_seconds: float = DEADLINE_SECONDS
    doubts: bool = False


RESULTS = Use("results")

_servers: dict[tuple[str, str], RedisServer] = {}
_making = threading.Lock()


class RedisServer:
    """One Redis for everything of this process that has the same use for it: clients with deadlines, and
    whether it answers.

    client: for calls. waiting: for calls that Redis may answer WAIT_SECONDS later.
    """

    def __init__(self, url: str, use: Use = RESULTS) -> None:
        self._use = use
        self.client = _client(url, DEADLINE_SECONDS, use.deadline_seconds, use.connect_seconds)
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
            raise _unavailable("redis_url: Redis does not answer")
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._lost(error)
            raise _unavailable(f"redis_url: Redis does not answer: {type(error).__name__}") from error

    def _lost(self, error: Exception) -> None:
        with self._lock:
            if self.away:
                return
            self._looking = os.getpid()
        if not self._use.doubts:
            self._say(error)
        threading.Thread(target=self._look, args=(error,), name="packhorse-redis", daemon=True).start()

    def _say(self, error: Exception) -> None:
        logger.warning("redis_unavailable use=%s error_class=%s", self._use.name, type(error).__name__)

    def _look(self, error: Exception) -> None:
        began, said = time.monotonic(), not self._use.doubts
        while True:
            if said:
                time.sleep(LOOK_SECONDS)  # nothing to be woken for: a daemon thread ends with its process
            try:
                self.waiting.ping()
                break
            except Exception:  # whatever it says: not back
                if not said:
                    said = True
                    self._say(error)
        self._looking = None
        if said:
            logger.info("redis_recovered use=%s seconds=%.1f", self._use.name, time.monotonic() - began)


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


def server(url: str, use: Use = RESULTS) -> RedisServer:
    """The one of this URL and use. Raises ValueError for what is no Redis URL."""
    with _making:
        if (url, use.name) not in _servers:
            _servers[url, use.name] = RedisServer(url, use)
        return _servers[url, use.name]


def _client(
    url: str,
    deadline_seconds: float,
    fixed_seconds: float | None = None,
    connect_seconds: float = DEADLINE_SECONDS,
) -> Any:
    """One more try after a connection that Redis has closed, none after a deadline. fixed_seconds: the
    deadline whatever the URL says.
    """
    pool = redis.ConnectionPool.from_url(
        url,
        socket_timeout=deadline_seconds,
        socket_connect_timeout=DEADLINE_SECONDS,
        health_check_interval=IDLE_SECONDS,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    if fixed_seconds is not None:
        pool.connection_kwargs.update(socket_timeout=fixed_seconds, socket_connect_timeout=connect_seconds)
    return redis.Redis(connection_pool=pool)


def _unavailable(text: str) -> StoreUnavailable:
    error = StoreUnavailable(text)
    error.tried = False  # said here; a loop that meets it need not say it again
    return error

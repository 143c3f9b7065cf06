"""Wake-ups by Redis pub/sub, where LISTEN cannot work (SPEC Q10): hints only, polling remains the truth.

A worker subscribes to one channel per queue schema, whose name the database says (wake_channel in
migrations/functions/wakeups.sql). A producer that has committed publishes the name of the queue there, when
the statement of its enqueue has told it that somebody sleeps. What nobody publishes is heard by LISTEN on a
direct connection of one process of the fleet, where there is a listen_url (worker/runtime/repeater.py), or
found by polling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import redis

from packhorse.worker import forks
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.redis.server import DEADLINE_SECONDS, Use, server
from packhorse.worker.service import Service

#: An enqueue waits for Redis for so long at most, once: then nothing is published until Redis answers again.
WAKEUPS = Use("wakeups", deadline_seconds=0.02, connect_seconds=0.05, doubts=True)
#: Nothing was heard for so long: ask whether the connection lives.
QUIET_SECONDS = 2.0


class Publisher:
    """Tells sleeping workers that their queues have work. Any thread; it never raises and never waits long.
    Raises ValueError when it is made for what is no Redis URL.
    """

    def __init__(self, url: str) -> None:
        self._server = server(url, WAKEUPS)

    def publish(self, wakes: Iterable[tuple[str, str]]) -> None:
        """wakes: (channel, queue)."""
        with suppress(StoreUnavailable):
            for channel, queue in wakes:
                with self._server.call():
                    self._server.client.publish(channel, queue)


class Subscriber(Service):
    """Calls `on_wake(queue)` for each message of the channel, and on_wake("") after each (re)connect.

    channel: asked after each connect; raises StoreError. listening: would we hear now?
    """

    name = "listener"
    max_backoff_seconds = 1.0

    def __init__(self, url: str, channel: Callable[[], str], on_wake: Callable[[str], None]) -> None:
        super().__init__()
        self._server = server(url, WAKEUPS)
        self._ask_channel = channel
        self._on_wake = on_wake
        self._pubsub: Any = None
        self._heard_at = 0.0
        self._asked = False  # whether the connection lives
        self.listening = False  # written by this service's thread only
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: the connection is the parent's."""
        self._drop()

    def run_once(self) -> float:
        try:
            with self._server.call():
                self._hear()
        except BaseException:
            self.listening = False
            self._drop()
            raise
        return 0.0

    def _hear(self) -> None:
        """Wait for the next message, or find out that the connection is dead."""
        if self._pubsub is None:
            channel = self._ask_channel()
            self._pubsub = self._server.waiting.pubsub()
            self._pubsub.subscribe(channel)
            self._heard_at, self._asked = time.monotonic(), True  # the answer to `subscribe` is the first
        message = self._pubsub.get_message(timeout=DEADLINE_SECONDS if self._asked else QUIET_SECONDS)
        now = time.monotonic()
        if message is None:
            if self._asked and now - self._heard_at > QUIET_SECONDS:
                raise redis.TimeoutError("nothing was heard")
            if not self._asked:
                self._pubsub.ping()
                self._heard_at, self._asked = now, True
            return
        self._heard_at, self._asked = now, False
        if message["type"] == "subscribe":
            self.listening = True
            self._on_wake("")
        elif message["type"] == "message":
            self._on_wake(message["data"].decode("utf-8", "replace"))

    def _drop(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(Exception):  # what it says of a dead connection helps nobody
                pubsub.close()

    def on_stop(self) -> None:
        self.listening = False
        self._drop()


class Turn:
    """Which of several processes does something: the one that has a key of Redis, for a while. A hint, no
    lock: two may believe it for a moment.
    """

    def __init__(self, url: str, holder: str, seconds: float) -> None:
        self._server = server(url, WAKEUPS)
        self._holder = holder.encode()
        self._milliseconds = int(seconds * 1000)

    def take(self, name: str) -> bool:
        """Is it our turn, from now on for `seconds`? Raises StoreUnavailable."""
        with self._server.call():
            client = self._server.client
            if client.set(name, self._holder, nx=True, px=self._milliseconds):
                return True
            return bool(client.get(name) == self._holder and client.pexpire(name, self._milliseconds))

    def leave(self, name: str) -> None:
        """Let another one have it at once; never raises."""
        with suppress(StoreUnavailable), self._server.call():
            if self._server.client.get(name) == self._holder:
                self._server.client.delete(name)

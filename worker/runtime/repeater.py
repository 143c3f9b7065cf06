"""From NOTIFY to Redis: one process of the fleet LISTENs and publishes what it hears (SPEC Q10).

A NOTIFY goes through a transaction pooler, a LISTEN does not. So where there is a listen_url, what producers
in any language and SQL functions notify wakes the whole fleet by one direct connection, instead of one per
process. Which process it is says a key of Redis; no promise rests on it. While nobody has it, workers poll.
"""

from __future__ import annotations

from collections.abc import Callable

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.listen import Listener
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.redis.wakeups import Publisher, Turn
from packhorse.worker.service import Service

#: The turn of a process that is killed ends after TURN_SECONDS; the others ask this often.
TURN_SECONDS, ASK_SECONDS = 6.0, 2.0
#: Its listener looks this often whether it is to end.
IDLE_SECONDS = 0.2


class Repeater(Service):
    """Takes the turn when nobody has it, and then listens.

    channel: asked once; raises StoreError. holder: a name of this process that no other has.
    """

    name = "repeater"

    def __init__(
        self,
        url: str,
        holder: str,
        channel: Callable[[], str],
        open_connection: Callable[[], DeadlineConnection],
    ) -> None:
        super().__init__()
        self._turn = Turn(url, holder, TURN_SECONDS)
        self._publisher = Publisher(url)
        self._ask_channel = channel
        self._open_connection = open_connection
        self._channel: str | None = None
        self._listener: Listener | None = None

    def run_once(self) -> float:
        if self._channel is None:
            self._channel = self._ask_channel()
        try:
            ours = self._turn.take(self._key)
        except StoreUnavailable:  # said by worker/redis/server.py; nothing could be published either
            ours = False
        if ours and self._listener is None:
            self._listener = Listener(self._open_connection, self._pass_on, IDLE_SECONDS)
            self._listener.start()
        elif not ours:
            self._end()
        return ASK_SECONDS

    @property
    def _key(self) -> str:
        return f"{self._channel}:repeater"

    def _pass_on(self, queue: str) -> None:
        if self._channel is not None:
            self._publisher.publish([(self._channel, queue)])

    def _end(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener.wait(TURN_SECONDS)  # longer than its connection may take
            self._listener = None

    def on_stop(self) -> None:
        if self._listener is not None:
            self._end()
            self._turn.leave(self._key)

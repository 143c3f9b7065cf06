"""What a producer publishes by Redis once it has committed (SPEC Q10).

The statement of an enqueue says whether somebody sleeps on the queue, and on which channel: a busy queue
costs Redis nothing. What is enqueued in a transaction of somebody else is heard of by a process that LISTENs
and repeats it, or found by the poll.
"""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING

from packhorse.worker.config import Settings
from packhorse.worker.config.wakeups import no_redis_url
from packhorse.worker.store.wakes import Wake

if TYPE_CHECKING:
    from packhorse.worker.redis.wakeups import Publisher


class Waking:
    """Of one broker. Any thread."""

    def __init__(self) -> None:
        self._publisher: Publisher | None = None

    @staticmethod
    def new(settings: Settings) -> set[Wake] | None:
        """Takes what an enqueue wants published after its commit; None where producers publish nothing."""
        return set() if settings.producers_publish else None

    def publish(self, settings: Settings, wakes: set[Wake] | None) -> None:
        """Wake a sleeping worker of each queue, after the commit. Waits a few milliseconds at most. Raises
        ConfigError for what is no Redis URL.
        """
        if wakes:
            self.tell(settings, {(channel, f"{queue}@{getrandbits(32)}") for channel, queue in wakes})

    def tell(self, settings: Settings, words: set[Wake]) -> None:
        """Publish these as they are (worker/runtime/ring.py says what they mean)."""
        if self._publisher is None:
            from packhorse.worker.redis.wakeups import Publisher

            try:
                self._publisher = Publisher(settings.redis())
            except ValueError as error:
                raise no_redis_url(error) from error
        self._publisher.publish(words)

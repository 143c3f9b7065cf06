"""How a worker process hears that queues have work, and tells others (SPEC Q10)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config.wakeups import no_redis_url
from packhorse.worker.db.listen import Listener
from packhorse.worker.db.sessions import open_listen
from packhorse.worker.store.wakes import wake_channel

if TYPE_CHECKING:
    from packhorse.worker.redis.wakeups import Subscriber
    from packhorse.worker.runtime.repeater import Repeater


class Hearing:
    """The services of one process for that.

    holder: a name of this process that no other has. repeats: it may be the one that repeats by Redis what it
    hears by LISTEN. Raises ConfigError for what is no Redis URL.
    """

    def __init__(
        self,
        broker: PostgresBroker,
        holder: str,
        how: Literal["listen", "redis", "poll"],
        on_wake: Callable[[str], None],
        *,
        repeats: bool,
    ) -> None:
        self._broker = broker
        self._channel: str | None = None  # of Redis, once a service has asked
        self.service: Listener | Subscriber | None = None
        self.repeater: Repeater | None = None
        settings = broker.settings
        if how == "listen":
            self.service = Listener(partial(open_listen, settings, url=broker.url), on_wake)
        elif how == "redis":
            from packhorse.worker.redis.wakeups import Subscriber

            try:
                self.service = Subscriber(settings.redis(), self._ask_channel, on_wake)
            except ValueError as error:
                raise no_redis_url(error) from error
            if repeats and settings.listen_url is not None:
                from packhorse.worker.runtime.repeater import Repeater

                opened = partial(open_listen, settings)
                self.repeater = Repeater(settings.redis(), holder, self._ask_channel, opened)

    @property
    def listening(self) -> bool:
        """Would we hear now?"""
        return self.service is not None and self.service.listening

    def tell(self, words: list[str]) -> None:
        """Publish what SQL functions have notified just now, where no process repeats it."""
        settings = self._broker.settings
        if self._channel is not None and settings.producers_publish:
            self._broker.waking.tell(settings, {(self._channel, word) for word in words})

    def start(self) -> None:
        for service in (self.service, self.repeater):
            if service is not None:
                service.start()

    def stop(self) -> None:
        """Ask them to end; returns at once."""
        for service in (self.service, self.repeater):
            if service is not None:
                service.stop()

    def _ask_channel(self) -> str:
        with self._broker.pool.connection() as connection:
            self._channel = wake_channel(connection)
            return self._channel

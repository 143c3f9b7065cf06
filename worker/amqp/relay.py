"""One process of `packhorse relay`: that of worker/runtime/process.py, with a pool that publishes in place of
handlers, and no user's code.

It serves the queues that are forwarded, or those of them that the setting `queues` names. When others are
forwarded than at its start, it drains and its parent starts the next one, which serves these.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from packhorse.worker.amqp.connection import BrokerAway, declare_queues
from packhorse.worker.amqp.depths import Depths
from packhorse.worker.amqp.relay_pool import RelayPool
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import ConfigError, StoreUnavailable
from packhorse.worker.exits import EXIT_RECYCLED
from packhorse.worker.runtime.claims import Kind
from packhorse.worker.runtime.feeder import Feeder
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.store import workers as store

logger = logging.getLogger("packhorse.relay")

FORWARD = "amqp"
#: Where nothing is forwarded, a relay claims from here, in vain, and so learns when something is.
NO_QUEUE = "default"
#: A queue that RabbitMQ refuses to have is tried again after this.
REFUSED_SECONDS = 60.0


class RelayProcess(WorkerProcess):
    """The composition of one child that relays. Its settings have no actors, threads and coroutines."""

    forward = FORWARD
    relay: RelayPool

    def __init__(self, settings: Settings, running: RunningIds, *args: Any) -> None:
        self._forwarded: list[str] | None = None  # as it was at the start; None: the database did not say
        self._refused_at = 0.0  # when RabbitMQ refused a queue; 0: none
        super().__init__(settings, running, *args)
        self._handlers = LastLetters(self.relay)  # type: ignore[assignment]

    def _load_broker(self) -> PostgresBroker:
        return PostgresBroker(settings=self.settings, middleware=[])

    def _own_queues(self) -> list[str]:
        """Those that are forwarded and that RabbitMQ has, or takes."""
        try:
            connection = self.broker.open_connection("start")
            try:
                with translated():
                    self._forwarded = store.forwarded_queues(connection, FORWARD)
            finally:
                connection.close()
        except StoreUnavailable:
            pass  # the first claim says it
        wanted = list(self.settings.queues) or self._forwarded or []
        return self._without_refused(wanted) or [NO_QUEUE]

    def _without_refused(self, queues: list[str]) -> list[str]:
        """A queue that RabbitMQ refuses keeps no other one from being served. Raises ConfigError when it is
        all of them, or the connection.
        """
        try:
            declare_queues(self.settings, queues, "start")
            return queues
        except BrokerAway:
            return queues  # the pool waits for it
        except ConfigError:
            if len(queues) < 2:
                raise
        kept, problems = [], []
        for queue in queues:
            try:
                declare_queues(self.settings, [queue], "start")
                kept.append(queue)
            except BrokerAway:
                kept.append(queue)
            except ConfigError as error:
                problems += error.problems
                self._refused_at = time.monotonic()
                logger.error("relay_queue_refused queue=%s error=%s: left in Postgres", queue, error)
        if not kept:
            raise ConfigError(sorted(set(problems)))
        return kept

    def _feeder(self, kinds: list[Kind], hooks: Hooks, meter: Meter, running: RunningIds) -> Feeder:
        relay = self.relay = RelayPool(
            self.settings,
            [
                queue
                for queue in self.queues
                if queue != NO_QUEUE or queue in (self._forwarded or self.settings.queues)
            ],
            lambda message: self.fetcher.on_finished(message, starving=not relay.ready),
            self.stats.duties,
        )
        self._pools.append(relay)
        self._depths = Depths(self.settings, relay.queues, self.stats)
        return super()._feeder([Kind(relay, [])], hooks, meter, running)

    def _watch(self) -> None:
        super()._watch()
        self.timekeeper.pool_ticked = lambda now: None  # that of threads; ours ticks itself
        self.relay.ticked = partial(self.stats.tick, "pool")

    def _start_services(self) -> None:
        super()._start_services()
        self._depths.start()

    def drain(self) -> None:
        self._depths.stop()  # not waited for: it may be asking a broker that does not answer
        super().drain()

    def _on_forwarded(self, queues: Sequence[str]) -> None:
        """Fetcher: the queues that are forwarded now."""
        if list(queues) != self._forwarded and not self.settings.queues and not self._stop.asked:
            logger.info("relay_queues_changed queues=%s: the next process serves them", ",".join(queues))
            self._end()

    def _check(self) -> None:
        if not self.relay.alive:
            logger.error("threads_missing worker_id=%s alive=0", self.id)
            self._end()
        elif self._refused_at and time.monotonic() - self._refused_at > REFUSED_SECONDS:
            self._end()
        super()._check()

    def _end(self) -> None:
        """To be replaced at once."""
        self.exit_code = EXIT_RECYCLED
        self._stop.ask()


class LastLetters:
    """What is still with the broker when the process is to end; in place of LastHandlers."""

    def __init__(self, relay: RelayPool) -> None:
        self.stuck: set[int] = set()
        self._relay = relay

    def left(self) -> int:
        """How many messages are not confirmed."""
        return self._relay.unconfirmed

    def interrupt(self) -> int:
        """Wait no longer; they are given back, and published again by others."""
        self._relay.give_up()
        return 0

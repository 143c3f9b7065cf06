"""The consumer: from RabbitMQ to the pools of handlers, and back what became of each message.

One thread, one event loop (loop.py). It stands where the fetcher does in a process that works on Postgres:
pools, executor, timekeeper, meter and log are the same. What it holds is custody.py's.

When the connection is lost RabbitMQ gives what is here to others, and it connects anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pika import BasicProperties
from pika.channel import Channel
from pika.spec import Basic

from packhorse.worker.amqp.acks import Acks
from packhorse.worker.amqp.custody import Custody
from packhorse.worker.amqp.deliveries import Delivery
from packhorse.worker.amqp.loop import BrokerLoop
from packhorse.worker.amqp.topology import UNDELIVERED, ForwardedQueue
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.observe.process_stats import CLAIM_FAILING, CONTACT_AT
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.service import Service

logger = logging.getLogger("packhorse.amqp")

TICK_SECONDS = 0.5
#: While it leaves: how often it looks whether what runs has ended.
LEAVE_SECONDS = 0.02
#: A pool that has more to begin wakes the loop for so many finished messages.
BATCH = 8
#: Handlers quicker than the first on average have WIDER times the messages at hand, until they take longer
#: than the second: a message that waits behind slow ones here could have been begun elsewhere.
QUICK_SECONDS, SLOW_SECONDS = 0.02, 0.05
WIDER = 8
UNDELIVERED_PREFETCH = 10


class AmqpConsumer(Service):
    """on_finished is called by the pools, everything else by its own thread, but for what says so.

    draining: begin nothing more. quiet: an operator wants the same, and the process lives on. slot_of:
    where a message runs. prefetch: of a queue; of a partition a quarter.
    """

    name = "consumer"
    max_backoff_seconds = 5.0
    quiet = False

    def __init__(
        self,
        settings: Settings,
        worker_id: object,
        meter: Meter,
        slot_of: Callable[[ClaimedMessage], Slot | None],
        prefetch: int,
        *,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self._settings = settings
        self.worker_id = worker_id
        self.meter = meter
        self._slot_of = slot_of
        self._prefetch = prefetch
        self._fixed = fixed
        self._is_wide = False
        self.custody: Custody
        self.queues: list[str] = []  # that it consumes
        self.draining = False
        self.busy_at = time.monotonic()
        self._connections = 0
        self._amqp: BrokerLoop | None = None
        self._channel: Channel | None = None
        self._consumed: dict[str, str] = {}  # queue on the broker -> consumer tag
        self._asked = self._has_left = False
        self._stop_by = 0.0

    # -- any thread ----------------------------------------------------------------------------------
    def on_finished(self, message: ClaimedMessage, *, starving: bool = False) -> None:
        """A pool hands a message back. starving: it has nothing else to begin."""
        finished = self.custody.finished
        finished.append(message)
        if not self._asked and (starving or len(finished) >= BATCH):
            self.wake()

    def wake(self) -> None:
        super().wake()
        self._asked = True
        self._call(self._turn)

    def on_wake(self, _queue: str) -> None:
        """As the fetcher's."""
        self.wake()

    def stop(self) -> None:
        super().stop()
        self._call(self._turn)

    @property
    def unwritten(self) -> int:
        """Messages that the pools have handed back; their outcomes are still to be written."""
        return len(self.custody.finished)

    @property
    def in_flight(self) -> InFlight:
        return self.custody.in_flight

    def _call(self, function: Callable[[], Any]) -> None:
        loop = self._amqp
        if loop is not None:
            try:
                loop.call(function)
            except Exception:  # it has just ended, whatever pika makes of that: the next one looks by itself
                pass

    def consume(self, queue: str) -> None:
        """One more queue, which is declared."""
        if queue not in self.queues:
            self.queues.append(queue)
            self._call(partial(self._consume_queue, queue))

    # -- a connection's life -------------------------------------------------------------------------
    def run_once(self) -> float:
        loop = self._amqp = BrokerLoop(self._settings, "worker", self._on_open)
        self._has_left = False
        loop.ioloop.call_later(TICK_SECONDS, self._tick)
        try:
            loop.run()
        except Exception:
            self.meter.stats.states[CLAIM_FAILING] = 1.0
            raise
        finally:
            self._amqp = self._channel = None
            self._consumed.clear()
            self.custody.lost(self._slot_of)
        return 0.0

    def _on_open(self, channel: Channel) -> None:
        self._connections += 1
        self._channel = channel
        if self._amqp is not None:
            self.custody.opened(self._amqp, Acks(channel))
        self.meter.stats.states[CLAIM_FAILING] = 0.0
        self.meter.stats.states[CONTACT_AT] = time.monotonic()
        logger.info("amqp_connected worker_id=%s queues=%s", self.worker_id, ",".join(self.queues))
        if self.draining or self.quiet:
            return
        self._consume(UNDELIVERED, UNDELIVERED_PREFETCH, partial(self._on_undelivered, self._connections))
        for queue in self.queues:
            self._consume_queue(queue)

    def _consume_queue(self, queue: str) -> None:
        if self._has_left:
            return
        names = ForwardedQueue(queue, self._settings.amqp_partitions)
        self._consume(
            queue,
            min(self._prefetch * (WIDER if self._is_wide else 1), 65535),
            partial(self._on_delivery, self._connections, queue, False),
        )
        for name in names.partition_names:
            self._consume(name, self._prefetch, partial(self._on_delivery, self._connections, queue, True))

    def _adapt(self) -> None:
        """More at hand for quick handlers, by another consumer of the queue. Not of partitions: theirs may
        not change while something runs.
        """
        average = self.custody.average_seconds
        wanted = average < (SLOW_SECONDS if self._is_wide else QUICK_SECONDS)
        channel = self._channel
        if self._fixed or self._has_left or wanted == self._is_wide or channel is None or not channel.is_open:
            return
        self._is_wide = wanted
        for queue in self.queues:
            if queue in self._consumed:
                channel.basic_cancel(self._consumed.pop(queue))
            self._consume_queue(queue)

    def _consume(self, name: str, prefetch: int, on_message: Callable[..., None]) -> None:
        channel = self._channel
        if channel is not None and channel.is_open and name not in self._consumed:
            channel.basic_qos(prefetch_count=prefetch)  # of the consumers that come after it
            self._consumed[name] = channel.basic_consume(name, on_message)

    def _tick(self) -> None:
        loop = self._amqp
        if loop is None:
            return
        now = time.monotonic()
        self.ticked(now)
        if self._channel is not None:
            self.meter.stats.states[CONTACT_AT] = now
            self.last_success = now
            self.failures = 0
            self._worked()
            self._adapt()
        if self.custody.in_flight:
            self.busy_at = now
        self.meter.publish()
        self._turn()
        loop.ioloop.call_later(TICK_SECONDS, self._tick)

    # -- what comes ----------------------------------------------------------------------------------
    def _on_delivery(
        self,
        connection: int,
        queue: str,
        keyed: bool,
        _channel: Channel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        delivery = Delivery(_tag(method), connection, queue, keyed, body, properties)
        self.custody.arrived(delivery, bool(method.redelivered))

    def _on_undelivered(
        self,
        connection: int,
        _channel: Channel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        queue = str((properties.headers or {}).get("packhorse-queue", "default"))
        delivery = Delivery(_tag(method), connection, queue, False, body, properties)
        delivery.gave_up = True
        self.custody.arrived(delivery, True)

    def _turn(self) -> None:
        self._asked = False
        self.custody.collect()
        if self.draining or self.quiet or self.stopping:
            self._leave()
        elif self._has_left:
            self._come_back()
        self.custody.follow()

    # -- leaving -------------------------------------------------------------------------------------
    def _leave(self) -> None:
        """Begin nothing more. What has no conversation goes to others at once. Partitions stay ours until
        what runs has ended: another consumer would begin what comes after it.
        """
        loop, channel, custody = self._amqp, self._channel, self.custody
        custody.places.closed = True
        if not self._has_left and channel is not None and channel.is_open:
            self._has_left = True
            for name in [name for name in self._consumed if ":p" not in name]:
                channel.basic_cancel(self._consumed.pop(name))
            custody.give_back()
        if loop is None:
            return
        now = time.monotonic()
        if self.stopping:
            self._stop_by = self._stop_by or now + self._settings.call_deadline_seconds
        late = self.stopping and now >= self._stop_by
        if late or (custody.idle and (self.stopping or self._consumed)):
            # what is left goes back with the connection, in order
            custody.follow()
            loop.close()
        elif self.stopping or self._consumed:
            loop.ioloop.call_later(LEAVE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self.draining or self.quiet or self.stopping:
            self._turn()

    def _come_back(self) -> None:
        """An operator lets it work again."""
        self._has_left = self.custody.places.closed = False
        for queue in self.queues:
            self._consume_queue(queue)
        self._consume(UNDELIVERED, UNDELIVERED_PREFETCH, partial(self._on_undelivered, self._connections))

    def on_stop(self) -> None:
        self.custody.collect()


def _tag(method: Basic.Deliver) -> int:
    return int(method.delivery_tag or 0)

"""Deliveries of which RabbitMQ waits to hear: the lines in which they stand, and how each is answered.

One is acknowledged, or given back to its queue, or published again as a message of its own and then
acknowledged, or it waits where it is. custody.py decides which of them. A lost connection answers all: what
was here is somebody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial

from packhorse.worker.amqp.acks import Acks
from packhorse.worker.amqp.deliveries import Delivery, Lines
from packhorse.worker.amqp.loop import BrokerLoop
from packhorse.worker.amqp.topology import delay_address, next_delay

logger = logging.getLogger("packhorse.amqp")

#: What the broker has refused is published again after this.
AGAIN_SECONDS = 1.0


class Unacknowledged:
    """Used by the consumer's thread. on_first(delivery): it is the first of its line now.
    on_waited(delivery): its wait is over. soon: something has changed; pools and acknowledgements follow.
    """

    def __init__(
        self,
        on_first: Callable[[Delivery], None],
        on_waited: Callable[[Delivery], None],
        soon: Callable[[], None],
    ) -> None:
        self._on_first = on_first
        self._on_waited = on_waited
        self._soon = soon
        self._loop: BrokerLoop | None = None  # of the connection; None without one
        self._acks: Acks | None = None
        self._held: dict[int, Delivery] = {}  # by tag, of this connection
        self._lines = Lines()

    # -- connections ---------------------------------------------------------------------------------
    def opened(self, loop: BrokerLoop, acks: Acks) -> None:
        self._loop, self._acks = loop, acks

    def lost(self, running: set[Hashable]) -> None:
        """The connection is gone. running: lines whose first still runs; who comes waits for it."""
        self._loop = self._acks = None
        self._held.clear()
        self._lines.keep(running)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """In the loop's thread; never, when the connection is lost before."""
        if self._loop is not None:
            self._loop.ioloop.call_later(seconds, function)

    # -- what is here --------------------------------------------------------------------------------
    def holds(self, delivery: Delivery) -> bool:
        """Has this connection brought it, and is it not answered?"""
        return self._held.get(delivery.tag) is delivery

    @property
    def settling(self) -> bool:
        """Is of any what becomes of it being written?"""
        return any(delivery.settling for delivery in self._held.values())

    def arrived(self, delivery: Delivery) -> bool:
        """Whether it is the first of its line."""
        self._held[delivery.tag] = delivery
        if self._acks is not None:
            self._acks.delivered(delivery.tag)
        return self._lines.enter(delivery)

    # -- answers -------------------------------------------------------------------------------------
    def settle(self, delivery: Delivery) -> None:
        """What became of it is safe."""
        self._held.pop(delivery.tag, None)
        if self._acks is not None:
            self._acks.done(delivery.tag)
        self.leave(delivery)

    def leave(self, delivery: Delivery) -> None:
        """Its line goes on without it."""
        following = self._lines.next(delivery)
        if following is not None:
            self._on_first(following)

    def give_back(self, delivery: Delivery) -> None:
        """To its queue, for anybody. Not one of a conversation: those behind it must not go before it, so it
        goes back with the connection.
        """
        if not delivery.keyed and self._acks is not None:
            self._held.pop(delivery.tag, None)
            self._acks.give_back(delivery.tag)
            self.leave(delivery)

    def give_back_all(self, keep: set[int]) -> None:
        """What has no conversation and is not being written. keep: id() of those that run."""
        for tag, delivery in sorted(self._held.items()):
            if self._acks is not None and not (delivery.keyed or delivery.settling or id(delivery) in keep):
                del self._held[tag]
                self._acks.give_back(tag)

    def flush(self) -> None:
        """Tell RabbitMQ what is settled."""
        if self._acks is not None:
            self._acks.flush()

    # -- waiting -------------------------------------------------------------------------------------
    def postpone(self, delivery: Delivery, seconds: float) -> None:
        """Where it is, when it has a conversation or not long to wait; else on the broker."""
        step = None if delivery.keyed else next_delay(seconds)
        if step is None:
            self.call_later(seconds, partial(self._waited, delivery))
            return
        delivery.wait_from_now(seconds - step)
        self.send(delivery, delay_address(step, delivery.queue))

    def _waited(self, delivery: Delivery) -> None:
        delivery.waited()
        self._on_waited(delivery)
        self._soon()

    def send(self, delivery: Delivery, address: tuple[str, str]) -> None:
        """It goes on as a message of its own: once that is with the broker, this delivery is settled."""
        delivery.settling = True

        def on_confirm(good: bool) -> None:
            if good:
                self.settle(delivery)
                self._soon()
            else:
                logger.warning(
                    "amqp_refused message_id=%s address=%s: tried again", delivery.id, ":".join(address)
                )
                self.call_later(AGAIN_SECONDS, partial(self.send, delivery, address))

        if self._loop is not None and self.holds(delivery):
            self._loop.publish(address, delivery.body, delivery.properties, on_confirm)

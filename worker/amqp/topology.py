"""What there is on the broker for a forwarded queue: names, arguments, declarations.

For a queue `orders`, all of them quorum queues (replicated, durable):

    orders                          messages without a conversation
    packhorse.orders                an exchange that spreads conversations by consistent hash over
    orders:p00, orders:p01 ...      partitions, each with a single active consumer
    packhorse:delay.1s ... .1h      shared by all queues: a message waits there and goes back to its queue
    packhorse:undelivered           shared: what the broker gave up to deliver; it becomes dead letters

A colon cannot be in the name of a Packhorse queue, so no queue of one meets a partition of another. Nothing
here is ever dropped by the broker: a full queue refuses, and what leaves a queue by its time or its limit
of deliveries arrives elsewhere before it is gone (at-least-once dead lettering).

Declaring is idempotent. Every argument is said, also where today's broker has the same default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from packhorse.worker.amqp.envelope import routing_key_of
from packhorse.worker.errors import ConfigError

#: A message may wait for so many seconds in one step; longer waits take several (next_delay).
DELAYS = (1, 2, 4, 8, 16, 30, 60, 120, 300, 600, 1800, 3600)
#: The last resort against a message that takes whole machines down before anybody can count its crash.
#: RabbitMQ 4 has 20 by itself; there and before, the message then goes to UNDELIVERED.
DELIVERY_LIMIT = 20
UNDELIVERED = "packhorse:undelivered"
HASH_PLUGIN = "rabbitmq_consistent_hash_exchange"

_NOT_FOUND, _ACCESS_REFUSED, _PRECONDITION_FAILED, _COMMAND_INVALID = 404, 403, 406, 503
_COUNT = "x-dead-letter-routing-key"


@dataclass(frozen=True, slots=True)
class ForwardedQueue:
    """The names of one forwarded queue on the broker. partitions: 1..256."""

    name: str
    partitions: int

    @property
    def exchange(self) -> str:
        """It spreads messages over the partitions by their routing key, which is their conversation_key."""
        return f"packhorse.{self.name}"

    def partition(self, index: int) -> str:
        return f"{self.name}:p{index:02d}"

    @property
    def partition_names(self) -> list[str]:
        return [self.partition(index) for index in range(self.partitions)]

    def address(self, conversation_key: str | None) -> tuple[str, str]:
        """(exchange, routing key) under which a message is published."""
        return (
            ("", self.name) if conversation_key is None else (self.exchange, routing_key_of(conversation_key))
        )


def delay_address(seconds: int, queue: str) -> tuple[str, str]:
    """(exchange, routing key) under which a message of `queue` without a conversation waits. seconds: of
    DELAYS.
    """
    return _delay_name(seconds), queue


def next_delay(seconds: float) -> int | None:
    """The longest step of DELAYS within `seconds`; None when less than the shortest is left."""
    return next((step for step in reversed(DELAYS) if step <= seconds), None)


def exists(connection: BlockingConnection, queue: str) -> bool:
    """Has the broker a queue for it? Raises pika's AMQPError."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except ChannelClosedByBroker as error:  # which costs the channel
        if error.reply_code != _NOT_FOUND:
            raise
        return False
    channel.close()
    return True


def declare(channel: BlockingChannel, queues: Iterable[ForwardedQueue]) -> None:
    """Make what is missing. Raises ConfigError, which names what is in the way and what helps; the
    connection is unusable then. Raises pika's AMQPError when the broker goes away.
    """
    with _explained(UNDELIVERED):
        channel.exchange_declare(UNDELIVERED, "fanout", durable=True)
        _quorum(channel, UNDELIVERED, {})
        channel.queue_bind(UNDELIVERED, UNDELIVERED)
        for seconds in DELAYS:
            _declare_delay(channel, seconds)
    for queue in queues:
        with _explained(queue.name):
            _declare_queue(channel, queue)


def _declare_delay(channel: BlockingChannel, seconds: int) -> None:
    name = _delay_name(seconds)
    channel.exchange_declare(name, "fanout", durable=True)
    # without a routing key of its own a message keeps the one that it came with: the name of its queue
    _quorum(channel, name, {"x-message-ttl": seconds * 1000, **_dead_lettered_to("")})
    channel.queue_bind(name, name)


def _declare_queue(channel: BlockingChannel, queue: ForwardedQueue) -> None:
    limits = {"x-delivery-limit": DELIVERY_LIMIT, **_dead_lettered_to(UNDELIVERED)}
    _quorum(channel, queue.name, limits)
    channel.exchange_declare(queue.exchange, "x-consistent-hash", durable=True)
    # The exchange behind it is a fanout and needs no routing key. This one makes the broker refuse a
    # process that has another number of partitions, which else would leave some without a consumer.
    single = {"x-single-active-consumer": True, _COUNT: f"partitions={queue.partitions}"}
    for name in queue.partition_names:
        _quorum(channel, name, limits | single)
        channel.queue_bind(name, queue.exchange, routing_key="1")  # its weight


def _quorum(channel: BlockingChannel, name: str, arguments: dict[str, Any]) -> None:
    durable = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    channel.queue_declare(name, durable=True, arguments=durable | arguments)


def _dead_lettered_to(exchange: str) -> dict[str, Any]:
    return {"x-dead-letter-exchange": exchange, "x-dead-letter-strategy": "at-least-once"}


def _delay_name(seconds: int) -> str:
    unit = f"{seconds}s" if seconds < 60 else f"{seconds // 60}m" if seconds < 3600 else f"{seconds // 3600}h"
    return f"packhorse:delay.{unit}"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """A refusal of the broker as a sentence that names the queue, the reason and what helps."""
    try:
        yield
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
        problem = _problem(name, error.reply_code, error.reply_text)
        if problem is None:
            raise
        raise ConfigError([problem]) from error


def _problem(name: str, code: int, text: str) -> str | None:
    if code == _COMMAND_INVALID and "x-consistent-hash" in text:
        return (
            f"amqp_url: RabbitMQ lacks the plugin {HASH_PLUGIN}, which keeps conversations in order; "
            f"on each node: rabbitmq-plugins enable {HASH_PLUGIN}"
        )
    if code == _ACCESS_REFUSED:
        return (
            f"amqp_url: its user may not declare what the queue {name!r} needs ({text}); "
            "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
        )
    if code != _PRECONDITION_FAILED:
        return None
    found = (
        text.partition("for queue '")[2].partition("'")[0]
        or text.partition("for exchange '")[2].partition("'")[0]
    )
    if _COUNT in text and "partitions=" in text:
        there = text.rpartition("partitions=")[2].partition("'")[0]
        return (
            f"amqp_partitions: {name!r} has {there} partitions on the broker, this process is set to another number; "
            f'set amqp_partitions to {there}, or follow docs/rabbitmq.md, "Another number of partitions"'
        )
    return (
        f"amqp_url: RabbitMQ has a {found or name!r} that is not as Packhorse needs it ({text}); somebody else's, or "
        f"declared by an ordinary dramatiq worker: use a vhost of your own (rabbitmqctl add_vhost packhorse), or, when it is "
        f"empty, remove it: rabbitmqctl delete_queue {found or name}"
    )

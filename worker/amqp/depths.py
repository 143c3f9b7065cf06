"""What RabbitMQ has of the forwarded queues, for the metrics `amqp_messages` and `amqp_consumers`.

Relays ask: they run where no worker does, and so a backlog that nobody handles is seen. Each time over a
connection of its own, for a broker that is short of disk hears nothing from one that publishes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from packhorse.worker.amqp.connection import BrokerAway, blocking
from packhorse.worker.amqp.topology import ForwardedQueue
from packhorse.worker.config import Settings
from packhorse.worker.errors import ConfigError
from packhorse.worker.observe.process_stats import ProcessStats
from packhorse.worker.service import Service


class Depths(Service):
    """queues: those of the relay. Every fleet_seconds, as what is counted in Postgres."""

    name = "depths"

    def __init__(self, settings: Settings, queues: Sequence[str], stats: ProcessStats) -> None:
        super().__init__()
        self._settings = settings
        self._queues = list(queues)
        self._stats = stats

    def run_once(self) -> float:
        found: dict[str, tuple[int, int]] = {}
        try:
            with blocking(self._settings, "depths") as connection:
                for queue in self._queues:
                    depth = self._depth(connection, queue)
                    if depth is not None:
                        found[queue] = depth
        except (BrokerAway, ConfigError):
            found = {}  # nobody knows; what is wrong is said by who publishes
        self._stats.show_on_broker(found)
        return self._settings.fleet_seconds

    def _depth(self, connection: BlockingConnection, queue: str) -> tuple[int, int] | None:
        """Messages that nobody has taken yet, partitions included, and the fewest consumers that any of them
        has. None when a part of it is missing.
        """
        channel = connection.channel()
        names = [queue, *ForwardedQueue(queue, self._settings.amqp_partitions).partition_names]
        try:
            said = [channel.queue_declare(name, passive=True).method for name in names]
        except ChannelClosedByBroker:  # somebody has deleted it; the relay declares it again
            return None
        channel.close()
        return sum(one.message_count for one in said), min(one.consumer_count for one in said)

"""A relay in a few lines, for tests that need messages on RabbitMQ and no process for it."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any
from uuid import uuid4

from packhorse.worker.amqp.connection import blocking, declare_queues
from packhorse.worker.amqp.envelope import body_of, properties_of
from packhorse.worker.amqp.topology import ForwardedQueue
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.db.sessions import open_work
from packhorse.worker.store import messages as store
from tests.support.postgres import Database

QUEUE = "orders"


def forward(database: Database, queue: str = QUEUE, **settings: Any) -> None:
    """Declare the queue, and forward it."""
    database.query("select declare_queue(%s)", queue)
    database.query(
        "select set_queue(%s, %s)",
        queue,
        json.dumps({"forward": "amqp", "backoff_initial": "20 milliseconds", **settings}),
    )


def put(database: Database, items: list[dict[str, Any]], queue: str = QUEUE) -> list[int]:
    """Commit messages: type, payload and options of enqueue_messages; their ids."""
    rows = database.query(
        "select message_id from enqueue_messages(%s)",
        json.dumps([{"queue": queue, **item} for item in items]),
        admin=False,
    )
    return [row[0] for row in rows]


def relay(settings: Settings, queue: str = QUEUE, *, copies: int = 1) -> int:
    """Publish what is due, and complete it; how many. copies: as a relay that dies before it completes."""
    declare_queues(settings, [queue], "relay")
    names, count = ForwardedQueue(queue, settings.amqp_partitions), 0
    with (
        closing(open_work(settings, "relay", times_in_utc=True)) as connection,
        blocking(settings, "relay") as broker,
    ):
        channel = broker.channel()
        channel.confirm_delivery()
        done: list[ClaimedMessage] = []
        while True:
            rows, _ = store.complete_and_claim(
                connection,
                [m.id for m in done],
                [m.lease_token for m in done],
                uuid4(),
                [queue],
                100,
                "60 seconds",
                None,
                forward="amqp",
            )
            done = [ClaimedMessage(row, time.monotonic() + 60, time.monotonic()) for row in rows]
            for message in done:
                exchange, key = names.address(message.conversation_key)
                for _ in range(copies):
                    channel.basic_publish(
                        exchange, key, body_of(message), properties_of(message), mandatory=True
                    )
            count += len(done)
            if not done:
                return count

"""What one would write by hand in place of `packhorse relay`: claim a batch, publish it with confirms over
one connection, complete it with the next claim. It takes the same SQL; one thread, nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any
from uuid import uuid4

import pika
from pika import frame, spec

from packhorse.worker.amqp.envelope import body_of, properties_of
from packhorse.worker.amqp.topology import ForwardedQueue
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.db.connection import connect
from packhorse.worker.store import messages as store

BATCH = 500
PARTITIONS = 16


class BareLoop:
    """one_write: a batch is written at once, as the relay does; else by basic_publish, a write each."""

    def __init__(self, database: str, url: str, queue: str, *, one_write: bool) -> None:
        self._one_write = one_write
        self._connection = connect(database, times_in_utc=True)
        self._names = ForwardedQueue(queue, PARTITIONS)
        self._holder = uuid4()
        self._done: list[ClaimedMessage] = []
        self._unconfirmed: deque[int] = deque()
        self._sent = 0
        self._pika = pika.SelectConnection(pika.URLParameters(url), on_open_callback=self._on_open)

    def run(self) -> None:
        """Until nothing is due."""
        self._pika.ioloop.start()
        self._connection.close()

    def _on_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._turn())

    def _turn(self) -> None:
        done = self._done
        rows, _ = store.complete_and_claim(
            self._connection, [m.id for m in done], [m.lease_token for m in done], self._holder,
            [self._names.name], BATCH, "60 seconds", None, forward="amqp",
        )  # fmt: skip
        now = time.monotonic()
        self._done = [ClaimedMessage(row, now + 60, now) for row in rows]
        if not self._done:
            self._pika.ioloop.stop()
        frames: list[bytes] = []
        for message in self._done:
            self._sent += 1
            self._unconfirmed.append(self._sent)
            exchange, key = self._names.address(message.conversation_key)
            body, properties = body_of(message), properties_of(message)
            if self._one_write:
                method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
                frames.append(frame.Method(1, method).marshal())
                frames.append(frame.Header(1, len(body), properties).marshal())
                frames.append(frame.Body(1, body).marshal())
            else:
                self._channel.basic_publish(exchange, key, body, properties, True)
        if frames:
            self._pika._output_marshaled_frames([b"".join(frames)])

    def _on_confirm(self, answer: Any) -> None:
        tag = answer.method.delivery_tag
        if answer.method.multiple:
            while self._unconfirmed and self._unconfirmed[0] <= tag:
                self._unconfirmed.popleft()
        else:
            self._unconfirmed.remove(tag)
        if not self._unconfirmed:
            self._turn()

"""How many messages a second does `packhorse relay` bring from Postgres to RabbitMQ, beside a bare loop?

The bare loop is what one would write by hand: claim a batch, publish it with confirms over one connection,
complete it with the next claim. It takes the same SQL. `bare` publishes by basic_publish, a write for each
message; `bare, one write` writes a batch at once, as the relay does. All in turns, in one run.

Alone, with a database of its own (it is migrated) and a virtual host: DATABASE_URL=… PACKHORSE_AMQP_URL=…
python -m benchmarks.metrics.relay [messages] [rounds]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import deque
from typing import Any
from uuid import uuid4

import pika
import psycopg
from pika import frame, spec

from benchmarks.systems.packhorse import command
from packhorse.worker.amqp.connection import declare_queues
from packhorse.worker.amqp.envelope import body_of, properties_of
from packhorse.worker.amqp.topology import ForwardedQueue
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import load_settings
from packhorse.worker.db.connection import connect
from packhorse.worker.store import messages as store

QUEUE = "bench"
MESSAGES, ROUNDS, BATCH = 20_000, 3, 500
WAIT_SECONDS = 120.0
FILL = """
select packhorse.enqueue_payloads('bench', 'bench', (
  select jsonb_agg(jsonb_build_object('number', n, 'text', 'what a message of the benchmark looks like, about'))
  from generate_series(1, %s) n))
"""
LEFT = "select count(*) from packhorse.message_queue where queue = 'bench'"


class BareLoop:
    """Claim, publish with confirms, complete; one thread, nothing else."""

    def __init__(self, database: str, url: str, *, one_write: bool) -> None:
        self._one_write = one_write
        self._connection = connect(database, times_in_utc=True)
        self._names = ForwardedQueue(QUEUE, 16)
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
            self._connection, [m.id for m in done], [m.lease_token for m in done], self._holder, [QUEUE], BATCH,
            "60 seconds", None, forward="amqp",
        )  # fmt: skip
        now = time.monotonic()
        self._done = [ClaimedMessage(row, now + 60, now) for row in rows]
        if not self._done:
            self._pika.ioloop.stop()
        frames: list[bytes] = []
        for message in self._done:
            self._sent += 1
            self._unconfirmed.append(self._sent)
            if self._one_write:
                exchange, key = self._names.address(message.conversation_key)
                body = body_of(message)
                method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
                frames.append(frame.Method(1, method).marshal())
                frames.append(frame.Header(1, len(body), properties_of(message)).marshal())
                frames.append(frame.Body(1, body).marshal())
                continue
            self._channel.basic_publish(
                *self._names.address(message.conversation_key), body_of(message), properties_of(message), True
            )

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


def bare(database: str, url: str, *, one_write: bool) -> float:
    """Seconds that the loop takes for what is due."""
    loop = BareLoop(database, url, one_write=one_write)
    started = time.perf_counter()
    loop.run()
    return time.perf_counter() - started


def relay(connection: psycopg.Connection[Any]) -> float:
    """Seconds that `packhorse relay` takes from the first completion to the last, for all messages."""
    process = subprocess.Popen(
        command("relay", "--processes", "1"), env=os.environ | {"PACKHORSE_METRICS_PORT": "0"}
    )
    try:
        total = left = connection.execute(LEFT).fetchone()[0]  # type: ignore[index]
        deadline = time.monotonic() + WAIT_SECONDS
        began, at = 0.0, total
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = connection.execute(LEFT).fetchone()[0]  # type: ignore[index]
            if left < total and not began:
                began, at = time.perf_counter(), left
        if left:
            raise RuntimeError(f"{left} messages are left after {WAIT_SECONDS:.0f} s")
        return (time.perf_counter() - began) * total / at
    finally:
        process.terminate()
        process.wait(30)


def main(messages: int = MESSAGES, rounds: int = ROUNDS) -> None:
    """Print the rates of each round and the median of their ratios."""
    settings = load_settings()
    assert settings.database_url is not None, "DATABASE_URL"
    assert settings.amqp_url is not None, "PACKHORSE_AMQP_URL"
    database, url = settings.database_url.get_secret_value(), settings.amqp_url.get_secret_value()
    subprocess.run(command("migrate", "up"), check=True, capture_output=True)
    ratios: dict[str, list[float]] = {"bare": [], "bare, one write": []}
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select packhorse.declare_queue('bench')")
        connection.execute("""select packhorse.set_queue('bench', '{"forward": "amqp"}')""")
        declare_queues(settings, [QUEUE], "bench")
        for _ in range(rounds):
            rates = {}
            for name in (*ratios, "relay"):
                connection.execute(FILL, (messages,))
                took = (
                    relay(connection)
                    if name == "relay"
                    else bare(database, url, one_write="one write" in name)
                )
                rates[name] = messages / took
                with pika.BlockingConnection(pika.URLParameters(url)) as broker:
                    broker.channel().queue_purge(QUEUE)
            for name, found in ratios.items():
                found.append(rates["relay"] / rates[name])
            print("; ".join(f"{name}: {rate:.0f} messages/s" for name, rate in rates.items()), flush=True)
    for name, found in ratios.items():
        print(f"relay of {name}: {statistics.median(found):.2f} (median)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))

"""A forwarded queue under load: producers, a relay, workers on RabbitMQ; what went in, and what became of it.

The ledger has the handlers' starts and effects in the order of time (tests/support/workers.py). A message is
known by its key: `c3:17` is number 17 of conversation c3, `m17` has no conversation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika

from packhorse.worker.amqp.topology import ForwardedQueue
from tests.support.accounting import enqueue, live
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

QUEUE = "default"
PARTITIONS = 4
KEY = "coalesce(payload ->> 'key', (payload ->> 'conversation') || ':' || (payload ->> 'number'))"
#: What a worker process has of RabbitMQ and has not acknowledged, at most, in lines of the ledger: twice the
#: prefetch of the queue, and a quarter of it for each partition.
MOST_HELD_LINES = 2 * (16 + 4 * PARTITIONS)


class Producer(threading.Thread):
    """Commits a batch of the next numbers of each conversation, and as many messages without one, ten times
    a second.
    """

    def __init__(self, database: Database, conversations: int, seconds: float) -> None:
        super().__init__(name="producer", daemon=True)
        self.keys: list[str] = []
        self.batches = 0
        self._database = database
        self._conversations = conversations
        self._seconds = seconds
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(0.1):
            self.commit()

    def commit(self) -> None:
        number, self.batches = self.batches, self.batches + 1
        items: list[dict[str, Any]] = []
        for conversation in [f"c{n}" for n in range(self._conversations)]:
            talk = {"conversation": conversation, "number": number, "seconds": self._seconds}
            plain = f"m{conversation}.{number}"
            items += [
                {"message_type": "talk", "conversation_key": conversation, "payload": talk},
                {"message_type": "effect", "payload": {"key": plain, "seconds": self._seconds}},
            ]
            self.keys += [f"{conversation}:{number}", plain]
        enqueue(self._database, items)

    def stop(self) -> list[str]:
        self._stop_it.set()
        self.join(30)
        assert not self.is_alive()
        return self.keys


@dataclass
class Fault:
    """begin, end: lines of the ledger. leased: keys that a relay had claimed and not completed."""

    begin: int
    leased: set[str]
    end: int = 10**9


@dataclass
class Forwarding:
    """workers run as many processes as they are told. url: of a virtual host of one test."""

    database: Database
    ledger: Ledger
    url: str
    start_daemon: Callable[..., Daemon]
    faults: list[Fault] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)

    def forward(self, **settings: object) -> None:
        wanted = {"forward": "amqp", "backoff_initial": "20 milliseconds", "backoff_max": "200 milliseconds"}
        self.database.query("select set_queue(%s, %s)", QUEUE, json.dumps(wanted | settings))

    def relay(self, **settings: object) -> Daemon:
        return self.start("relay", "", (), **settings)

    def workers(self, processes: int = 1, **settings: object) -> Daemon:
        options = ("--broker", "amqp")
        daemon = self.start(
            "worker", "tests.support.forwarded_actors", options, processes=processes, threads=4, **settings
        )
        return daemon.wait_ready(processes)

    def start(self, command: str, actors: str, options: tuple[str, ...], **settings: object) -> Daemon:
        given = {"amqp_url": self.url, "amqp_partitions": PARTITIONS, "amqp_heartbeat_seconds": 4, **settings}
        daemon = self.start_daemon(
            self.database, self.ledger, actors, command=command, options=options, **given
        )
        self.daemons.append(daemon)
        return daemon

    # -- faults --------------------------------------------------------------------------------------
    @contextmanager
    def fault(self) -> Iterator[None]:
        """What happens inside explains duplicates of what was in flight then."""
        fault = Fault(self.lines(), self.leased())
        self.faults.append(fault)
        yield
        fault.leased |= self.leased()
        fault.end = self.lines()

    def leased(self) -> set[str]:
        rows = self.database.query(f"select {KEY} from message_queue where state = 'running'")
        return {row[0] for row in rows}

    def lines(self) -> int:
        return self.ledger.path.read_bytes().count(b"\n")

    def effects(self) -> int:
        return self.ledger.path.read_bytes().count(b"effect ")

    def progress(self, count: int, timeout_seconds: float = 60.0) -> None:
        """Until so many more effects are there."""
        wanted = self.effects() + count
        wait_until(lambda: self.effects() >= wanted, timeout_seconds, f"{count} more effects")

    # -- what became of it ---------------------------------------------------------------------------
    def dead(self) -> set[str]:
        return {row[0] for row in self.database.query(f"select {KEY} from dead_letters")}

    def wait_handled(self, keys: list[str], timeout_seconds: float = 90.0) -> None:
        """Until Postgres has relayed everything, and each key had an effect or is a dead letter."""
        wait_until(lambda: live(self.database) == 0, timeout_seconds, "everything is relayed")
        missing = set(keys)

        def handled() -> bool:
            missing.difference_update(self.ledger.counts("effect"))
            missing.difference_update(self.dead())
            return not missing

        try:
            wait_until(handled, timeout_seconds, "everything is handled")
        except AssertionError as error:
            raise AssertionError(f"{len(missing)} messages are lost: {sorted(missing)[:10]}") from error

    def stop(self) -> None:
        """Each daemon drains and ends well, and RabbitMQ has nothing left."""
        assert [daemon.stop() for daemon in self.daemons if daemon.process.poll() is None]
        assert not [daemon.log for daemon in self.daemons if "Traceback" in daemon.log]
        with pika.BlockingConnection([pika.URLParameters(url) for url in self.url.split(";")]) as connection:
            channel = connection.channel()
            left: list[str] = []
            for name in (QUEUE, *ForwardedQueue(QUEUE, PARTITIONS).partition_names):
                channel.basic_consume(name, lambda _, method, *__: left.append(method.routing_key))
            connection.process_data_events(time_limit=0.5)  # what is there comes at once
        assert not left, f"{len(left)} messages that nobody has acknowledged, in {set(left)}"

    def duplicates(self) -> set[str]:
        return {key for key, count in self.ledger.counts("start").items() if count > 1}

    def unexplained(self) -> set[str]:
        """Duplicates that no fault explains: neither had a relay the message then, nor began a first attempt
        shortly before it, or in it.
        """
        starts: dict[str, list[int]] = {}
        for number, (event, key, _) in enumerate(self.ledger.lines()):
            if event == "start":
                starts.setdefault(key, []).append(number)
        return {
            key
            for key in self.duplicates()
            if not any(
                key in fault.leased
                or (
                    fault.begin - MOST_HELD_LINES <= starts[key][0] <= fault.end
                    and starts[key][1] >= fault.begin
                )
                for fault in self.faults
            )
        }

    def assert_first_handlings_in_order(self) -> None:
        """Of a conversation n + 1 starts for the first time only after n had its first effect."""
        begun: dict[str, int] = {}
        ended: dict[str, int] = {}
        for event, key, _ in self.ledger.lines():
            conversation, colon, text = key.partition(":")
            if not colon:
                continue
            number = int(text)
            if event == "start" and number > begun.get(conversation, -1):
                last = begun.get(conversation, -1)
                assert number == last + 1, f"{key} started after {conversation}:{last}"
                assert ended.get(conversation, -1) == last, (
                    f"{key} started before {conversation}:{last} had ended"
                )
                begun[conversation] = number
            elif event == "effect":
                ended[conversation] = max(ended.get(conversation, -1), number)
        assert begun == ended

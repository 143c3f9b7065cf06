"""RabbitMQ: what `packhorse relay` brings there, beside a bare loop (systems/bare_relay.py), and what
`packhorse worker --broker amqp` handles from there, beside dramatiq's own (systems/dramatiq_rabbitmq.py).

Packhorse only: the peers take their turns inside the case, on the same server and the same RabbitMQ node, so
a ratio compares neighbours of one round. Everybody begins at a full queue; the clock runs from the first
look at which some of it is gone until none is left, and so does the processor time of his processes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
from pydantic import SecretStr

from benchmarks.harness.config import Settings
from benchmarks.harness.processes import Child, Workers, python_child
from benchmarks.metrics.base import Case, Number
from benchmarks.systems import bare_relay, dramatiq_rabbitmq
from benchmarks.systems.base import THREADS, System
from benchmarks.systems.packhorse import ACTORS, QUEUE, Adapter, command
from packhorse.worker.amqp.connection import declare_queues
from packhorse.worker.config import Settings as PackhorseSettings
from tests.support.rabbitmq import PROGRAM, Node, Place

RELAY, CONSUME = Case("relay/rate"), Case("relay/consume")
CASES = [RELAY, CONSUME]
MESSAGES = 40_000
DRAIN_SECONDS, LOOK_SECONDS = 180.0, 0.02
LEFT = "select count(*) from packhorse.message_queue where queue = 'bench'"


@dataclass(frozen=True)
class Run:
    """How quickly one of them was: messages a second, and his processor time in seconds per 1,000."""

    rate: float
    cpu: float

    def numbers(self, name: str) -> Iterator[Number]:
        """For the table."""
        yield Number("relay", name, 1, self.rate, "messages/s")
        yield Number("relay", f"{name}: processor time", 1, self.cpu * 1000, "ms/1000")

    def beside(self, other: Run, names: str) -> Iterator[Number]:
        """This one's rate and processor time as shares of the other's."""
        yield Number("relay", names, 1, self.rate / other.rate, "")
        yield Number("relay", f"{names}: processor time", 1, self.cpu / other.cpu, "")


@contextmanager
def rabbitmq() -> Iterator[Node]:
    """A node of its own. Raises RuntimeError when RabbitMQ is not installed."""
    if PROGRAM is None:
        raise RuntimeError("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    with ExitStack() as stack:
        place = Place()
        stack.callback(place.close)
        node = Node(place)
        stack.callback(node.close)
        yield node.start().wait_ready()


def depth(node: Node, vhost: str) -> int:
    """Messages of QUEUE in a virtual host, delivered ones too, of the moment."""
    said = node.ask(  # in a function, for the shell keeps what is bound
        f'(fun() -> {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{QUEUE}">>)),'
        " case amqqueue:get_type(Q) of rabbit_quorum_queue -> {ok, {_, M}, _} ="
        " ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1), M;"
        " _ -> proplists:get_value(messages, rabbit_amqqueue:info(Q, [messages])) end end)()"
    )
    if not re.fullmatch(r"\d+", said):
        raise RuntimeError(f"RabbitMQ says of {QUEUE}: {said}")
    return int(said)


def measure_drain(left: Callable[[], int], start: Callable[[], Workers]) -> Run:
    """Of what is there. Raises TimeoutError."""
    total = remaining = left()
    workers = start()
    try:
        deadline = time.monotonic() + DRAIN_SECONDS
        began, at, cpu = 0.0, total, 0.0
        while remaining:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{remaining} messages are left after {DRAIN_SECONDS:.0f} s")
            workers.check()
            time.sleep(LOOK_SECONDS)  # observed from outside, everybody alike
            remaining = left()
            if remaining < total and not began:
                began, at, cpu = time.monotonic(), remaining, workers.cpu_seconds()
        took, used = time.monotonic() - began, workers.cpu_seconds() - cpu
    finally:
        workers.stop()
    return Run(at / took, used / at * 1000)


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """The relay, or the consumption."""
    assert isinstance(system, Adapter), "only Packhorse lists these cases"
    with rabbitmq() as node, psycopg.connect(system.store_url(), autocommit=True) as connection:
        bench = Bench(system, node, connection, settings.size(MESSAGES))
        yield from bench.relay() if case == RELAY else bench.consume()


class Bench:
    """One case: a database, a node, and what both sides of a comparison do alike."""

    def __init__(
        self, system: Adapter, node: Node, connection: psycopg.Connection[tuple[int]], messages: int
    ) -> None:
        self._system = system
        self._node = node
        self._connection = connection
        self._messages = messages
        connection.execute("""select packhorse.set_queue('bench', '{"forward": "amqp"}')""")

    def _left(self) -> int:
        row = self._connection.execute(LEFT).fetchone()
        assert row is not None
        return row[0]

    def _fill(self) -> None:
        """Postgres, in one commit."""
        with self._connection.transaction():
            self._system.fill(self._connection, self._messages)
        self._connection.execute("analyze packhorse.message_queue")

    def _vhost(self, name: str) -> str:
        """Its URL; its queue is declared by those who use it."""
        self._node.add_vhost(name)
        return self._node.url(name)

    def _packhorse(self, url: str, *arguments: str) -> Workers:
        environment = self._system.environment() | {
            "PACKHORSE_AMQP_URL": url,
            "PACKHORSE_AMQP_PARTITIONS": str(bare_relay.PARTITIONS),
        }
        return Workers([Child(command(*arguments), environment)], 1)

    def _bare(self, url: str, *, one_write: bool) -> Run:
        """The loop runs in this process, which does nothing else meanwhile."""
        loop = bare_relay.BareLoop(self._system.store_url(), url, QUEUE, one_write=one_write)
        began, cpu = time.monotonic(), time.process_time()
        loop.run()
        took, used = time.monotonic() - began, time.process_time() - cpu
        return Run(self._messages / took, used / self._messages * 1000)

    def _declared(self, name: str) -> str:
        """A virtual host with the queue as Packhorse declares it."""
        url = self._vhost(name)
        declare_queues(
            PackhorseSettings(amqp_url=SecretStr(url), amqp_partitions=bare_relay.PARTITIONS),
            [QUEUE],
            "bench",
        )
        return url

    def relay(self) -> Iterator[Number]:
        """Each fills an empty queue of its own."""
        runs: dict[str, Run] = {}
        for name, one_write in (("bare loop", False), ("bare loop, one write", True)):
            url = self._declared(name.replace(" ", "-"))
            self._fill()
            runs[name] = self._bare(url, one_write=one_write)
        url = self._declared("relay")
        self._fill()
        relay = measure_drain(self._left, lambda: self._packhorse(url, "relay", "--processes", "1"))
        yield from relay.numbers("relay")
        for name, run in runs.items():
            yield from run.numbers(name)
            yield from relay.beside(run, f"relay of {name}")

    def consume(self) -> Iterator[Number]:
        """The same messages, brought by the bare loop, from a full queue of each kind."""
        arguments = ("worker", "--broker", "amqp", "--processes", "1", "--threads", str(THREADS), ACTORS)
        url = self._declared("packhorse")
        ours = self._consume("packhorse", url, lambda: self._packhorse(url, *arguments))
        yield from ours.numbers("consume")
        for kind in ("quorum", "classic"):
            url = self._vhost(kind)
            dramatiq_rabbitmq.broker(url, kind).close()
            environment = dramatiq_rabbitmq.environment(url, kind)
            theirs = self._consume(kind, url, lambda env=environment: self._dramatiq(env))  # type: ignore[misc]
            yield from theirs.numbers(f"consume by dramatiq, {kind} queue")
            yield from ours.beside(theirs, f"consume of dramatiq, {kind} queue")

    def _dramatiq(self, environment: dict[str, str]) -> Workers:
        child = python_child(dramatiq_rabbitmq.MODULE, "worker", env=environment)
        child.expect("ready")
        return Workers([child], 1)

    def _consume(self, vhost: str, url: str, start: Callable[[], Workers]) -> Run:
        self._fill()
        self._bare(url, one_write=True)
        return measure_drain(lambda: depth(self._node, vhost), start)

"""dramatiq without any I/O: its own Worker, eight threads, stock middleware, on the in-memory broker.

This is the ceiling of dramatiq's threads on this machine. Each worker process fills a broker of its own with
its share of the messages, so two processes share nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import dramatiq
from dramatiq.brokers.stub import StubBroker

from benchmarks.harness.handler import chosen_handler
from benchmarks.harness.payload import payload
from benchmarks.harness.processes import Workers, python_child
from benchmarks.systems.base import DRAIN_SECONDS, THREADS, WARM_UP_MESSAGES, Missing, Producer, Sizes, Stores

MODULE = "benchmarks.systems.dramatiq_stub"


class Adapter:
    """dramatiq's own Worker as a system."""

    name: ClassVar[str] = "dramatiq-stub"
    sizes: ClassVar[Sizes] = Sizes(drain={1: 100_000, 2: 200_000})
    cases: ClassVar[frozenset[str]] = frozenset({"work"})

    def __init__(self, stores: Stores) -> None:
        """Needs no store."""

    def open(self) -> None:
        """Nothing to make: every process has its own broker."""

    def store_url(self) -> str:
        """There is no store."""
        return ""

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start the processes; each begins to work at `load`."""
        children = [python_child(MODULE, "worker", env=env or {}) for _ in range(processes)]
        workers = Workers(children, processes)
        try:
            for child in children:
                child.expect("ready")
        except BaseException:
            workers.stop()
            raise
        return workers

    def warm_up(self, workers: Workers) -> None:
        """Pass WARM_UP_MESSAGES through a worker in every process."""
        for child in workers.children:
            child.tell(f"warm {WARM_UP_MESSAGES}")
        for child in workers.children:
            child.expect("warmed")

    def load(self, workers: Workers, count: int) -> float:
        """Fill every process with its share, then let all start; returns that moment."""
        for child in workers.children:
            child.tell(f"load {count // workers.processes}")
        for child in workers.children:
            child.expect("loaded")
        started = time.monotonic()
        for child in workers.children:
            child.tell("go")
        return started

    def wait_drained(self, workers: Workers) -> float:
        """The moment at which the last process has finished its last message."""
        return max(float(child.expect("drained", DRAIN_SECONDS)) for child in workers.children)

    def activity(self) -> tuple[int, str]:
        """Nothing to count."""
        return 0, "commands"

    def close(self) -> None:
        """Nothing to remove."""

    @staticmethod
    def make_producer(url: str) -> Producer:
        """Enqueuing in memory is not measured."""
        raise Missing("the in-memory broker has no store to enqueue into")


def filled_broker(count: int) -> StubBroker:
    """A broker of its own with `count` messages, booted as dramatiq's command boots it."""
    broker = StubBroker()
    handler = chosen_handler()

    @dramatiq.actor(queue_name="bench", broker=broker)
    def bench(**message: Any) -> None:
        handler(**message)

    for number in range(count):
        bench.send(**payload(number))
    broker.emit_after("process_boot")
    return broker


def drain(broker: StubBroker) -> tuple[dramatiq.Worker, float]:
    """Start a worker and return it with the moment at which the broker was empty."""
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    broker.join("bench")
    return worker, time.monotonic()


def work() -> None:
    """Obey `warm n`, `load n` and `go` on standard input until it ends."""
    print("ready", flush=True)
    loaded = StubBroker()
    for line in sys.stdin:
        word, _, count = line.strip().partition(" ")
        if word == "warm":
            worker, _moment = drain(filled_broker(int(count)))
            worker.stop()
            print("warmed", flush=True)
        elif word == "load":
            loaded = filled_broker(int(count))
            print("loaded", flush=True)
        elif word == "go":
            # This worker is not stopped: the memory of a running process is what is measured.
            worker, moment = drain(loaded)
            print(f"drained {moment}", flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work()

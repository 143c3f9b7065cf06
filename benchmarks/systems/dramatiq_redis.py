"""dramatiq on Redis: its own Worker, eight threads, stock middleware, prefetch 1,000, no persistence.

Redis has no commit that makes many messages visible at once, so for a drain the processes are connected and
warmed, hold still while the messages are written, and start their threads at the word `go`.

An asynchronous actor runs in the event loop of dramatiq's AsyncIO middleware (uvloop) and holds one of the
threads while it waits. So there are as many threads as handlers may run at once, but not more than
DRAMATIQ_THREADS (2,000): each of them wakes up ten times a second to see whether it was interrupted, and with
5,000 of them nothing else gets done.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import dramatiq
import uvloop
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.asyncio import AsyncIO

from benchmarks.harness.handler import AT_ONCE, chosen_coroutine, chosen_handler
from benchmarks.harness.payload import payload
from benchmarks.harness.processes import Workers, python_child
from benchmarks.systems.base import (
    DRAIN_SECONDS,
    NO_OP_SYNC,
    PEER_CASES,
    POLL_SECONDS,
    SETTLE_SECONDS,
    THREADS,
    WAITING_CASES,
    WARM_UP_MESSAGES,
    Missing,
    Producer,
    Sizes,
    Stores,
)

MODULE = "benchmarks.systems.dramatiq_redis"
QUEUE = "bench"
MESSAGES_KEY = f"dramatiq:{QUEUE}.msgs"
"""The hash that holds a message until it is acknowledged."""
PREFETCH = 1000
MOST_THREADS = int(os.environ.get("DRAMATIQ_THREADS") or 2_000)


def worker_threads(variables: Mapping[str, str]) -> int:
    """Of a worker with these environment variables."""
    return min(int(variables.get(AT_ONCE) or THREADS), MOST_THREADS)


def prefetch(variables: Mapping[str, str]) -> int:
    """Of such a worker."""
    return max(PREFETCH, 2 * worker_threads(variables))


def environment(url: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Of a worker, with these variables. dramatiq reads the prefetch when it is imported."""
    return {
        "REDIS_URL": url,
        "dramatiq_queue_prefetch": str(prefetch({**os.environ, **variables})),
        **variables,
    }


def declare(url: str) -> tuple[RedisBroker, dramatiq.Actor[..., None]]:
    """A broker and the benchmark's actor on it."""
    broker = RedisBroker(url=url)
    handler, coroutine = chosen_handler(), chosen_coroutine()

    def bench(**message: Any) -> None:
        handler(**message)

    if coroutine is not None:
        broker.add_middleware(AsyncIO())
    return broker, dramatiq.actor(actor_name="bench", queue_name=QUEUE, broker=broker)(coroutine or bench)


class RedisProducer:
    """Sends one message after the other; dramatiq has no bulk enqueue."""

    def __init__(self, url: str) -> None:
        self._broker, self._actor = declare(url)

    def one(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self._actor.send(**message)

    def each(self, messages: Iterable[dict[str, Any]]) -> None:
        """Send messages one after the other."""
        for message in messages:
            self._actor.send(**message)

    def many(self, messages: list[dict[str, Any]]) -> None:
        """Send messages one after the other."""
        self.each(messages)

    def close(self) -> None:
        """Disconnect."""
        self._broker.close()


class Adapter:
    """dramatiq on Redis as a system."""

    name: ClassVar[str] = "dramatiq-redis"
    sizes: ClassVar[Sizes] = Sizes(drain={1: 8_000, 2: 14_000}, single=12_000, bulk=12_000)
    cases: ClassVar[frozenset[str]] = PEER_CASES | WAITING_CASES | {NO_OP_SYNC}

    def __init__(self, stores: Stores) -> None:
        if stores.redis is None:
            raise Missing(stores.notes.get("redis", "no Redis"))
        self.server = stores.redis

    def open(self) -> None:
        """Empty the Redis of the run."""
        self.server.client.flushall()

    def store_url(self) -> str:
        """Where producers connect to."""
        return self.server.url

    def start(
        self, processes: int, *, hold: bool = False, variant: str = "", env: Mapping[str, str] | None = None
    ) -> Workers:
        """Start the processes; with `hold` each stops again after its warm-up until `load`."""
        variables = environment(self.server.url, env or {})
        children = [python_child(MODULE, "worker", env=variables) for _ in range(processes)]
        workers = Workers(children, processes)
        self._held = hold
        try:
            for child in children:
                child.expect("ready")
        except BaseException:
            workers.stop()
            raise
        return workers

    def warm_up(self, workers: Workers) -> None:
        """Pass WARM_UP_MESSAGES, then leave the workers idle, or stop them when they are held."""
        producer = self.make_producer(self.server.url)
        producer.many([payload(number) for number in range(WARM_UP_MESSAGES)])
        producer.close()
        self.wait_drained(workers)
        time.sleep(SETTLE_SECONDS)  # the queue is empty, but its last acknowledgements may be under way
        if self._held:
            for child in workers.children:
                child.tell("hold")
            for child in workers.children:
                child.expect("held")

    def load(self, workers: Workers, count: int) -> float:
        """Send `count` messages to the held workers, then let them start; returns that moment."""
        producer = self.make_producer(self.server.url)
        producer.many([payload(number) for number in range(count)])
        producer.close()
        started = time.monotonic()
        for child in workers.children:
            child.tell("go")
        return started

    def wait_drained(self, workers: Workers) -> float:
        """Wait until every message is acknowledged; returns that moment. Raises TimeoutError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.server.client.hlen(MESSAGES_KEY):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: messages left after {DRAIN_SECONDS:.0f} s")
            workers.check()
            time.sleep(POLL_SECONDS)  # observed from outside, like the others
        return time.monotonic()

    def activity(self) -> tuple[int, str]:
        """Commands that Redis has run so far."""
        return int(self.server.client.info("stats")["total_commands_processed"]), "commands"

    def close(self) -> None:
        """Empty the Redis of the run."""
        self.server.client.flushall()

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A connected producer."""
        return RedisProducer(url)


def booted_worker(url: str) -> dramatiq.Worker:
    """A Worker that can be started, on a broker of its own, booted as dramatiq's command boots it. Raises
    RuntimeError when it has another prefetch than it is said to have.
    """
    broker, _actor = declare(url)
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=worker_threads(os.environ))
    if worker.queue_prefetch != prefetch(os.environ):
        raise RuntimeError(f"the prefetch is {worker.queue_prefetch}, not {prefetch(os.environ)}")
    return worker


def work(url: str) -> None:
    """Run a dramatiq Worker; obey `hold` and `go` on standard input."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    worker = booted_worker(url)
    worker.start()
    print("ready", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "hold":
            worker.stop()
            worker = booted_worker(url)
            print("held", flush=True)
        elif word == "go":
            worker.start()
    threading.Event().wait()


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work(os.environ["REDIS_URL"])

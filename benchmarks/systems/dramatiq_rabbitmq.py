"""dramatiq's own Worker on its own RabbitmqBroker: eight threads, stock middleware, prefetch 1,000 (with
16, its default, and with 64 it takes a third to two thirds more processor time).

`quorum` gives its queue the kind that Packhorse's have; else it is the classic one that dramatiq declares.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.harness.handler import noop
from benchmarks.systems.base import THREADS

MODULE = "benchmarks.systems.dramatiq_rabbitmq"
QUEUE = "bench"
PREFETCH = 1000
URL, KIND = "BENCH_AMQP_URL", "BENCH_QUEUE_KIND"


class QuorumBroker(RabbitmqBroker):
    """Declares quorum queues."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)
        return arguments | {"x-queue-type": "quorum"}


def environment(url: str, kind: str) -> dict[str, str]:
    """Of a worker. dramatiq reads the prefetch when it is imported."""
    return {URL: url, KIND: kind, "dramatiq_queue_prefetch": str(PREFETCH)}


def broker(url: str, kind: str) -> RabbitmqBroker:
    """A broker with the benchmark's actor and its queue, which is there afterwards."""
    made = (QuorumBroker if kind == "quorum" else RabbitmqBroker)(url=url)
    dramatiq.actor(actor_name=QUEUE, queue_name=QUEUE, broker=made)(noop)
    made.declare_queue(QUEUE, ensure=True)
    return made


def work(url: str, kind: str) -> None:
    """Run a worker until the process is ended; `ready` before it takes anything."""
    made = broker(url, kind)
    made.emit_after("process_boot")
    worker = dramatiq.Worker(made, worker_threads=THREADS)
    print("ready", flush=True)
    worker.start()
    threading.Event().wait()


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work(os.environ[URL], os.environ[KIND])

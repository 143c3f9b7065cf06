"""A producer process: `python -m benchmarks.harness.producer <system> <mode> <count> <threads>`.

It connects, sends a few messages to warm up, says `ready`, waits for the line `go`, enqueues, and says
`done <start> <end>` in seconds of the monotonic clock. Modes: `single`, `bulk`,
`bulk-messages`, `paced`.
STORE_URL says where to. The messages of the warm-up carry `sent_ns` 0 and are not counted.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.harness.payload import payload
from benchmarks.systems import adapter, make_producer
from benchmarks.systems.base import Producer

PER_SECOND = int(os.environ.get("BENCH_PER_SECOND") or 50)
WARM_UP = 5


def single(producer: Producer, count: int) -> None:
    """One message per transaction."""
    messages: Iterator[dict[str, Any]] = (payload(number) for number in range(count))
    producer.each(messages)


def bulk(producer: Any, count: int, call: int, verb: str = "many") -> None:
    """Calls of `call` messages, by this verb of the producer."""
    enqueue = getattr(producer, verb)
    for first in range(0, count, call):
        enqueue([payload(number) for number in range(first, min(first + call, count))])


def paced(producer: Producer, count: int) -> None:
    """PER_SECOND messages a second, each up to half a period off its beat, so no poller can keep step."""
    period = 1 / PER_SECOND
    begun = time.monotonic()
    jitter = random.Random(os.getpid())
    for number in range(count):
        moment = begun + (number + jitter.uniform(0, 0.5)) * period
        time.sleep(max(0.0, moment - time.monotonic()))  # the beat itself is what is asked for
        producer.one(payload(number, time.time_ns()))


def mode_of(name: str, system: str) -> Callable[[Producer, int], None]:
    """What a producer does in a mode."""
    call = adapter(system).sizes.bulk_call
    modes: dict[str, Callable[[Producer, int], None]]
    modes = {
        "single": single,
        "bulk": partial(bulk, call=call),
        "bulk-messages": partial(bulk, call=call, verb="many_messages"),
        "paced": paced,
    }
    return modes[name]


def run(producers: list[Producer], mode: Callable[[Producer, int], None], count: int) -> None:
    """Share `count` messages between the producers, one thread each."""
    share = count // len(producers)
    threads = [threading.Thread(target=mode, args=(producer, share)) for producer in producers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(system: str, mode: str, count: int, threads: int) -> None:
    """Talk to the harness as the module says."""
    producers = [make_producer(system, os.environ["STORE_URL"]) for _ in range(threads)]
    for producer in producers:
        producer.each(payload(number) for number in range(WARM_UP))
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        return
    enqueue = mode_of(mode, system)
    started = time.monotonic()
    if threads == 1:
        enqueue(producers[0], count)
    else:
        run(producers, enqueue, count)
    print(f"done {started} {time.monotonic()}", flush=True)
    for producer in producers:
        producer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

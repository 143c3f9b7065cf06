"""The actor of the fleet: notes in BENCH_FLEET_FILE which daemon ran a message, and how late."""

from __future__ import annotations

import os
import time

import dramatiq

FILE = os.open(os.environ["BENCH_FLEET_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dramatiq.actor(actor_name="bench", queue_name="bench")
def bench(*, sent_ns: int, **message: object) -> None:
    """A cheap handler: one write."""
    os.write(FILE, b"%d %d %d\n" % (os.getppid(), sent_ns, time.time_ns() - sent_ns))

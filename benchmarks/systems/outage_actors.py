"""The actor of the metric `outage`: a coroutine that asks a service. BENCH_SERVICE_URL: where it is.
BENCH_NOTES_FILE: a line for each answer.
"""

from __future__ import annotations

import os
import time

import dramatiq

from benchmarks.systems.outage_service import ASK_QUEUE, SERVICE_URL
from benchmarks.systems.waiting_actors import LIMIT_MS, NOTES_FILE
from packhorse.calls import register_service

RESET_SECONDS = 10.0

notes = os.open(os.environ.get(NOTES_FILE) or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
service = register_service(
    "outage", os.environ[SERVICE_URL], timeout=60_000, breaker={"reset_seconds": RESET_SECONDS}
)


@dramatiq.actor(queue_name=ASK_QUEUE, actor_name=ASK_QUEUE, time_limit=LIMIT_MS, services=["outage"])
async def ask(number: int) -> None:
    await service.request_async("GET", f"/{number}")
    os.write(notes, b"%d\n" % time.time_ns())

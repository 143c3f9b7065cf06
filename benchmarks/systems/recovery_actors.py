"""The actors of the metric `recovery`: one that takes three seconds, one that takes 20 ms and notes how late
it started.
"""

from __future__ import annotations

import os
import time

import dramatiq

from benchmarks.harness.handler import LATENCY_FILE, chosen_handler

SLOW_QUEUE, SLOW_SECONDS = "slow", 3.0
LIGHT_QUEUE, LIGHT_SECONDS = "light", 0.02


if os.environ.get(LATENCY_FILE):
    record = chosen_handler()

    @dramatiq.actor(queue_name=LIGHT_QUEUE, actor_name=LIGHT_QUEUE)
    def light(sent_ns: int) -> None:
        record(sent_ns=sent_ns)
        time.sleep(LIGHT_SECONDS)
else:

    @dramatiq.actor(queue_name=SLOW_QUEUE, actor_name=SLOW_QUEUE)
    def slow(number: int) -> None:
        time.sleep(SLOW_SECONDS)

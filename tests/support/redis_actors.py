"""Actors that keep results and take rate limits on Redis, beside one that needs none; a pool of a few
threads.
"""

from __future__ import annotations

import time

import dramatiq
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.results import Results

from packhorse import PostgresBroker
from packhorse.worker.broker.backends import rate_limiter_backend, result_backend

broker = PostgresBroker()
broker.add_middleware(Results(backend=result_backend(broker)))
dramatiq.set_broker(broker)
limiters = rate_limiter_backend(broker)


@dramatiq.actor(queue_name="others")
def other() -> None:
    time.sleep(0.02)


@dramatiq.actor(queue_name="results", store_results=True)
def keeps() -> int:
    time.sleep(0.02)
    return 1


@dramatiq.actor(queue_name="results", store_results=True, max_retries=0)
def fails() -> int:
    """Its exception is kept where the outcomes of all messages are written."""
    raise ValueError("no")


@dramatiq.actor(queue_name="results", max_retries=0)
def limited() -> None:
    with ConcurrentRateLimiter(limiters, "limited", limit=100, ttl=60_000).acquire():
        time.sleep(0.02)

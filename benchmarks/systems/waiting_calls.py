"""A program that calls a service whose breaker is closed, and nothing else: `python -m
benchmarks.systems.waiting_calls <calls>`.

It says `done <microseconds of one call>`, the median of BATCHES batches. DATABASE_URL is where its calls are
reported to, as in a worker.
"""

from __future__ import annotations

import sys
import time
from statistics import median

from packhorse.calls import register_service

BATCHES = 20


def main(calls: int) -> None:
    """Call, and say how long one call took."""
    service = register_service("bench", "nobody-connects-to-it")
    batch = max(1, calls // BATCHES)
    found = []
    for _ in range(BATCHES + 1):
        began = time.perf_counter()
        for _ in range(batch):
            with service.call():
                pass
        found.append((time.perf_counter() - began) / batch * 1e6)
    print(f"done {median(found[1:])}", flush=True)  # the first batch connects


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""After an outage the loops of a process do not all try to connect, again and again (FAILURES 40, 78).

Per connection string, the loops of one process share one backoff with full jitter: one of them tries, the
others wait for what comes of it. When it succeeds they follow at once. Who is no loop (a producer, a handler,
a command) tries as it likes.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.service import current_service

FIRST_SECONDS = 0.5  # the longest pause after the first attempt that failed; it doubles
URGENT_SECONDS = 2.0  # the same for a process that holds messages: their leases run
LEAST_SECONDS = 0.1


class Backoff:
    """The attempts of one process to reach one server; any thread.

    most_seconds: the longest pause; a database that is back is found within this time. clock: monotonic
    seconds.
    """

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_seconds = most_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._trying = 0
        self._next_at = 0.0
        self._urgent_at = 0.0

    def left(self, urgent: bool) -> float:
        """Seconds until somebody may try; 0: now."""
        with self._lock:
            return self._left(urgent)

    def _left(self, urgent: bool) -> float:
        if not self._failures:
            return 0.0
        if self._trying:
            return LEAST_SECONDS
        return max(0.0, (self._urgent_at if urgent else self._next_at) - self._clock())

    @contextmanager
    def attempt(self, urgent: bool) -> Iterator[None]:
        """Around one attempt. Raises StoreUnavailable without one when it is not yet time, or another one is
        on its way.
        """
        with self._lock:
            if self._left(urgent):
                raise _waiting(
                    "no attempt to connect: one of this process has just failed, or is on its way",
                    self,
                    urgent,
                )
            self._trying += 1
        try:
            yield
        except BaseException as error:
            self._failed()
            if isinstance(error, StoreUnavailable):
                error.blocked = partial(self.left, urgent)
            raise
        else:
            with self._lock:
                self._failures = 0
        finally:
            with self._lock:
                self._trying -= 1

    def _failed(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._urgent_at:
                return  # they began together: one failure
            self._failures += 1
            most = FIRST_SECONDS * 2 ** min(self._failures - 1, 10)
            share = random.random()
            self._next_at = now + LEAST_SECONDS + share * min(most, self._most_seconds - LEAST_SECONDS)
            self._urgent_at = now + LEAST_SECONDS + share * min(most, URGENT_SECONDS - LEAST_SECONDS)


_backoffs: dict[str, Backoff] = {}
os.register_at_fork(after_in_child=_backoffs.clear)


@contextmanager
def politely(url: str) -> Iterator[None]:
    """Around the opening of a connection: in a loop of ours only when it is time."""
    service = current_service()
    if service is None:
        yield
        return
    with _backoffs.setdefault(url, Backoff(service.reconnect_seconds)).attempt(service.urgent()):
        yield


def _waiting(text: str, backoff: Backoff, urgent: bool) -> StoreUnavailable:
    error = StoreUnavailable(text)
    error.blocked = partial(backoff.left, urgent)
    error.tried = False
    return error

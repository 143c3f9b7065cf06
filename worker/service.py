"""The contract of everything that owns a thread: start, stop, wait.

Start is idempotent, stop before start is harmless, stop only asks, wait joins. A loop body that raises
is logged, counted and tried again with backoff: no service dies in silence (SPEC P8, O4).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from packhorse.worker import forks
from packhorse.worker.clock import TICK_SECONDS
from packhorse.worker.errors import StoreUnavailable

logger = logging.getLogger("packhorse.service")

#: A loop that has worked for so long is well again.
WELL_SECONDS = 1.0
#: Between two lines about an outage, of all loops of a process; and of one loop about any failure: from this
#: up to the second.
LINE_SECONDS = 1.0
MOST_LINE_SECONDS = 60.0
#: Between two looks whether it is time to connect again.
BLOCKED_SECONDS = 0.1


class _CurrentService(threading.local):
    service: Service | None = None


_current = _CurrentService()


def still_alive() -> None:
    """A tick from deep inside a turn that goes in many steps, each with a deadline of its own. Nothing
    outside a service's thread.
    """
    service = _current.service
    if service is not None and service.judged:
        service.ticked(time.monotonic())


def current_service() -> Service | None:
    """The service whose thread this is; None in any other thread."""
    return _current.service


class _OutageLines:
    """When a failure may be said. The first one always: an outage, which all loops meet, is said by one of
    them at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outage_at = 0.0

    def outage(self, now: float) -> bool:
        """May a line about an outage be written now?"""
        with self._lock:
            if now < self._outage_at:
                return False
            self._outage_at = now + LINE_SECONDS
            return True


_lines = _OutageLines()


class Service:
    """A named thread that calls `run_once` until it is stopped.

    `run_once` returns the seconds to wait before the next call (0 = at once). `last_success` is the
    monotonic time of the last call that returned; readers may look at it from any thread.
    """

    name = "service"
    max_backoff_seconds = 5.0
    #: The longest pause between attempts to connect; shared by the loops of a process, the first to fail says
    #: it.
    reconnect_seconds = 3.0
    #: Told the monotonic time of every tick, 0 after the orderly end; liveness is judged by it (SPEC O4).
    ticked: Callable[[float], None] = staticmethod(lambda now: None)
    #: Told how each turn went: the error or None, and when the turn began (monotonic).
    noted: Callable[[Exception | None, float], None] = staticmethod(lambda error, began: None)

    def __init__(self) -> None:
        self.last_success = time.monotonic()
        self.failures = 0  # in a row; written by the service's own thread
        self._said_failures = 0  # since it was last well
        self._next_line = 0.0
        self._line_gap = LINE_SECONDS
        self._failed_at = 0.0
        self._told = False
        self.judged = True  # False while what it does may take longer than a loop has; its own thread only
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=f"packhorse-{self.name}", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """End the current wait early."""
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        self._stopping.set()
        self._wake.set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Join the thread; True when it has ended (or never started)."""
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def urgent(self) -> bool:
        """Is it dear when this loop connects again late?"""
        return False

    def run_once(self) -> float:
        """One turn of the loop; returns seconds to wait before the next."""
        raise NotImplementedError

    def on_stop(self) -> None:
        """Called in the service's thread after its last turn: close what it opened."""

    def _loop(self) -> None:
        _current.service = self
        while not self._stopping.is_set():
            self._wake.clear()
            began = time.monotonic()
            self.ticked(began)
            try:
                delay = forks.contain(self.run_once)  # hooks of middleware run in loops, too
                self.last_success = time.monotonic()
                self.noted(None, began)
                self.failures = 0
                self._worked()
            except Exception as error:  # top of a loop: it must go on, with backoff
                self.noted(error, began)
                blocked = error.blocked if isinstance(error, StoreUnavailable) else None
                self._failed(error)
                if blocked is not None:
                    self._wait(blocked)
                    continue
                delay = min(self.max_backoff_seconds, 0.1 * 2 ** min(self.failures, 10)) * random.uniform(
                    0.5, 1.0
                )
            if delay > 0 and not self._stopping.is_set():
                self._sleep(delay)
        self.on_stop()
        self.ticked(0.0)

    def _worked(self) -> None:
        """A turn went well. That it works again is said when it has for WELL_SECONDS: what comes and goes is
        not news each time.
        """
        if not self._said_failures or time.monotonic() - self._failed_at < WELL_SECONDS:
            return
        if self._told:
            logger.info("service_recovered name=%s failures=%d", self.name, self._said_failures)
        self._said_failures, self._told, self._line_gap, self._next_line = 0, False, LINE_SECONDS, 0.0

    def _failed(self, error: Exception) -> None:
        """Say the first failure, and repeats more and more seldom; of what all loops meet one says it at a
        time.
        """
        now = self._failed_at = time.monotonic()
        self.failures += 1
        self._said_failures += 1
        if now < self._next_line or (
            isinstance(error, StoreUnavailable) and (not error.tried or not _lines.outage(now))
        ):
            return
        self._next_line, self._line_gap = now + self._line_gap, min(MOST_LINE_SECONDS, self._line_gap * 2)
        self._told = True
        logger.warning(
            "service_failed name=%s failures=%d error_class=%s error=%s",
            self.name,
            self._said_failures,
            type(error).__name__,
            error,
        )

    def _wait(self, blocked: Callable[[], float]) -> None:
        """Until it is time to connect again, or another loop has: then all follow."""
        while not self._stopping.is_set() and (seconds := blocked()) > 0:
            self._stopping.wait(min(seconds, BLOCKED_SECONDS))
            self.ticked(time.monotonic())

    def _sleep(self, seconds: float) -> None:
        """Wait, ticking: idle is alive."""
        while seconds > TICK_SECONDS:
            if self._wake.wait(TICK_SECONDS):
                return
            seconds -= TICK_SECONDS
            self.ticked(time.monotonic())
        self._wake.wait(seconds)

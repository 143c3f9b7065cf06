"""The contract of everything that owns a thread: start, stop, wait.

Start is idempotent, stop before start is harmless, stop only asks, wait joins. A loop body that raises
is logged, counted and tried again with backoff: no service dies in silence (SPEC P8, O4).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from worker import forks

logger = logging.getLogger("packhorse.service")

#: A service that waits still ticks this often.
TICK_SECONDS = 2.0


class _Current(threading.local):
    service: Service | None = None


_current = _Current()


def still_alive() -> None:
    """A tick from deep inside a turn that goes in many steps, each with a deadline of its own. Nothing outside a service's thread."""
    service = _current.service
    if service is not None and service.judged:
        service.ticked(time.monotonic())


class Service:
    """A named thread that calls `run_once` until it is stopped.

    `run_once` returns the seconds to wait before the next call (0 = at once). `last_success` is the
    monotonic time of the last call that returned; readers may look at it from any thread.
    """

    name = "service"
    max_backoff_seconds = 5.0
    #: Told the monotonic time of every tick, 0 after the orderly end; liveness is judged by it (SPEC O4).
    ticked: Callable[[float], None] = staticmethod(lambda now: None)
    #: Told how each turn went: the error or None, and when the turn began (monotonic).
    noted: Callable[[Exception | None, float], None] = staticmethod(lambda error, began: None)

    def __init__(self) -> None:
        self.last_success = time.monotonic()
        self.failures = 0  # in a row; written by the service's own thread
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
                if self.failures:
                    logger.info("service_recovered name=%s failures=%d", self.name, self.failures)
                self.failures = 0
            except Exception as error:  # top of a loop: it must go on, with backoff
                self.failures += 1
                self.noted(error, began)
                delay = min(self.max_backoff_seconds, 0.1 * 2 ** min(self.failures, 10))
                if self.failures & (self.failures - 1) == 0:  # 1, 2, 4, 8 …: repeats are not repeated
                    logger.warning(
                        "service_failed name=%s failures=%d error_class=%s error=%s", self.name, self.failures, type(error).__name__, error
                    )
            if delay > 0 and not self._stopping.is_set():
                self._sleep(delay)
        self.on_stop()
        self.ticked(0.0)

    def _sleep(self, seconds: float) -> None:
        """Wait, ticking: idle is alive."""
        while seconds > TICK_SECONDS:
            if self._wake.wait(TICK_SECONDS):
                return
            seconds -= TICK_SECONDS
            self.ticked(time.monotonic())
        self._wake.wait(seconds)

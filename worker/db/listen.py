"""One LISTEN connection per process: wake-ups only, polling remains the truth (SPEC Q10, FAILURES 57-59).

After every (re)connect: first LISTEN, then wake everybody once, so that nothing committed in between is
missed. A dead listener costs nothing but latency.
"""

from __future__ import annotations

from collections.abc import Callable

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.service import Service

CHANNEL = "packhorse_wake"


class Listener(Service):
    """Calls `on_wake(queue)` for each notification, and on_wake("") after each (re)connect."""

    name = "listener"

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        on_wake: Callable[[str], None],
        idle_seconds: float = 5.0,
    ) -> None:
        super().__init__()
        self._link = Link(open_connection)
        self._on_wake = on_wake
        self._idle_seconds = idle_seconds
        self._opened = 0
        self.listening = False  # written by the listener thread only

    def run_once(self) -> float:
        try:
            with self._link.connection() as connection:
                if self._link.opened_total != self._opened:
                    connection.execute(f"listen {CHANNEL}", prepare=False)
                    self._opened = self._link.opened_total
                    self.listening = True
                    self._on_wake("")
                for notification in connection.notifies(timeout=self._idle_seconds, stop_after=1):
                    self._on_wake(notification.payload)
        except BaseException:
            self.listening = False
            raise
        return 0.0

    def on_stop(self) -> None:
        self.listening = False
        self._link.close()

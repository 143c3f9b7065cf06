"""Health checks of endpoints: every one by one process of the fleet at a time, a few seconds each (SPEC W10,
P7).
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from packhorse.worker.calls.breakers import ServiceBreakers
from packhorse.worker.clock import Deadline
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.service import Service
from packhorse.worker.store import services as store

logger = logging.getLogger("packhorse.health_checks")

#: A check that has not answered by then has failed.
CHECK_SECONDS = 3.0
#: Checks that a process makes at a time.
AT_ONCE = 8
MOST_PAUSE_SECONDS, LEAST_PAUSE_SECONDS = 1.0, 0.05


class HealthChecks(Service):
    """Takes the checks that are due and makes them. services: those that are declared now."""

    name = "health-checks"

    def __init__(
        self, services: Callable[[], list[ServiceBreakers]], open_connection: Callable[[], DeadlineConnection]
    ) -> None:
        super().__init__()
        self._services = services
        self._link = Link(open_connection)

    def run_once(self) -> float:
        checked = [
            breakers.declaration
            for breakers in self._services()
            if breakers.declaration.health_check_url is not None
        ]
        if not checked:
            return MOST_PAUSE_SECONDS
        with self._link.connection() as connection:
            due = store.due_checks(connection, [declaration.name for declaration in checked], AT_ONCE)
            if due:
                for check, error in zip(due, check_all([check.health_url for check in due]), strict=True):
                    self._record(connection, check, error)
        if len(due) == AT_ONCE:
            return 0.0
        shortest = min(declaration.health_check_interval_ms for declaration in checked) / 1000
        return min(MOST_PAUSE_SECONDS, max(LEAST_PAUSE_SECONDS, shortest / 4))

    def on_stop(self) -> None:
        self._link.close()

    def _record(self, connection: DeadlineConnection, check: store.DueCheck, error: str | None) -> None:
        before, after = store.record_health(connection, check.service, check.endpoint, error)
        if after is False and before is not False:
            logger.warning(
                "endpoint_unhealthy service=%s endpoint=%s error=%s", check.service, check.endpoint, error
            )
        elif after and before is False:
            logger.info("endpoint_healthy service=%s endpoint=%s", check.service, check.endpoint)


class _Check:
    """One GET in a thread of its own: the name may be resolved for longer than anybody waits."""

    def __init__(self, url: str, seconds: float) -> None:
        self.error: str | None = f"no answer within {seconds:g} s"
        self._url = url
        self._seconds = seconds
        self._connection: http.client.HTTPConnection | None = None
        self.thread = threading.Thread(target=self._run, name="packhorse-health-check", daemon=True)

    def _run(self) -> None:
        try:
            self.error = self._ask()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.error = f"{type(error).__name__}: {error}"[:300]

    def _ask(self) -> str | None:
        parts = urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=self._seconds)
        try:
            self._connection.request(
                "GET",
                (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                headers={"User-Agent": "packhorse"},
            )
            status = self._connection.getresponse().status  # its body is nobody's concern
        finally:
            self._connection.close()
        return None if status < 400 else f"status {status}"

    def give_up(self) -> None:
        """An answer that comes drop by drop keeps within every timeout of the socket."""
        found = self._connection.sock if self._connection is not None else None
        if found is not None:
            try:
                found.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def check_all(urls: Sequence[str], seconds: float = CHECK_SECONDS) -> list[str | None]:
    """Ask all at once; per URL what is wrong with it, None: nothing. Takes at most these seconds."""
    checks = [_Check(url, seconds) for url in urls]
    deadline = Deadline(seconds)
    for check in checks:
        check.thread.start()
    for check in checks:
        check.thread.join(deadline.remaining)
    found = [check.error for check in checks]
    for check in checks:
        if check.thread.is_alive():
            check.give_up()
    return found

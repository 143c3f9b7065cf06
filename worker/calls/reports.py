"""The thread that tells the database what the calls of this process came to, and brings back which breakers
are open (SPEC W10).

One statement for all services of the process: twice a second, and at once when a call has failed or a probe
has ended.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from packhorse.worker.calls.breakers import Breaker, ServiceBreakers
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError
from packhorse.worker.service import Service
from packhorse.worker.store import services as store

logger = logging.getLogger("packhorse.breakers")

REPORT_SECONDS = 0.5
#: Between two reports at least, however much fails.
LEAST_SECONDS = 0.02
#: A declaration is repeated this often, so that it is known to be of use.
DECLARE_SECONDS = 60.0


class EndedProbe(NamedTuple):
    """succeeded None: the probe says nothing."""

    breakers: ServiceBreakers
    breaker: Breaker
    token: int
    succeeded: bool | None


def end_probe(connection: DeadlineConnection, probe: EndedProbe) -> None:
    """Tell how a probe went, and take over what the database makes of it."""
    service, endpoint = probe.breakers.declaration.name, probe.breaker.endpoint
    state = store.end_probe(connection, service, endpoint, probe.token, probe.succeeded)
    if state is not None:
        probe.breakers.found(probe.breaker, state)
    if state == "closed":
        logger.info("circuit_closed service=%s endpoint=%s", service, endpoint)
    elif state == "open":
        logger.info("circuit_probe_failed service=%s endpoint=%s", service, endpoint)


class BreakerReports(Service):
    """services: those that are declared now. away: the database did not answer the last report."""

    name = "breakers"

    def __init__(
        self, services: Callable[[], list[ServiceBreakers]], open_connection: Callable[[], DeadlineConnection]
    ) -> None:
        super().__init__()
        self.away = False
        self._services = services
        self._link = Link(open_connection)
        self._ended: deque[EndedProbe] = deque()  # appended to by any thread
        self._declared: dict[str, float] = {}  # service -> monotonic
        self._turn_at = 0.0

    def probe_ended(self, probe: EndedProbe) -> None:
        """Any thread: a probe is over that its caller could not tell of; told as soon as the database
        answers.
        """
        self._ended.append(probe)
        self.wake()

    def run_once(self) -> float:
        too_early = self._turn_at + LEAST_SECONDS - time.monotonic()
        if too_early > 0:
            self._stopping.wait(too_early)
        self._turn_at = time.monotonic()
        services = self._services()
        try:
            with self._link.connection() as connection:
                self._declare(connection, services)
                self._end_probes(connection)
                self._report(connection, services)
        except StoreError:
            if not self.away:
                self.away = True
                logger.warning("breakers_alone services=%d", len(services))
            raise
        if self.away:
            self.away = False
            logger.info("breakers_shared services=%d", len(services))
        return REPORT_SECONDS

    def on_stop(self) -> None:
        """What the last calls came to is told once more, when that is quickly done."""
        if not self.away:
            try:
                self.run_once()
            except StoreError:
                pass  # half a second of counts
        self._link.close()

    def _declare(self, connection: DeadlineConnection, services: list[ServiceBreakers]) -> None:
        now = time.monotonic()
        for breakers in services:
            name = breakers.declaration.name
            if now >= self._declared.get(name, 0.0):
                store.declare(connection, name, breakers.declaration.rows())
                self._declared[name] = now + DECLARE_SECONDS

    def _end_probes(self, connection: DeadlineConnection) -> None:
        while self._ended:
            end_probe(connection, self._ended[0])
            self._ended.popleft()

    def _report(self, connection: DeadlineConnection, services: list[ServiceBreakers]) -> None:
        names = [breakers.declaration.name for breakers in services]
        if any(breakers.unknown for breakers in services):  # counts need the epoch that they belong to
            self._apply(services, store.report_calls(connection, [], names))
        taken = [(breakers, breakers.take()) for breakers in services]
        reports = [report for _, found in taken for report in found]
        try:
            states = store.report_calls(connection, reports, names)
        except BaseException:
            for breakers, found in taken:
                breakers.give_back(found)
            raise
        self._apply(services, states)

    def _apply(self, services: list[ServiceBreakers], states: list[store.EndpointState]) -> None:
        for breakers in services:
            found = [state for state in states if state.service == breakers.declaration.name]
            breakers.apply(found)
        for state in states:
            if state.changed:
                logger.warning(
                    "circuit_opened service=%s endpoint=%s failures_in_row=%d retry_seconds=%.1f",
                    state.service,
                    state.endpoint,
                    state.failures_in_row,
                    state.retry_in or 0.0,
                )

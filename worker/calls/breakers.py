"""Circuit breakers as one process sees them: which endpoint to call, and what its calls came to (SPEC W10).

A call of a closed breaker costs a look and a few counters under a lock that nobody holds for long. The
database decides over all processes (functions/breakers.sql); reports.py tells it and brings its answer. Until
it answers this process decides for itself, by the same rules and its own calls.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from packhorse.worker.calls.declarations import ServiceDeclaration
from packhorse.worker.store.services import EndpointState

#: Between two questions of one process whether an endpoint may be probed.
ASK_SECONDS = 0.1
#: A caller that is refused while somebody else's probe runs comes again after this.
PROBING_SECONDS = 1.0
#: And one that meets a breaker which an operator holds open.
FORCED_SECONDS = 30.0
#: And one that meets a breaker of which the database has yet to say whether it is open.
ANSWER_SECONDS = 0.25
#: Added to a wait, as a share of it and at least in seconds, so that not all come back at once.
JITTER, LEAST_JITTER_SECONDS = 0.1, 0.05
#: An endpoint whose last failure is older than this is as good as any other: else one failure would keep it
#: from being asked for ever.
FORGIVEN_SECONDS = 2.0
#: The token of a probe that this process has allowed itself, for the database is away.
OWN_PROBE = -1


class Breaker:
    """One endpoint. Written under the lock of its ServiceBreakers; reading a field needs none.

    epoch: of the database's; 0 before its first answer. failing: failures in a row, of the fleet as far as is
    known. retry_at: monotonic.
    """

    __slots__ = (
        "asked_at",
        "calls",
        "closed",
        "endpoint",
        "epoch",
        "failed_at",
        "failing",
        "failures",
        "fallback",
        "forced",
        "healthy",
        "in_row",
        "late_calls",
        "late_failures",
        "own_calls",
        "own_failures",
        "own_since",
        "own_successes",
        "probe_until",
        "probing",
        "retry_at",
        "state",
        "succeeded",
        "unanswered",
    )

    def __init__(self, endpoint: str, fallback: bool) -> None:
        self.endpoint = endpoint
        self.fallback = fallback
        self.closed = True
        self.state = "closed"
        self.forced: str | None = None
        self.epoch = 0
        self.retry_at = math.inf
        self.probing = False
        self.probe_until = 0.0
        self.healthy: bool | None = None
        self.failing = 0
        self.failed_at = -math.inf
        self.asked_at = -math.inf
        # since the last report
        self.calls = self.failures = self.in_row = 0
        self.succeeded = False
        self.late_calls = self.late_failures = 0  # of calls that had begun under another epoch
        # while the database is away
        self.own_since = -math.inf
        self.own_calls = self.own_failures = self.own_successes = 0
        self.unanswered = False  # opened by this process; the answer to its report is on its way


class ServiceBreakers:
    """The endpoints of one service. Any thread. on_trouble: called after a failure, so that it is told at
    once.

    is_away: is the database out of reach?
    """

    def __init__(
        self,
        declaration: ServiceDeclaration,
        on_trouble: Callable[[], None] = lambda: None,
        is_away: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.declaration = declaration
        self.breakers = [Breaker(e, False) for e in declaration.endpoints] + [
            Breaker(e, True) for e in declaration.fallback
        ]
        self.used_at = -math.inf
        self._only = self.breakers[0] if len(self.breakers) == 1 else None
        self._on_trouble = on_trouble
        self._is_away = is_away
        self.clock = clock
        self._lock = threading.Lock()
        self._turn = 0

    def after_fork(self) -> None:
        """In a forked child: what was counted is the parent's to tell, and nobody holds the lock."""
        self._lock = threading.Lock()
        self.take()

    # -- before a call --------------------------------------------------------------------------------
    def ready(self, without: Sequence[Breaker] = ()) -> Breaker | None:
        """The endpoint to call: healthy, breaker closed, fewest failures in a row, equal ones in turn; then
        the fallback ones. None: no one.
        """
        only = self._only
        if only is not None:
            return only if only.closed and only.healthy is not False and not without else None
        for fallback in (False, True):
            found = [
                b
                for b in self.breakers
                if b.closed and b.healthy is not False and b.fallback is fallback and b not in without
            ]
            if found:
                now = self.clock()
                counts = [b.failing if now < b.failed_at + FORGIVEN_SECONDS else 0 for b in found]
                fewest = min(counts)
                equal = [b for b, count in zip(found, counts, strict=True) if count == fewest]
                self._turn += 1
                return equal[self._turn % len(equal)]
        return None

    def unhealthy(self, without: Sequence[Breaker] = ()) -> list[Breaker]:
        """Endpoints whose breaker is closed and whose health checks fail; the fallback ones last."""
        return sorted(
            (b for b in self.breakers if b.closed and b.healthy is False and b not in without),
            key=lambda b: b.fallback,
        )

    def to_probe(self, without: Sequence[Breaker] = ()) -> list[Breaker]:
        """Endpoints that it is time to probe; the caller asks for each whether it may. Mostly empty."""
        only = self._only
        if only is not None and only.closed:
            return []
        now = self.clock()
        found = []
        with self._lock:
            for breaker in self.breakers:
                # whether a probe runs is known better by whoever is asked
                due = not breaker.closed and now >= breaker.retry_at
                if due and now >= breaker.asked_at + ASK_SECONDS and breaker not in without:
                    breaker.asked_at = now
                    found.append(breaker)
        return found

    def begin_own_probe(self, breaker: Breaker) -> int | None:
        """The database is away: OWN_PROBE unless another call of this process probes the endpoint."""
        now = self.clock()
        with self._lock:
            if breaker.closed or now < breaker.retry_at or (breaker.probing and now < breaker.probe_until):
                return None
            self._probe_began(breaker, now)
        return OWN_PROBE

    def probe_began(self, breaker: Breaker) -> None:
        """The database has given this process the probe."""
        with self._lock:
            self._probe_began(breaker, self.clock())

    def _probe_began(self, breaker: Breaker, now: float) -> None:
        breaker.state, breaker.probing = "half_open", True
        breaker.probe_until = now + self.declaration.probe_lease_seconds

    def found(self, breaker: Breaker, state: str) -> None:
        """What the database says of a breaker that was to be probed, or has been; the rest comes with the
        next report.
        """
        with self._lock:
            breaker.state, breaker.probing, breaker.asked_at = state, False, -math.inf
            if state == "closed":
                breaker.closed, breaker.epoch = True, 0
            elif state == "open":
                breaker.retry_at = self.clock() + self.declaration.breaker.reset_seconds

    def wait_seconds(self) -> float:
        """Seconds until somebody who was refused may come again; a little more than that, not the same for
        all.
        """
        now = self.clock()
        waits = [self._wait(breaker, now) for breaker in self.breakers]
        seconds = max(0.0, min(waits))
        return seconds + random.uniform(LEAST_JITTER_SECONDS, max(2 * LEAST_JITTER_SECONDS, seconds * JITTER))

    def _wait(self, breaker: Breaker, now: float) -> float:
        if breaker.closed:
            return 0.0
        if breaker.forced == "open":
            return FORCED_SECONDS
        if breaker.unanswered:
            return ANSWER_SECONDS
        if now >= breaker.retry_at:
            return PROBING_SECONDS
        return breaker.retry_at - now

    # -- after a call ---------------------------------------------------------------------------------
    def record(self, breaker: Breaker, epoch: int, succeeded: bool) -> None:
        """A call has ended that is no probe. epoch: the breaker's when it began."""
        with self._lock:
            if epoch != breaker.epoch and epoch:
                breaker.late_calls += 1
                breaker.late_failures += not succeeded
                return
            breaker.calls += 1
            if succeeded:
                breaker.in_row = breaker.failing = 0
                breaker.succeeded = True
            else:
                breaker.failures += 1
                breaker.in_row += 1
                breaker.failing += 1
                breaker.failed_at = self.clock()
            if self._is_away():
                self._count_own(breaker, succeeded)
            if not succeeded:
                self._judge(breaker, self.clock())
        self.used_at = self.clock()
        if not succeeded:
            self._on_trouble()

    def _count_own(self, breaker: Breaker, succeeded: bool) -> None:
        now = self.clock()
        if now - breaker.own_since > self.declaration.breaker.window_seconds:
            breaker.own_since, breaker.own_calls, breaker.own_failures = now, 0, 0
        breaker.own_calls += 1
        breaker.own_failures += not succeeded

    def _judge(self, breaker: Breaker, now: float) -> None:
        """Open by what this process knows: while the database is away, and until it has answered when it can
        only agree.

        Without the second a slow report would let messages fail again and again that somebody has to refuse.
        """
        if not breaker.closed or breaker.forced is not None:
            return
        policy = self.declaration.breaker
        many = (
            breaker.own_calls >= policy.least_calls
            and breaker.own_failures / breaker.own_calls >= policy.failure_ratio
        )
        if breaker.failing >= policy.most_in_row or (many and self._is_away()):
            self._open_by_itself(breaker, now)
            breaker.unanswered = not self._is_away()

    def _open_by_itself(self, breaker: Breaker, now: float) -> None:
        breaker.closed, breaker.state, breaker.probing = False, "open", False
        breaker.retry_at = now + self.declaration.breaker.reset_seconds
        breaker.own_successes = 0

    def end_own_probe(self, breaker: Breaker, succeeded: bool | None) -> None:
        """A probe with OWN_PROBE has ended; None: it says nothing."""
        with self._lock:
            breaker.probing, breaker.asked_at = False, -math.inf
            if breaker.closed or succeeded is None:
                return
            if not succeeded:
                self._open_by_itself(breaker, self.clock())
                return
            breaker.own_successes += 1
            if breaker.own_successes >= self.declaration.breaker.trials:
                breaker.closed, breaker.state, breaker.failing = True, "closed", 0
                breaker.own_since = -math.inf

    # -- reports --------------------------------------------------------------------------------------
    @property
    def unknown(self) -> bool:
        """Is there an endpoint of which the database has said nothing yet?"""
        return any(not breaker.epoch for breaker in self.breakers)

    def take(self) -> list[dict[str, Any]]:
        """What was counted since the last time, for report_calls; empties the counters. give_back() when it
        could not be told.
        """
        found = []
        with self._lock:
            for breaker in self.breakers:
                if breaker.late_calls:
                    found.append(
                        self._report(breaker, 0, breaker.late_calls, breaker.late_failures, 0, False)
                    )
                    breaker.late_calls = breaker.late_failures = 0
                if breaker.calls:
                    found.append(
                        self._report(
                            breaker,
                            breaker.epoch,
                            breaker.calls,
                            breaker.failures,
                            breaker.in_row,
                            breaker.succeeded,
                        )
                    )
                    breaker.calls = breaker.failures = breaker.in_row = 0
                    breaker.succeeded = False
        return found

    def _report(
        self, breaker: Breaker, epoch: int, calls: int, failures: int, in_row: int, succeeded: bool
    ) -> dict[str, Any]:
        return {
            "service": self.declaration.name,
            "endpoint": breaker.endpoint,
            "epoch": epoch,
            "calls": calls,
            "failures": failures,
            "in_row": in_row,
            "succeeded": succeeded,
        }

    def give_back(self, reports: Iterable[dict[str, Any]]) -> None:
        """The database was away: add what was taken to what has been counted meanwhile."""
        by_endpoint = {breaker.endpoint: breaker for breaker in self.breakers}
        with self._lock:
            for report in reports:
                breaker = by_endpoint[report["endpoint"]]
                if report["epoch"] != breaker.epoch:
                    breaker.late_calls += report["calls"]
                    breaker.late_failures += report["failures"]
                    continue
                breaker.calls += report["calls"]
                breaker.failures += report["failures"]
                if not breaker.succeeded:
                    breaker.in_row += report["in_row"]
                    breaker.succeeded = report["succeeded"]

    def apply(self, states: Iterable[EndpointState]) -> list[tuple[str, str, str]]:
        """Take over what the database says; (endpoint, state before, state now) of those that have changed.
        Of others that it knows: nothing.
        """
        by_endpoint = {breaker.endpoint: breaker for breaker in self.breakers}
        now = self.clock()
        changed = []
        with self._lock:
            for state in states:
                breaker = by_endpoint.get(state.endpoint)
                if breaker is not None:
                    before, after = breaker.forced or breaker.state, state.forced or state.state
                    self._take_over(breaker, state, now)
                    if before != after:
                        changed.append((breaker.endpoint, before, after))
        return changed

    def _take_over(self, breaker: Breaker, state: EndpointState, now: float) -> None:
        if breaker.epoch and breaker.epoch != state.epoch:  # counted under another epoch
            breaker.late_calls += breaker.calls
            breaker.late_failures += breaker.failures
            breaker.calls = breaker.failures = breaker.in_row = 0
            breaker.succeeded = False
        breaker.epoch, breaker.forced, breaker.state = state.epoch, state.forced, state.state
        breaker.closed = (state.forced or state.state) == "closed"
        breaker.retry_at = (
            math.inf if breaker.closed or state.forced == "open" else now + (state.retry_in or 0.0)
        )
        if breaker.probing and not state.probing:
            breaker.asked_at = -math.inf  # the next probe may begin
        breaker.probing = state.probing
        if state.probing and breaker.probe_until <= now:
            breaker.probe_until = now + self.declaration.probe_lease_seconds
        breaker.healthy = state.healthy
        failing = breaker.in_row if breaker.succeeded else state.failures_in_row + breaker.in_row
        if failing > breaker.failing:
            breaker.failed_at = now
        breaker.failing = failing
        breaker.own_since, breaker.own_calls, breaker.own_failures = -math.inf, 0, 0
        breaker.unanswered = False
        self._judge(breaker, now)

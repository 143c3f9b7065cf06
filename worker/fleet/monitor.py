"""How the parent sees its children: who is hung, what systemd is told, what the probes read (SPEC O4, O7).

One clock for all three: the ticks that every loop writes into shared memory. `look` is called in each turn
of the supervisor's loop and does no I/O but one datagram to the service manager.
"""

from __future__ import annotations

import time

from packhorse.worker.observe import fleet_stats as cells
from packhorse.worker.observe import probes
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.observe.process_stats import LOOPS, QUIET, REGISTERED, THREADS
from packhorse.worker.observe.systemd import Notifier

#: The parent looks every second. If it did not for this long, the whole host or process group stood still.
STANDSTILL_SECONDS = 5.0
STATUS_SECONDS = 5.0
#: A loop that has not ticked for so long is named; hang_seconds, after which its process is killed, may be an
#: hour. Always below that.
LATE_SECONDS = 20.0
#: While it drains, or waits for the database at the start, systemd is asked for this much more time, again
#: and again.
EXTEND_SECONDS = 15.0


class Monitor:
    """Used by the supervisor's only thread."""

    def __init__(self, fleet_stats: FleetStats, notifier: Notifier, hang_seconds: float) -> None:
        self._fleet_stats = fleet_stats
        self._notifier = notifier
        self._hang_seconds = hang_seconds
        self._looked_at = 0.0
        self._since = 0.0  # ticks from before a standstill say nothing
        self._ready = False
        self._reloading = False
        self._next_status = 0.0
        self._next_watchdog = 0.0

    def look(self, alive: int, draining: bool, rolling: bool) -> None:
        """alive: children that live. rolling: some of them still have to be replaced."""
        now = time.monotonic()
        if now - self._looked_at > STANDSTILL_SECONDS:
            self._since = now
        self._looked_at = now
        fleet_stats, notifier = self._fleet_stats, self._notifier
        fleet_stats.cells[cells.PARENT_TICK] = now
        fleet_stats.cells[cells.ALIVE] = alive
        fleet_stats.cells[cells.DRAINING] = draining
        if any(stats.states[REGISTERED] for stats in fleet_stats.children):
            fleet_stats.cells[cells.STARTED] = 1
        self._name_late(now)
        if not notifier.enabled:
            return
        if fleet_stats.cells[cells.STARTED] and not self._ready:
            self._ready = True
            notifier.send("READY=1")
        self._tell(now, draining, rolling)
        fleet_stats.cells[cells.PART + cells.PARTS.index("systemd")] = notifier.failures

    def _name_late(self, now: float) -> None:
        late_seconds = min(LATE_SECONDS, self._hang_seconds * 2 / 3)
        for stats in self._fleet_stats.children:
            ticks, late = stats.ticks(), probes.late_loops(stats, now, late_seconds, self._since)
            for loop in LOOPS:
                stats.duties.judge_tick(loop, ticks.get(loop, now), loop in late)

    def hung(self, index: int) -> list[str]:
        """Loops of a child that do not tick any more."""
        return probes.late_loops(
            self._fleet_stats.children[index], time.monotonic(), self._hang_seconds, self._since
        )

    def exporter_hung(self) -> bool:
        ticked = self._fleet_stats.cells[cells.EXPORTER_TICK]
        return bool(ticked) and time.monotonic() - max(ticked, self._since) > self._hang_seconds

    def reloading(self) -> None:
        """A rolling restart begins."""
        self._reloading = True
        self._notifier.reloading()

    def stopping(self) -> None:
        self._notifier.send("STOPPING=1", "STATUS=draining")

    def _tell(self, now: float, draining: bool, rolling: bool) -> None:
        if self._reloading and not rolling:
            self._reloading = False
            self._notifier.send("READY=1")
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            waiting = draining or not self._ready  # for handlers, or for the database
            self._notifier.send(
                f"STATUS={self._status(draining)}",
                *([f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1e6:.0f}"] if waiting else []),
            )
        watchdog = self._notifier.watchdog_seconds
        if (
            watchdog
            and now >= self._next_watchdog
            and not any(self.hung(index) for index in range(len(self._fleet_stats.children)))
        ):
            self._next_watchdog = now + watchdog / 2
            self._notifier.send("WATCHDOG=1")

    def _status(self, draining: bool) -> str:
        fleet_stats = self._fleet_stats
        threads = sum(stats.states[THREADS] for stats in fleet_stats.children)
        doing = (
            "draining"
            if draining
            else "quiet"
            if any(stats.states[QUIET] for stats in fleet_stats.workers)
            else "working"
        )
        return f"{doing}: {fleet_stats.cells[cells.ALIVE]:.0f} processes, {sum(busy() for busy in fleet_stats.busy)} of {threads:.0f} threads busy"

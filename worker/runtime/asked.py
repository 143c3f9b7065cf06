"""What an operator has asked of this daemon (`packhorse workers quiet|drain|resume`), learnt with a heartbeat
(SPEC O5).

Quiet: claim nothing more, hand back what has not started, and live. It is the daemon's: a process that starts
in it learns it when it registers, before its first claim. Drain: the parent is told, which ends the daemon as
a SIGTERM does.
"""

from __future__ import annotations

import logging
from uuid import UUID

from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.observe.process_stats import DRAIN_ASKED, QUIET, ProcessStats
from packhorse.worker.runtime.feeder import Feeder

logger = logging.getLogger("packhorse.process")


class Asked:
    """Called by the heartbeat; at the start by the main thread, before anything claims."""

    def __init__(self, fetcher: Feeder, heartbeat: Heartbeat, stats: ProcessStats, worker_id: UUID) -> None:
        self._worker_id = worker_id
        self._fetcher = fetcher
        self._heartbeat = heartbeat
        self._stats = stats

    def __call__(self, request: str | None) -> None:
        fetcher, worker_id = self._fetcher, self._worker_id
        if request == "drain":
            self._stats.states[DRAIN_ASKED] = 1.0
        quiet = request is not None
        if quiet == fetcher.quiet:
            return
        fetcher.quiet = quiet
        self._stats.states[QUIET] = quiet
        if self._heartbeat.state != "draining":
            self._heartbeat.state = "quiet" if quiet else "running"
        if quiet:
            logger.info("worker_quiet worker_id=%s", worker_id)
        else:
            logger.info("worker_resumed worker_id=%s", worker_id)
            fetcher.on_wake("")
        fetcher.wake()

"""The process that serves metrics and probes of one `packhorse worker` (SPEC O2, O4, FAILURES 68).

A child of the supervisor, which keeps its one thread and can always fork; it reads the fleet_stats, so a
blocked loop, a stopped database or its own death changes nothing for the work. It ends with its parent. A
port in use is left for the next free one; when none is free that is said once, counted, and tried again; the
worker goes on.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import platform
import random
import signal
import time
from functools import partial
from typing import Any

from packhorse.worker.clock import skew
from packhorse.worker.config import Settings
from packhorse.worker.db import schema_version
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import SchemaMismatch, StoreError
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.fleet.child import STOP_SIGNALS, end_with_parent
from packhorse.worker.observe import fleet_stats as cells
from packhorse.worker.observe import probes
from packhorse.worker.observe.endpoints import Answer, Endpoints, Route, json_answer, probe_answer
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.observe.metrics import FleetCollector, render
from packhorse.worker.observe.process_stats import BY_ACTOR, DURATION, NO_THREADS
from packhorse.worker.runtime.stopping import StopRequest
from packhorse.worker.service import Service
from packhorse.worker.store import fleet as store
from packhorse.worker.version import __version__

logger = logging.getLogger("packhorse.exporter")

RETRY_SECONDS = 5.0
#: So many ports after the setting's are tried when that is taken.
NEXT_PORTS = 10
MOST_PORT = 65535


class EndpointServer(Service):
    """Binds, serves until it is stopped, and binds again later when that fails."""

    name = "endpoints"

    def __init__(self, settings: Settings, routes: dict[str, Route], fleet_stats: FleetStats) -> None:
        super().__init__()
        self._settings = settings
        self._routes = routes
        self._fleet_stats = fleet_stats
        self._said: str | None = None
        self._endpoints: Endpoints | None = None

    def stop(self) -> None:
        super().stop()
        if self._endpoints is not None:
            self._endpoints.stop()

    def run_once(self) -> float:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        try:
            endpoints = self._listening(host, port)
        except OSError as error:
            self._fleet_stats.failed("endpoints")
            if self._said != str(error):
                self._said = str(error)
                logger.warning(
                    "endpoints_failed host=%s port=%d error=%s: the worker goes on without metrics and probes",
                    host,
                    port,
                    error,
                )
            return RETRY_SECONDS
        self._said = None
        if endpoints.port not in (port, self._fleet_stats.cells[cells.EXPORTER_PORT]):
            logger.warning(
                "endpoints_moved host=%s port=%d taken_port=%d: that of the setting is taken",
                host,
                endpoints.port,
                port,
            )
        self._fleet_stats.cells[cells.EXPORTER_PORT] = endpoints.port
        logger.info("endpoints_started host=%s port=%d", host, endpoints.port)
        self._endpoints = endpoints
        if self.stopping:  # it may have been asked before there was something to stop
            endpoints.stop()
        endpoints.serve()
        return 0.0

    def _listening(self, host: str, asked: int) -> Endpoints:
        """On the port that an exporter before this one had, on the setting's, or on the next free one: both
        lines of a Procfile have one setting.

        Raises OSError of the first that is taken when all are, and any other OSError at once.
        """
        had = int(self._fleet_stats.cells[cells.EXPORTER_PORT])
        refused: OSError | None = None
        for port in [*([had] if had else []), *range(asked, min(asked + NEXT_PORTS, MOST_PORT) + 1)]:
            try:
                return Endpoints(host, port, self._routes, self._on_error)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                refused = refused or error
        assert refused is not None
        raise refused

    def _on_error(self, error: Exception) -> None:
        self._fleet_stats.failed("endpoints")
        logger.error("endpoint_failed error_class=%s error=%s", type(error).__name__, error)


class FleetReader(Service):
    """Keeps the fleet's numbers: asks for a count, reads what was counted, checks the schema; one connection
    of its own.
    """

    name = "fleet"
    max_backoff_seconds = 30.0
    reconnect_seconds = 10.0  # nobody waits for it

    def __init__(self, settings: Settings, fleet_stats: FleetStats) -> None:
        super().__init__()
        self._settings = settings
        self._fleet_stats = fleet_stats
        self._link = Link(partial(open_work, settings, "exporter"))
        self.noted = partial(fleet_stats.duties.note, "fleet")
        # statistics, monotonic time at which they were counted
        self._latest: tuple[dict[str, Any], float] | None = None
        self.schema_problem: str | None = None
        self.read_only_problem: str | None = None

    def latest(self) -> tuple[dict[str, Any], float] | None:
        """What was read last and its age in seconds; None before the first time."""
        found = self._latest
        return (found[0], time.monotonic() - found[1]) if found else None

    def run_once(self) -> float:
        try:
            with self._link.connection() as connection:
                self.schema_problem = _schema_problem(connection)
                self._note_read_only(store.read_only(connection))
                if self.read_only_problem is not None:
                    # a count could not be stored; a primary comes with a new connection
                    return self._settings.fleet_seconds
                before = time.time()
                apart = skew(before, store.clock(connection), time.time())
                store.refresh(connection, self._settings.fleet_seconds)
                found = store.statistics(connection)
        except StoreError:
            self._fleet_stats.failed("fleet")
            raise
        if found:
            self._latest = (found[0] | {"clock_skew_seconds": apart}, time.monotonic() - found[1])
        return self._settings.fleet_seconds * random.uniform(0.8, 1.0)

    def _note_read_only(self, problem: str | None) -> None:
        """Said once, where a child cannot say it when it starts."""
        if problem is not None and self.read_only_problem is None and not probes.started(self._fleet_stats):
            logger.error("database_read_only error=%s", problem)
        self.read_only_problem = problem

    def on_stop(self) -> None:
        self._link.close()


def _schema_problem(connection: DeadlineConnection) -> str | None:
    try:
        schema_version.check(connection)
    except SchemaMismatch as error:
        return str(error)
    return None


class Exporter:
    """What the routes answer. fleet: the service that keeps the numbers of the database, if any."""

    def __init__(self, settings: Settings, fleet_stats: FleetStats, fleet: FleetReader | None = None) -> None:
        self.settings = settings
        self.fleet_stats = fleet_stats
        self.fleet = fleet
        self.routes: dict[str, Route] = {
            "/metrics": self.metrics,
            "/livez": self.livez,
            "/readyz": self.readyz,
            "/startupz": self.startupz,
            "/version": self.version,
            "/scale": self.scale,
        }

    def metrics(self, accept: str) -> Answer:
        statistics = self.fleet.latest() if self.fleet else None
        body, content_type = render(FleetCollector(self.fleet_stats, __version__, statistics), accept)
        return Answer(body, content_type)

    def livez(self, _accept: str) -> Answer:
        return probe_answer(probes.alive(self.fleet_stats, time.monotonic(), self.settings.hang_seconds))

    def readyz(self, _accept: str) -> Answer:
        settings = self.settings
        lately = 2 * max(settings.heartbeat_seconds, settings.poll_seconds) + settings.call_deadline_seconds
        problems = probes.ready(self.fleet_stats, time.monotonic(), lately, settings.hang_seconds)
        if self.fleet:
            problems += [
                problem for problem in (self.fleet.schema_problem, self.fleet.read_only_problem) if problem
            ]
        return probe_answer(problems, probes.warnings(self.fleet_stats, time.monotonic()))

    def startupz(self, _accept: str) -> Answer:
        return probe_answer(probes.started(self.fleet_stats))

    def version(self, _accept: str) -> Answer:
        return json_answer({"name": "packhorse", "version": __version__, "python": platform.python_version()})

    def scale(self, _accept: str) -> Answer:
        """Workers like this one that would clear the backlog of its queues within
        scale_target_wait_seconds.
        """
        totals = self.fleet_stats.read()
        *counts, busy_seconds = totals.plain[DURATION:BY_ACTOR]
        mean = busy_seconds / sum(counts) if any(counts) else 1.0
        latest = self.fleet.latest() if self.fleet else None
        statistics = latest[0] if latest else {}
        # more workers would not start these either
        paused = {row["queue"] for row in statistics.get("queue_paused", []) if row["value"]}
        backlog = sum(
            row["value"]
            for row in statistics.get("queue_messages", [])
            if (row["queue"] in totals.queues or not totals.queues)
            and (row["state"] == "running" or (row["state"] == "pending" and row["queue"] not in paused))
        )
        # who has ordinary actors, too, is judged by the threads: they are what runs out
        each = (
            self.settings.coroutines
            if any(stats.states[NO_THREADS] for stats in self.fleet_stats.children)
            else self.settings.threads
        )
        slots, target = self.settings.processes * each, self.settings.scale_target_wait_seconds
        return json_answer(
            {
                "workers": max(math.ceil(backlog * mean / target / slots), 1 if backlog else 0),
                "backlog": backlog,
                "mean_seconds": round(mean, 6),
                "slots": slots,
                "target_wait_seconds": target,
                "age_seconds": round(latest[1], 3) if latest else None,
            },
            200 if latest else 503,
        )


def run_exporter(settings: Settings, fleet_stats: FleetStats) -> int:
    """The body of the process: serve until told to stop. Comes with TERM and INT blocked."""
    stop = StopRequest()
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its lines about selectors are nobody's events
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.ask())
    end_with_parent(fleet_stats.made_by)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    fleet = FleetReader(settings, fleet_stats) if settings.database_url is not None else None
    exporter = Exporter(settings, fleet_stats, fleet)
    EndpointServer(settings, exporter.routes, fleet_stats).start()
    if fleet is not None:
        fleet.start()
    while not stop.wait(1.0) and os.getppid() == fleet_stats.made_by:
        fleet_stats.cells[cells.EXPORTER_TICK] = time.monotonic()
    if fleet is not None:
        fleet.stop()
        fleet.wait(1)
    return EXIT_OK

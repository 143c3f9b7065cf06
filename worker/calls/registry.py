"""The services of this process: declared, found by name, watched together with the rest of the fleet (SPEC
W10, PLATFORM 8).

Declaring has no effect on the outside. The first call, or the start of a worker process, starts two threads:
reports.py and health.py. Without a database, or while it is away, breakers work by what this process sees.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from packhorse.worker import forks
from packhorse.worker.attempt.context import current_message
from packhorse.worker.calls.breakers import ServiceBreakers
from packhorse.worker.calls.declarations import ServiceDeclaration, ServiceOptions, declare, declared_in_toml
from packhorse.worker.calls.health import HealthChecks
from packhorse.worker.calls.remote import RemoteService
from packhorse.worker.calls.reports import BreakerReports, EndedProbe, end_probe
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.embedded import running_url
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import ConfigError, InvalidArgument, StoreError
from packhorse.worker.store import services as store
from packhorse.worker.suggest import did_you_mean, near_miss

logger = logging.getLogger("packhorse.services")

#: A call that asks whether it may probe waits no longer than this for the database.
PROBE_DEADLINE_SECONDS = 1.0
PROBE_CONNECTIONS = 2
STOP_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class BreakerStats:
    """One endpoint as this process knows it. state: closed, open or half_open; forced: by an operator.
    retry_seconds: until it may be probed.

    failures_in_row: of the fleet. healthy: None before the first health check, or without any.
    """

    service: str
    endpoint: str
    state: str
    forced: str | None
    healthy: bool | None
    failures_in_row: int
    retry_seconds: float | None


class ServiceRegistry:
    """Services by name; any thread. `default_registry()` is the one that `register_service` and worker
    processes use.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._url: str | None = None
        self._named: dict[str, frozenset[str]] = {}  # by actor
        self._services: dict[str, RemoteService] = {}  # only grows
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.started = False
        self._reports: BreakerReports | None = None
        self._health: HealthChecks | None = None
        self._probes: ConnectionPool | None = None
        self._toml_read = False
        self._alone = False

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: threads and connections are the parent's; its own start at its first call."""
        self._begin()
        for service in self._services.values():
            service.after_fork()

    # -- declaring ------------------------------------------------------------------------------------
    def register(self, name: str, url: str | None = None, **options: Unpack[ServiceOptions]) -> RemoteService:
        """Declare a service; the same declaration again is the same service. Has no effect on the outside.

        name: for `services=[…]` of actors and for people. url, or `endpoints`: at least one; texts without
        `://` are for clients of another kind than `request`. options: see ServiceOptions. Raises ConfigError
        with every problem; InvalidArgument when the name is declared already, and differently.
        """
        return self.add(declare(name, {"url": url} | options))

    def add(self, declaration: ServiceDeclaration) -> RemoteService:
        """As `register`, of a declaration. Raises InvalidArgument when its name is declared differently."""
        with self._lock:
            known = self._services.get(declaration.name)
            if known is not None:
                if known.declaration != declaration:
                    raise InvalidArgument(
                        f"service: {declaration.name!r} is declared already, and differently",
                        field="name",
                        hint="Declare it once, in code or in packhorse.toml.",
                    )
                return known
            breakers = ServiceBreakers(declaration, self._wake, lambda: self.away)
            service = self._services[declaration.name] = RemoteService(declaration, breakers, self)
        if self._reports is not None:
            self._reports.wake()
        return service

    def read_toml(self) -> None:
        """Add the services of packhorse.toml; once. Raises ConfigError with every problem of all of them."""
        if not self._toml_read:
            for declaration in declared_in_toml():
                self.add(declaration)
            self._toml_read = True

    def service(self, name: str) -> RemoteService:
        """The service of this name, declared in code or in packhorse.toml. Raises InvalidArgument with a near
        miss, ConfigError.
        """
        found = self._services.get(name)
        if found is None:
            self.read_toml()
            found = self._services.get(name)
        if found is None:
            hint = did_you_mean(
                name, self._services, f"Declared: {', '.join(sorted(self._services)) or 'none'}."
            )
            raise InvalidArgument(f"service: there is no service {name[:100]!r}", field="service", hint=hint)
        return found

    @property
    def names(self) -> list[str]:
        """What is declared so far, sorted."""
        return sorted(self._services)

    def named_by(self, actors: Mapping[str, Sequence[str]]) -> None:
        """Which services the actors name. Those that are not declared here are said, when anything is
        declared at all: a name may be of a scope alone."""
        self._named = {actor: frozenset(names) for actor, names in actors.items() if names}
        for actor, names in self._named.items():
            for name in sorted(names):
                if self._services and name not in self._services:
                    logger.warning(
                        "service_unknown service=%s actor=%s near=%s",
                        name,
                        actor,
                        near_miss(name, self._services),
                    )

    # -- looking --------------------------------------------------------------------------------------
    def discover_service(self, name: str) -> str:
        """The endpoint to call: healthy, its breaker closed, fewest failures, equal ones in turn.

        Raises InvalidArgument for an unknown name, CircuitOpen, ServiceFailed when none is healthy and none
        answers now.
        """
        return self.service(name).discover()

    def get_circuit_breaker_stats(self) -> list[BreakerStats]:
        """Every endpoint of every service of this process, by name."""
        found = []
        for name in self.names:
            breakers = self._services[name].breakers
            for breaker in breakers.breakers:
                seconds = (
                    None
                    if breaker.closed or breaker.forced == "open"
                    else max(0.0, breaker.retry_at - breakers.clock())
                )
                state = breaker.forced or breaker.state
                found.append(
                    BreakerStats(
                        name,
                        breaker.endpoint,
                        state,
                        breaker.forced,
                        breaker.healthy,
                        breaker.failing,
                        seconds,
                    )
                )
        return found

    def get_health_report(self) -> dict[str, str]:
        """Per service: "healthy"; "degraded" when an endpoint cannot be called or is unhealthy; "down" when
        none can be called.
        """
        report: dict[str, str] = {}
        for name in self.names:
            well = [
                breaker.closed and breaker.healthy is not False
                for breaker in self._services[name].breakers.breakers
            ]
            report[name] = "healthy" if all(well) else "degraded" if any(well) else "down"
        return report

    # -- life -----------------------------------------------------------------------------------------
    @property
    def away(self) -> bool:
        """Is the database out of reach, so that this process decides alone?"""
        return self._alone or (self._reports is not None and self._reports.away)

    def start(self, settings: Settings | None = None, url: str | None = None) -> None:
        """Start reports and health checks, when there is a service; a second call does nothing. settings:
        default those of the environment. url: of the embedded server.

        Raises ConfigError for services of packhorse.toml that are wrong.
        """
        self.read_toml()
        with self._lock:
            if self.started:
                return
            self._settings, self._url = settings or self._settings, url or self._url
            if not self._services:
                return
            self.started, self._alone = True, False
            try:
                self._settings = self._settings or load_settings()
                self._url = self._url or self._database_url(self._settings)
            except ConfigError:  # nothing to share with: a program without a queue
                self._alone = True
                logger.warning("breakers_alone services=%d", len(self._services))
                return
            self._probes = ConnectionPool(
                lambda: self._open("probes", deadline_seconds=PROBE_DEADLINE_SECONDS), PROBE_CONNECTIONS
            )
            self._reports = BreakerReports(self._all, lambda: self._open("breakers"))
            self._health = HealthChecks(self._all, lambda: self._open("health checks"))
            self._reports.start()
            self._health.start()

    def stop(self) -> None:
        """Tell the last counts and end the threads; at most a few seconds."""
        with self._lock:
            reports, health, probes = self._reports, self._health, self._probes
            self.started, self._reports, self._health, self._probes = False, None, None, None
        for thread in (reports, health):
            if thread is not None:
                thread.stop()
        for thread in (reports, health):
            if thread is not None:
                thread.wait(STOP_SECONDS)
        if probes is not None:
            probes.close()
        for service in self._services.values():
            service.close()

    def _all(self) -> list[ServiceBreakers]:
        return [service.breakers for service in list(self._services.values())]

    def _open(self, purpose: str, **options: Any) -> DeadlineConnection:
        assert self._settings is not None
        return open_work(self._settings, purpose, url=self._url, **options)

    @staticmethod
    def _database_url(settings: Settings) -> str:
        if settings.database_url is not None:
            return settings.database_url.get_secret_value()
        url = running_url(settings.data_dir)
        if url is None:
            raise ConfigError(["database_url: not set, and no embedded PostgreSQL of ours runs here"])
        return url

    # -- for calls ------------------------------------------------------------------------------------
    def _wake(self) -> None:
        reports = self._reports
        if reports is not None:
            reports.wake()

    def begin_probe(self, service: RemoteService, endpoint: str) -> int | None:
        """A token when this call may probe, None when not, 0 when the breaker is closed. Waits for the
        database a second at most.
        """
        probes = self._probes
        if self.away or probes is None:
            return None
        try:
            with probes.connection() as connection:
                return store.begin_probe(connection, service.name, endpoint)
        except StoreError:
            return None

    def end_probe(self, probe: EndedProbe) -> None:
        """Tell it before the handler goes on: the next message may be the next probe. Waits for the database
        a second at most.
        """
        probes, reports = self._probes, self._reports
        if probes is not None and not self.away:
            try:
                with probes.connection() as connection:
                    end_probe(connection, probe)
            except StoreError:
                pass
            else:
                self._wake()
                return
        if reports is not None:
            reports.probe_ended(probe)

    @property
    def reports(self) -> BreakerReports | None:
        return self._reports

    @staticmethod
    def inside_handler() -> bool:
        return current_message() is not None

    def gated(self, service: str) -> bool:
        """Does the actor of the running message name the service? Then no claim takes it while the circuit is
        open.
        """
        message = current_message()
        return message is not None and service in self._named.get(message.actor_name, ())


_default = ServiceRegistry()


def default_registry() -> ServiceRegistry:
    """The registry of this process."""
    return _default


def get_service(name: str) -> RemoteService:
    """The service of this name in the default registry, declared in code or in packhorse.toml.

    Raises InvalidArgument with a near miss, ConfigError.
    """
    return _default.service(name)


def register_service(name: str, url: str | None = None, **options: Unpack[ServiceOptions]) -> RemoteService:
    """As `ServiceRegistry.register`, in the default registry."""
    return _default.register(name, url, **options)


def initialize_service_registry(
    services: Sequence[Mapping[str, Any]], health_check_interval_ms: int = 30_000
) -> ServiceRegistry:
    """Declare many services, each a table of `register`'s arguments with its `name`, and start the default
    registry.

    health_check_interval_ms: of those that say nothing. Raises ConfigError with every problem of all of them.
    """
    problems, found = [], []
    for said in services:
        fields = {"health_check_interval_ms": health_check_interval_ms} | {
            key: value for key, value in said.items() if key != "name"
        }
        try:
            found.append(declare(said.get("name", ""), fields))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    for declaration in found:
        _default.add(declaration)
    _default.start()
    return _default

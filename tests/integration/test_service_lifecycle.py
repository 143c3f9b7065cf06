"""Every Service starts and stops many times, in any order, and leaves nothing: no thread, no connection, no
file descriptor (worker/service.py).
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from uuid import uuid4

import dramatiq
import pytest

import packhorse.schedules
import packhorse.worker
from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance.gates import Gates
from packhorse.schedules.maintenance.runway import Runway
from packhorse.schedules.timetable.scheduler import Scheduler
from packhorse.worker.amqp.consumer import AmqpConsumer
from packhorse.worker.amqp.depths import Depths
from packhorse.worker.amqp.ledger import Ledger
from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.attempt.step_store import StepWriter
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.calls.health import HealthChecks
from packhorse.worker.calls.reports import BreakerReports
from packhorse.worker.db.listen import Listener
from packhorse.worker.fleet.exporter import EndpointServer, FleetReader
from packhorse.worker.observe.endpoints import Answer
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.redis.wakeups import Subscriber
from packhorse.worker.runtime.fetcher import Fetcher
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.repeater import Repeater
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.timekeeper import Timekeeper
from packhorse.worker.service import Service
from tests.support.harness import quick_settings
from tests.support.http import free_port, get
from tests.support.postgres import ROLE, Database
from tests.support.redis import Redis
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

ROUNDS = 10


class Parts:
    """What services are made of: a broker with one actor, settings, a port, a Redis."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.redis = redis
        self.settings = quick_settings(database, metrics_port=free_port(), metrics_host="127.0.0.1")
        self.broker = PostgresBroker(settings=self.settings)
        dramatiq.actor(print, broker=self.broker, actor_name="effect")
        self.open = partial(self.broker.open_connection, "test")

    def process(self) -> WorkerProcess:
        return WorkerProcess(self.settings, RunningIds(4), broker=self.broker)

    def endpoints(self) -> EndpointServer:
        return EndpointServer(self.settings, {"/": lambda accept: Answer(b"here")}, FleetStats(1))


#: How each is made.
SERVICES: dict[type[Service], Callable[[Parts], Service]] = {
    Timekeeper: lambda parts: parts.process().timekeeper,
    Fetcher: lambda parts: parts.process().fetcher,
    Heartbeat: lambda parts: parts.process().heartbeat,
    Listener: lambda parts: Listener(parts.open, lambda queue: None, idle_seconds=0.05),
    Subscriber: lambda parts: Subscriber(parts.redis.url, lambda: "channel", lambda queue: None),
    Repeater: lambda parts: Repeater(parts.redis.url, str(uuid4()), lambda: "channel", parts.open),
    StepWriter: lambda parts: StepWriter(parts.open),
    BreakerReports: lambda parts: BreakerReports(lambda: [], parts.open),
    HealthChecks: lambda parts: HealthChecks(lambda: [], parts.open),
    EndpointServer: lambda parts: parts.endpoints(),
    FleetReader: lambda parts: FleetReader(parts.settings, FleetStats(1)),
    Scheduler: lambda parts: Scheduler(parts.open),
    Runway: lambda parts: Runway(parts.open, Plan((), (), (), Gates(), ())),
}


#: Those that need RabbitMQ, and who starts and ends them.
ELSEWHERE: dict[type[Service], str] = {
    AmqpConsumer: "tests/rabbit/test_amqp_worker.py",
    Ledger: "tests/rabbit/test_amqp_worker.py",
    Depths: "tests/rabbit/test_relay.py",
}


def begins(service: Service) -> list[float]:
    """The times at which its turns begin, and 0 when it has ended."""
    ticks: list[float] = []
    service.ticked = ticks.append
    return ticks


def works(service: Service, turns: list[Exception | None]) -> bool:
    """It has had a turn that went well; the turn of a server lasts until it stops."""
    if isinstance(service, EndpointServer):
        return get(service._settings.metrics_port, "/") == (200, "here")
    return None in turns


def started(service: Service) -> None:
    turns: list[Exception | None] = []
    service.noted = lambda error, began: turns.append(error)
    service.start()
    wait_until(lambda: works(service, turns))


def stopped(service: Service) -> None:
    service.stop()
    assert service.wait(10), "it does not end"


def run(service: Service) -> None:
    started(service)
    stopped(service)


def stop_at_once(service: Service) -> None:
    service.start()
    stopped(service)


def stop_while_it_begins(service: Service) -> None:
    ticks = begins(service)
    service.start()
    wait_until(lambda: ticks)
    stopped(service)
    assert ticks[-1] == 0.0


def start_and_stop_twice(service: Service) -> None:
    started(service)
    thread = service._thread
    service.start()
    assert service._thread is thread
    service.stop()
    stopped(service)
    assert service.wait(0)


def stop_and_never_start(service: Service) -> None:
    stopped(service)


def start_after_stop(service: Service) -> None:
    """It was asked to end before it began: it begins no turn."""
    turns: list[float] = []
    service.noted = lambda error, began: turns.append(began)
    service.stop()
    service.start()
    service.start()
    assert service.wait(10) and turns == []


def fail_and_go_on(service: Service) -> None:
    run_once, failures = service.run_once, [ValueError("a bug")]

    def failing() -> float:
        if failures:
            raise failures.pop()
        return run_once()

    service.run_once = failing  # type: ignore[method-assign]
    started(service)
    assert failures == []
    stopped(service)


LIVES = [
    run,
    stop_at_once,
    stop_while_it_begins,
    start_and_stop_twice,
    stop_and_never_start,
    start_after_stop,
    fail_and_go_on,
]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    redis = Redis(tmp_path_factory.mktemp("redis"))
    yield redis
    redis.kill()


@pytest.fixture
def parts(database: Database, redis: Redis) -> Iterator[Parts]:
    parts = Parts(database, redis)
    yield parts
    parts.broker.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def sessions_end(database: Database) -> None:
    """Those of the services: each ends a moment after its connection."""
    theirs = "select count(*) from pg_stat_activity where datname = current_database() and usename = %s"
    wait_until(lambda: database.value(theirs, ROLE) == 0)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize("kind", SERVICES, ids=lambda kind: kind.__name__)
def test_it_leaves_nothing_however_it_is_started_and_stopped(
    parts: Parts, database: Database, kind: type[Service], life: Callable[[Service], None]
) -> None:
    gc.collect()  # what earlier tests left is not ours
    first, *services = [SERVICES[kind](parts) for _ in range(ROUNDS + 1)]
    life(first)  # what is opened once in a process stays, as the test's own session does
    sessions_end(database)
    threads, open_before = threading.active_count(), descriptors()
    for service in services:
        life(service)
    assert threading.active_count() == threads, threading.enumerate()
    assert descriptors() == open_before
    sessions_end(database)


def test_every_service_of_ours_is_in_the_table() -> None:
    for package in (packhorse.worker, packhorse.schedules):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    assert set(SERVICES) | set(ELSEWHERE) == {
        kind for kind in subclasses(Service) if kind.__module__.startswith("packhorse.")
    }


def subclasses(kind: type) -> set[type]:
    return {kind for direct in kind.__subclasses__() for kind in {direct, *subclasses(direct)}}

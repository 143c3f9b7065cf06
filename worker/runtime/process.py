"""One worker process: builds its services, runs until told to stop, drains in the right order (SPEC W5, W6).

Stop claiming -> hand back what never started -> heartbeat while handlers finish -> at the drain limit
interrupt -> write the last outcomes -> stop heartbeats -> deregister. Exit codes are in worker/exits.py.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from packhorse.worker import forks
from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.middleware import Checked, TimeLimits
from packhorse.worker.attempt.middleware.retries import policies, services_of
from packhorse.worker.attempt.middleware.tracing import Tracing
from packhorse.worker.attempt.stages import WRITTEN
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.calls.registry import default_registry
from packhorse.worker.config import Settings
from packhorse.worker.db import schema_version
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import CancelInterrupt, LeaseInterrupt, SchemaMismatch, StoreUnavailable
from packhorse.worker.exits import EXIT_LEASE_LOST, EXIT_OK, EXIT_RECYCLED, EXIT_REPLACED
from packhorse.worker.observe.process_stats import (
    CONTACT_AT,
    COROUTINES,
    DRAINING,
    HURRY,
    ISOLATED_AT,
    ISOLATION,
    LISTENING,
    NO_THREADS,
    REGISTERED,
    THREADS,
    ProcessStats,
)
from packhorse.worker.runtime.actors import load_broker, warn_of_idle_queues
from packhorse.worker.runtime.asked import Asked
from packhorse.worker.runtime.claims import Kind
from packhorse.worker.runtime.coroutines import CoroutinePool
from packhorse.worker.runtime.executor import Executor
from packhorse.worker.runtime.feeder import Feeder
from packhorse.worker.runtime.fetcher import Fetcher
from packhorse.worker.runtime.hearing import Hearing
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.kinds import kinds_of
from packhorse.worker.runtime.last_handlers import LastHandlers
from packhorse.worker.runtime.last_outcomes import write_last
from packhorse.worker.runtime.memory import resident_mib
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.pool import HandlerPool
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.stopping import HOOKS_SECONDS, StopRequest, shutdown_hooks
from packhorse.worker.runtime.threads import ThreadPool
from packhorse.worker.runtime.timekeeper import Timekeeper
from packhorse.worker.states import Ended
from packhorse.worker.store import workers as store

logger = logging.getLogger("packhorse.process")

#: Threads switch this often when they compete; the fetcher must not wait long for its turn.
SWITCH_SECONDS = 0.001
STARTUP_RETRY_SECONDS = 3.0  # at most: processes that start together do not try together
#: A process for messages that run apart ends when it has had none for this long.
ISOLATION_IDLE_SECONDS = 5.0


class WorkerProcess:
    """The composition of one child. `stop` may be called from a signal handler: it only sets an event."""

    #: Where it publishes messages in place of running them; None: nowhere.
    forward: str | None = None
    #: The last outcomes, within so many seconds; False: it still holds something.
    _write_last: Callable[[float], bool]

    def __init__(
        self,
        settings: Settings,
        running: RunningIds,
        worker_id: Any = None,
        stats: ProcessStats | None = None,
        broker: PostgresBroker | None = None,
    ) -> None:
        self.settings = settings
        self.stats = stats or ProcessStats()
        self.id = worker_id or uuid4()
        self.broker = self._load_broker() if broker is None else broker
        default_registry().read_toml()
        for middleware in self.broker.middleware:
            if isinstance(middleware, Checked):
                middleware.check()
            if isinstance(middleware, TimeLimits):
                middleware.default_seconds, middleware.hard_seconds = (
                    settings.time_limit_seconds,
                    settings.hard_limit_seconds,
                )
        if settings.tracing and not any(
            isinstance(middleware, Tracing) for middleware in self.broker.middleware
        ):
            self.broker.add_middleware(Tracing())
        self.queues = self._own_queues()
        self.types = sorted(
            {
                *(
                    n
                    for n, a in self.broker.actors.items()
                    if a.queue_name in self.queues or not settings.queues
                ),
                *self.broker.aliases,
            }
        )
        executor = Executor(self.broker)
        self.pool = ThreadPool(
            executor,
            settings.threads,
            running,
            lambda message: self.fetcher.on_finished(message, starving=not self.pool.ready),
        )
        self.coroutines = CoroutinePool(
            executor,
            settings.coroutines,
            settings.async_connections,
            running,
            settings.threads,
            lambda message: self.fetcher.on_finished(message),
        )
        self._pools: list[HandlerPool] = [self.pool, self.coroutines]
        self.isolation = bool(self.stats.states[ISOLATION])
        meter = Meter(
            self.stats,
            self.queues,
            self.types,
            self._begun,
            lambda: self.heartbeat.rescued_total,
            self.broker.steps.totals,
            lambda: self.timekeeper.loop_blocked,
        )
        self.fetcher: Feeder = self._feeder(
            kinds_of(self.broker, self.types, self.pool, self.coroutines, settings.async_connections),
            executor.hooks,
            meter,
            running,
        )
        self.heartbeat = Heartbeat(
            self._open("heartbeat"),
            self.id,
            settings,
            self._leased,
            self._attend,
            self._totals,
            self._on_beat,
            self.stats.duties,
            self.stats.daemon_id,
        )
        self.heartbeat.on_asked = Asked(self.fetcher, self.heartbeat, self.stats, self.id)
        self.timekeeper = Timekeeper(self.pool, self.coroutines, self._on_stuck, self._on_lease_over)
        self.coroutines.on_busy = self.timekeeper.wake  # else it would see a blocked loop half a second late
        self.hearing = Hearing(
            self.broker, str(self.id), self._woken_by(), self.fetcher.on_wake, repeats=not self.isolation
        )
        self._watch()
        self.exit_code = EXIT_OK
        self._stop = StopRequest()
        self._handlers = LastHandlers(self.pool, self.coroutines, self.timekeeper)
        self.on_turn: Callable[[], None] = lambda: None  # called by the main thread about twice a second

    def _feeder(self, kinds: list[Kind], hooks: Hooks, meter: Meter, running: RunningIds) -> Feeder:
        """What feeds the pools and writes outcomes."""
        fetcher = Fetcher(
            self.broker,
            kinds,
            hooks,
            self._open("fetcher", times_in_utc=True),
            self.id,
            self.settings,
            self.queues,
            meter,
            running,
            isolation=self.isolation,
            on_isolated=self._on_isolated,
            forward=self.forward,
            on_forwarded=self._on_forwarded,
        )
        fetcher.claims.heard_by(
            lambda: self.hearing.listening,
            lambda: self.heartbeat.peers,
            lambda: self.heartbeat.before,
            lambda words: self.hearing.tell(words),
        )
        self._write_last = partial(write_last, fetcher, self._slot_of)
        return fetcher

    def _woken_by(self) -> Literal["listen", "redis", "poll"]:
        """How it hears of messages."""
        return self.settings.woken_by

    def _leased(self) -> list[ClaimedMessage]:
        """Whose leases the heartbeat renews."""
        return list(self.fetcher.in_flight)

    def _load_broker(self) -> PostgresBroker:
        return load_broker(self.settings)

    def _own_queues(self) -> list[str]:
        """From which queues it takes messages."""
        return sorted(self.settings.queues or {actor.queue_name for actor in self.broker.actors.values()})

    def _watch(self) -> None:
        """Let every loop write its ticks where the parent sees them."""
        stats = self.stats
        stats.states[THREADS] = self.settings.threads
        stats.states[COROUTINES] = self.settings.coroutines if self.coroutines.handlers else 0
        stats.states[NO_THREADS] = self.coroutines.handlers.keys() >= {*self.types}
        self.fetcher.ticked = partial(stats.tick, "fetcher")
        self.heartbeat.ticked = partial(stats.tick, "heartbeat")
        self.timekeeper.ticked = partial(stats.tick, "timekeeper")
        self.timekeeper.pool_ticked = partial(stats.tick, "pool")
        self.fetcher.noted = partial(stats.duties.note, "fetcher")
        self.timekeeper.noted = partial(stats.duties.note, "timekeeper")
        if self.hearing.service is not None:
            self.hearing.service.noted = partial(stats.duties.note, "listen")

    def _on_beat(self) -> None:
        """Heartbeat: the database answered."""
        self.stats.states[CONTACT_AT] = time.monotonic()
        self.stats.states[LISTENING] = self.hearing.listening

    def _open(self, purpose: str, **options: Any) -> Any:
        return lambda: self.broker.open_connection(purpose, **options)

    # -- life ---------------------------------------------------------------------------------------
    def stop(self) -> None:
        """Drain; told again it goes on draining. Safe in a signal handler. The parent says in the stats when
        it is to be quick.
        """
        self._stop.ask()

    def run(self) -> int:
        """Work until stopped; returns the exit code. Raises ConfigError, SchemaMismatch at the start."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self.broker.runtime = self
        if not self._wait_for_database():
            return EXIT_OK
        forks.contain(self.broker.emit_after, "process_boot")
        forks.contain(self.broker.emit_before, "worker_boot", self)
        self.heartbeat.start()
        self.timekeeper.start()
        self._start_services()
        for pool in self._pools:
            pool.start()
        self.fetcher.start()
        self.hearing.start()
        forks.contain(self.broker.emit_after, "worker_boot", self)
        self.on_turn()  # hooks may have set signal handlers
        self.stats.states[REGISTERED] = 1.0
        if self.broker.actors:
            warn_of_idle_queues(self.broker, self.queues, self.id)
        logger.info(
            "worker_started worker_id=%s pid=%d queues=%s threads=%d",
            self.id,
            os.getpid(),
            ",".join(self.queues),
            self.settings.threads,
        )
        while not self._stop.wait(0.5):
            self._check()
            self.on_turn()
        self.drain()
        return self.exit_code

    def _start_services(self) -> None:
        """Breakers and health checks of what the handlers call, when a service is declared."""
        default_registry().start(self.settings, self.broker.url)
        default_registry().named_by(
            {
                name: services_of(self.broker.get_actor(name))
                for name in (*self.broker.actors, *self.broker.aliases)
            }
        )

    def _wait_for_database(self) -> bool:
        """Register, waiting through any outage; False when stopped meanwhile. A wrong schema or role is
        fatal.
        """
        reported = False
        while not self._stop.asked:
            try:
                connection = self.broker.open_connection("start")
                try:
                    schema_version.check(connection)
                    with translated():
                        if not store.self_test(connection):
                            raise SchemaMismatch(
                                "row-level security hides the queue from this role: grant it packhorse_worker"
                            )
                        self.heartbeat.register(
                            connection,
                            self.queues,
                            self.types,
                            self.settings.threads,
                            self.isolation,
                            policies(self.broker),
                            self.forward,
                        )
                    return True
                finally:
                    connection.close()
            except StoreUnavailable as error:
                if not reported:
                    logger.warning("database_unavailable error=%s: waiting for it", error)
                    reported = True
                self._stop.wait(random.uniform(0.2, STARTUP_RETRY_SECONDS))
        return False

    def _check(self) -> None:
        """Recycling, and threads that are missing."""
        settings = self.settings
        done = sum(self.fetcher.in_flight.counts.values())
        if (settings.max_messages and done >= settings.max_messages) or (
            settings.max_memory_mib and resident_mib() > settings.max_memory_mib
        ):
            logger.info(
                "worker_recycled worker_id=%s messages=%d memory_mib=%d", self.id, done, resident_mib()
            )
            self.exit_code = EXIT_RECYCLED
            self._stop.ask()
        elif (
            self.isolation
            and not self.fetcher.in_flight
            and time.monotonic() - self.fetcher.busy_at > ISOLATION_IDLE_SECONDS
        ):
            self._stop.ask()
        elif self.pool.alive < len(self.pool.slots) or not self.coroutines.alive:
            logger.error("threads_missing worker_id=%s alive=%d", self.id, self.pool.alive)
            self.exit_code = EXIT_REPLACED
            self._stop.ask()

    def drain(self) -> None:
        """Finish in good order; see the module's first lines."""
        began = time.monotonic()
        shutdown_hooks(self.broker.emit_before, self)
        self.fetcher.draining = True
        self.stats.states[DRAINING] = 1.0
        self.heartbeat.state = "draining"
        for pool in self._pools:
            pool.stop()
        self.fetcher.wake()
        deadline = began + self.settings.drain_seconds
        while self._handlers.left() and time.monotonic() < deadline and not self.stats.states[HURRY]:
            time.sleep(0.02)
        if self._handlers.left() and (count := self._handlers.interrupt()):
            self.exit_code = self.exit_code or EXIT_REPLACED
            logger.warning("handlers_left count=%d worker_id=%s", count, self.id)
        if not self._write_last(self.settings.call_deadline_seconds):
            self.exit_code = self.exit_code or EXIT_REPLACED
        if not all([pool.wait(HOOKS_SECONDS) for pool in self._pools]):  # their hooks
            logger.warning("shutdown_hooks_left worker_id=%s seconds=%.0f", self.id, HOOKS_SECONDS)
        # before the heartbeat ends: a handler that would not end may still run
        shutdown_hooks(self.broker.emit_after, self)
        self.heartbeat.stop()
        self.heartbeat.wait(5)
        default_registry().stop()
        self._deregister()
        self.timekeeper.stop()
        self.hearing.stop()
        self.broker.close()
        logger.info(
            "worker_stopped worker_id=%s drain_seconds=%.2f exit_code=%d",
            self.id,
            time.monotonic() - began,
            self.exit_code,
        )

    def _deregister(self) -> None:
        try:
            connection = self.broker.open_connection("stop")
            try:
                store.deregister(connection, self.id)
            finally:
                connection.close()
        except Exception as error:  # no lease depends on the row; it is forgotten after ten minutes
            logger.info("deregister_failed error_class=%s", type(error).__name__)

    # -- called by services --------------------------------------------------------------------------
    def _totals(self) -> tuple[int, int]:
        counts = self.fetcher.in_flight.counts
        return counts.get(Ended.DONE, 0), counts.get(Ended.RETRY, 0) + counts.get(Ended.DEAD, 0)

    def _attend(self, message: ClaimedMessage, lease_held: bool) -> None:
        """Heartbeat: the lease of a held message is lost, or its cancellation was asked."""
        if not lease_held:
            message.lost = True
            self.fetcher.in_flight.drop(message)
        slot = self._slot_of(message)
        if slot is not None:
            slot.interrupt(message, CancelInterrupt if lease_held else LeaseInterrupt)

    def _slot_of(self, message: ClaimedMessage) -> Slot | None:
        return self.pool.slot_of(message) or self.coroutines.slot_of(message)

    def _begun(self) -> list[ClaimedMessage]:
        """Fetcher: messages whose handlers run, for the meter; of coroutines those that are new."""
        running = [message for slot in self.pool.slots if (message := slot.message) is not None]
        return running + self.coroutines.take_begun()

    def _on_forwarded(self, queues: Sequence[str]) -> None:
        """Fetcher of a relay: the queues that are forwarded now."""

    def _on_isolated(self) -> None:
        """Fetcher: messages wait that are to run apart. The parent starts a process for them."""
        self.stats.states[ISOLATED_AT] = time.monotonic()

    def _on_stuck(self, message: ClaimedMessage | None) -> None:
        """Timekeeper: the hard limit passed. The process is replaced (SPEC W4). Until it is gone the handler
        may do anything, so the lease goes on, and the parent writes the failed attempt afterwards (SPEC
        P2)."""
        slot = None if message is None else self._slot_of(message)
        if message is not None and (slot is None or not slot.give_up(message)):
            return
        if message is not None:
            self._handlers.stuck.add(message.lease_token)
        self.exit_code = EXIT_REPLACED
        self._stop.ask()

    def _on_lease_over(self) -> None:
        """Timekeeper: a handler runs on although somebody else may own its message: end now."""
        now = time.monotonic()
        lost = [
            message
            for message in self.fetcher.in_flight
            if message.stage not in WRITTEN and now >= message.lease_until
        ]
        self.fetcher.meter.fenced(lost)
        logger.error("worker_fenced worker_id=%s count=%d", self.id, len(lost))
        logging.shutdown()
        self.stats.end_with(EXIT_LEASE_LOST)
        os._exit(EXIT_LEASE_LOST)

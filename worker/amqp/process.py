"""One worker process that handles messages from RabbitMQ: that of worker/runtime/process.py, fed by the
consumer.

It needs Postgres at its start, and goes on without it: for the schema, for what queues say of retries, for
its row in `workers`, and for dead letters and notes (ledger.py).
"""

from __future__ import annotations

import logging
import random
import time
from typing import Any, Literal

import dramatiq

from packhorse.worker.amqp.connection import BrokerAway, blocking, declare_queues
from packhorse.worker.amqp.consumer import AmqpConsumer
from packhorse.worker.amqp.custody import Custody
from packhorse.worker.amqp.ledger import Ledger
from packhorse.worker.amqp.outcomes import QueuePolicy
from packhorse.worker.amqp.places import Places
from packhorse.worker.amqp.topology import exists
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.middleware.retries import Retries
from packhorse.worker.errors import ConfigError, StoreUnavailable, UndecodableMessage
from packhorse.worker.runtime.claims import Kind
from packhorse.worker.runtime.feeder import Feeder
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.outcome_log import OutcomeLog
from packhorse.worker.runtime.process import STARTUP_RETRY_SECONDS, WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds

logger = logging.getLogger("packhorse.amqp")

#: Messages of a queue that a process holds ahead of its handlers, by itself.
PER_THREAD, PER_COROUTINE = 2, 1


class AmqpProcess(WorkerProcess):
    """The composition of one child that works on RabbitMQ."""

    consumer: AmqpConsumer
    ledger: Ledger

    def _feeder(self, kinds: list[Kind], hooks: Hooks, meter: Meter, running: RunningIds) -> Feeder:
        settings = self.settings
        own = PER_THREAD * settings.threads
        if self.coroutines.handlers:
            own += PER_COROUTINE * settings.coroutines
        prefetch = min(settings.amqp_prefetch or own, 65535)
        consumer = self.consumer = AmqpConsumer(
            settings, self.id, meter, self._slot_of, prefetch, fixed=settings.amqp_prefetch is not None
        )
        self.ledger = Ledger(
            self._open("ledger"),
            self.id,
            self.broker,
            self.queues,
            self._on_policies,
            lambda scopes, counting: consumer.custody.resting.read(scopes, counting),
        )
        consumer.custody = Custody(
            self.id,
            Places(kinds, self.types),
            hooks,
            InFlight(meter, OutcomeLog(settings.log_outcomes, self.id), self.id, running),
            self.ledger,
            consumer.wake,
            self._retries_of,
            self._has_breaker,
            settings.unknown_type_seconds,
        )
        self._forwarded: set[str] = set()
        self._refused: set[str] = set()
        self._write_last = self._settle_last
        return consumer

    def _leased(self) -> list[ClaimedMessage]:
        return []  # RabbitMQ says who holds a message

    def _woken_by(self) -> Literal["poll"]:
        return "poll"  # RabbitMQ pushes; nothing is to be heard from the database

    def _retries_of(self, message: ClaimedMessage) -> dict[str, Any]:
        """What message, actor and middleware say of retries (Retries.policy); nothing of an actor that is not
        here.
        """
        try:
            message.decode()
            options = self.broker.get_actor(message.actor_name).options
        except (UndecodableMessage, dramatiq.ActorNotFound):
            return {}
        retries = next((m for m in self.broker.middleware if isinstance(m, Retries)), None)
        return {} if retries is None else retries.policy(options, message)

    def _has_breaker(self, message: ClaimedMessage) -> bool:
        """Has its actor a failure breaker?"""
        try:
            return self.broker.get_actor(message.actor_name).options.get("failure_breaker") is not None
        except dramatiq.ActorNotFound:
            return False

    # -- which queues --------------------------------------------------------------------------------
    def _wait_for_database(self) -> bool:
        """Also for RabbitMQ. Raises ConfigError for what would be so again."""
        reported = False
        while not self._stop.asked:
            try:
                self.ledger.read_policies()
                self.ledger.read_resting()
                self._find_queues()
                return super()._wait_for_database()
            except (StoreUnavailable, BrokerAway) as error:
                if not reported:
                    logger.warning("amqp_unavailable error=%s: waiting for it", error)
                    reported = True
                self._stop.wait(random.uniform(0.2, STARTUP_RETRY_SECONDS))
        return False

    def _find_queues(self) -> None:
        """Those that are forwarded, and those that were: RabbitMQ may still have some of their messages."""
        with blocking(self.settings, "start") as connection:
            left = {queue for queue in self.queues if exists(connection, queue)}
        found = sorted(self._forwarded | left)
        problems = [problem for queue in found for problem in self._problems(queue)]
        if problems:
            raise ConfigError(problems)
        declare_queues(self.settings, found, "start")
        self.consumer.queues = found
        if not found:
            logger.warning(
                "amqp_nothing_forwarded queues=%s: none of them is forwarded (docs/rabbitmq.md)",
                ",".join(self.queues),
            )

    def _problems(self, queue: str) -> list[str]:
        """What its actors ask for and cannot have."""
        return [
            f"actors: {name!r} is transactional, which needs its message in the same database; "
            f"leave the queue in Postgres (packhorse queue set {queue} forward=none), or make it an ordinary actor"
            for name, actor in sorted(self.broker.actors.items())
            if actor.queue_name == queue and actor.options.get("transactional")
        ]

    def _on_policies(self, policies: dict[str, QueuePolicy], forwarded: set[str]) -> None:
        """The ledger, now and then: also a queue that is forwarded since."""
        self.consumer.custody.policies = policies
        started = bool(self.consumer.custody.policies) and self.ledger.is_started
        new = sorted(forwarded - set(self.consumer.queues)) if started else []
        self._forwarded = forwarded
        for queue in new:
            problems = self._problems(queue)
            if problems and queue not in self._refused:
                self._refused.add(queue)
                logger.error("config_error %s", problems[0])
            if not problems:
                try:
                    declare_queues(self.settings, [queue], "forwarded")
                except (ConfigError, BrokerAway) as error:
                    logger.warning("amqp_queue_refused queue=%s error=%s: tried again", queue, error)
                else:
                    self.consumer.consume(queue)

    # -- life ----------------------------------------------------------------------------------------
    def _start_services(self) -> None:
        super()._start_services()
        self.ledger.start()

    def _settle_last(self, limit_seconds: float) -> bool:
        """What is finished is acknowledged, confirmed or buried; the rest goes back with the connection."""
        deadline = time.monotonic() + limit_seconds
        self.consumer.stop()
        ended = self.consumer.wait(limit_seconds + 6)
        while self.ledger.unwritten and time.monotonic() < deadline:
            time.sleep(0.02)  # the ledger tells nobody, and there is nothing else to do
        self.ledger.stop()
        self.ledger.wait(self.settings.call_deadline_seconds)
        return ended and not self.consumer.custody.running

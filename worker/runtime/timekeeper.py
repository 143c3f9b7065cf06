"""The timekeeper: soft limits by exception, hard limits by the end of the process, self-fencing (SPEC P2, W4).

Ticks every TICK_SECONDS while something runs. It never talks to the database, nor does what it calls: the leases of
all handlers are watched in this one thread, whatever the database does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dramatiq.middleware import TimeLimitExceeded

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.errors import LeaseInterrupt
from packhorse.worker.runtime.pool import HandlerPool
from packhorse.worker.service import Service

logger = logging.getLogger("packhorse.timekeeper")

TICK_SECONDS = 0.01
IDLE_TICK_SECONDS = 0.5
#: A handler is told this long before its lease ends unrenewed, the process ends when it is over.
FENCE_MARGIN_SECONDS = 2.0


class Timekeeper(Service):
    """on_stuck(message): a handler ignored its soft limit until the hard one; called once per message.
    on_lease_over(): a handler still runs although its lease is over; the process must end now."""

    name = "timekeeper"

    def __init__(self, pool: HandlerPool, on_stuck: Callable[[ClaimedMessage], None], on_lease_over: Callable[[], None]) -> None:
        super().__init__()
        self._pool = pool
        self._on_stuck = on_stuck
        self._on_lease_over = on_lease_over
        self._stuck: set[int] = set()
        self._started = 0
        #: Told the time whenever the pool makes progress, or has none to make.
        self.pool_ticked: Callable[[float], None] = lambda now: None

    def run_once(self) -> float:
        now = time.monotonic()
        busy = False
        for slot in self._pool.slots:
            message = slot.message
            if message is None:
                continue
            busy = True
            if message.finished:
                continue
            if message.deadline is not None and now >= message.deadline and slot.interrupt(message, TimeLimitExceeded):
                logger.warning("time_limit_exceeded message_id=%s actor=%s", message.id, message.actor_name)
            if message.hard_deadline is not None and now >= message.hard_deadline and message.id not in self._stuck:
                self._stuck.add(message.id)
                logger.error("hard_limit_exceeded message_id=%s actor=%s", message.id, message.actor_name)
                self._on_stuck(message)
            if now >= message.lease_until:
                logger.error("lease_over message_id=%s actor=%s", message.id, message.actor_name)
                self._on_lease_over()
            elif now >= message.lease_until - FENCE_MARGIN_SECONDS and slot.interrupt(message, LeaseInterrupt):
                logger.warning("lease_not_renewed message_id=%s actor=%s", message.id, message.actor_name)
        if busy:
            self._pool.wake_for_blocked(now)
        self._watch_pool(now)
        return TICK_SECONDS if busy else IDLE_TICK_SECONDS

    def on_stop(self) -> None:
        self.pool_ticked(0.0)

    def _watch_pool(self, now: float) -> None:
        """The pool is alive unless messages are ready, a thread is free, and none is begun."""
        if self._pool.ready and self._pool.running < len(self._pool.slots) and not self._pool.stopping:
            started = self._pool.started_total
            if started == self._started:
                return
            self._started = started
        self.pool_ticked(now)

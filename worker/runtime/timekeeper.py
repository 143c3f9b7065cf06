"""The timekeeper: soft limits by exception, hard limits by the end of the process, self-fencing (SPEC P2,
W4).

Ticks every TICK_SECONDS while something runs. It never talks to the database, nor does what it calls: the
leases of all handlers are watched in this one thread, whatever the database does.

It also sees a coroutine that blocks the event loop. While that lasts, the time of the other coroutines stands
still.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from dramatiq.middleware import TimeLimitExceeded

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import LeaseInterrupt
from packhorse.worker.runtime.coroutines import Blockage, CoroutinePool
from packhorse.worker.runtime.drive import CoroutineSlot
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.threads import ThreadPool
from packhorse.worker.service import Service

logger = logging.getLogger("packhorse.timekeeper")

TICK_SECONDS = 0.01
IDLE_TICK_SECONDS = 0.5
#: A handler is told this long before its lease ends unrenewed, the process ends when it is over.
FENCE_MARGIN_SECONDS = 2.0
#: A coroutine that goes on all the same is not driven any more when so much is left.
ABANDON_MARGIN_SECONDS = 1.0
#: A block of the event loop that no handler is known to cause ends the process after this.
NOBODYS_SECONDS = 60.0
#: All coroutines are looked at so often, at least.
SWEEP_SECONDS = 1.0
#: A coroutine that is to be abandoned and is not, since a hook of its message hangs, say, ends the process
#: after this.
ABANDONED_SECONDS = 1.0


class Timekeeper(Service):
    """on_stuck(message): a handler ignored its soft limit until the hard one; called once per message. None:
    nobody knows which. on_lease_over(): a handler still runs although its lease is over; the process must end
    now."""

    name = "timekeeper"

    def __init__(
        self,
        pool: ThreadPool,
        coroutines: CoroutinePool,
        on_stuck: Callable[[ClaimedMessage | None], None],
        on_lease_over: Callable[[], None],
    ) -> None:
        super().__init__()
        self._pool = pool
        self._coroutines = coroutines
        self._on_stuck = on_stuck
        self._on_lease_over = on_lease_over
        self._stuck: set[int] = set()  # lease tokens
        self._started = 0
        self._next_sweep = 0.0
        self._blockage: Blockage | None = None
        #: How often the event loop has been blocked, and for how many seconds; for the metrics.
        self.loop_blocked = (0, 0.0)
        #: Told the time whenever the pool makes progress, or has none to make.
        self.pool_ticked: Callable[[float], None] = lambda now: None

    @property
    def blocked(self) -> bool:
        """Is the event loop blocked now?"""
        return self._blockage is not None

    def run_once(self) -> float:
        now = time.monotonic()
        threads = self._pool.running_slots()
        for slot in threads:
            self._look_at(slot, now)
        self._watch_loop(now)
        if threads:
            self._pool.wake_for_blocked(now)
        self._watch_pool(now)
        return TICK_SECONDS if threads or self._coroutines.running else IDLE_TICK_SECONDS

    def _look_at(self, slot: Slot, now: float) -> float:
        """Do for one handler what is due; when to look again (monotonic)."""
        message = slot.message
        if message is None or message.stage is not AttemptStage.RUNNING:
            return math.inf
        if (
            message.deadline is not None
            and now >= message.deadline
            and slot.interrupt(message, TimeLimitExceeded)
        ):
            logger.warning("time_limit_exceeded message_id=%s actor=%s", message.id, message.actor_name)
        if (
            message.hard_deadline is not None
            and now >= message.hard_deadline
            and message.lease_token not in self._stuck
        ):
            self._past_hard_limit(slot, message, now)
        left = message.lease_until - now
        if left <= 0:
            logger.error("lease_over message_id=%s actor=%s", message.id, message.actor_name)
            self._on_lease_over()
        elif left <= FENCE_MARGIN_SECONDS and slot.interrupt(message, LeaseInterrupt):
            logger.warning("lease_not_renewed message_id=%s actor=%s", message.id, message.actor_name)
        elif left <= ABANDON_MARGIN_SECONDS and isinstance(slot, CoroutineSlot):
            slot.abandon(message)
        if left <= FENCE_MARGIN_SECONDS:
            return now + min(left, ABANDON_MARGIN_SECONDS / 2)
        limits = [at for at in (message.deadline, message.hard_deadline) if at is not None and at > now]
        return min([message.lease_until - FENCE_MARGIN_SECONDS, *limits])

    def _past_hard_limit(self, slot: Slot, message: ClaimedMessage, now: float) -> None:
        """A thread ends only with its process. A coroutine that waits for something is not resumed, and no
        process ends.
        """
        if isinstance(slot, CoroutineSlot) and not slot.abandoned and not self.blocked:
            slot.abandon(message)
            if message.hard_deadline is not None:
                message.hard_deadline = now + ABANDONED_SECONDS
            return
        self._stuck.add(message.lease_token)
        logger.error("hard_limit_exceeded message_id=%s actor=%s", message.id, message.actor_name)
        self._on_stuck(message)

    # -- coroutines ---------------------------------------------------------------------------------
    def _watch_loop(self, now: float) -> None:
        blockage = self._coroutines.blockage(now)
        if blockage is None:
            if self._blockage is not None:
                self._loop_goes_on(self._blockage, now)
            if now >= min(self._coroutines.earliest, self._next_sweep):
                self._sweep(now)
            return
        if self._blockage is None:
            message = blockage.slot.message if blockage.slot is not None else None
            logger.warning(
                "loop_blocked message_id=%s actor=%s seconds=%.2f stack=%s",
                message and message.id,
                message and message.actor_name,
                now - blockage.since,
                blockage.stack,
            )
            self.loop_blocked = (self.loop_blocked[0] + 1, self.loop_blocked[1])
        self._blockage = blockage
        slots = self._coroutines.running_slots()
        culprit = blockage.slot.message if blockage.slot is not None else None
        if culprit is not None and blockage.slot is not None and culprit.hard_deadline is not None:
            if now >= culprit.hard_deadline and culprit.lease_token not in self._stuck:
                self._past_hard_limit(blockage.slot, culprit, now)
        elif now - blockage.since >= NOBODYS_SECONDS:
            # a callback that no handler's task runs: there is nobody to blame
            self._on_stuck(None)
        for slot in slots:
            if slot.message is not None and now >= slot.message.lease_until:
                self._look_at(slot, now)

    def _loop_goes_on(self, blockage: Blockage, now: float) -> None:
        """The others lose nothing by what one of them did: their limits move."""
        lasted = now - blockage.since
        self._blockage = None
        self.loop_blocked = (self.loop_blocked[0], self.loop_blocked[1] + lasted)
        for slot in self._coroutines.running_slots():
            message = slot.message
            if message is not None and slot is not blockage.slot and slot.started_at < blockage.since:
                message.deadline = None if message.deadline is None else message.deadline + lasted
                message.hard_deadline = (
                    None if message.hard_deadline is None else message.hard_deadline + lasted
                )
        logger.info("loop_recovered seconds=%.2f", lasted)

    def _sweep(self, now: float) -> None:
        """Look at all coroutines; `earliest` is told by those that begin meanwhile, so it may be too late by
        SWEEP_SECONDS at most.
        """
        self._coroutines.earliest = math.inf
        earliest = min(
            (self._look_at(slot, now) for slot in self._coroutines.running_slots()), default=math.inf
        )
        self._coroutines.earliest = min(self._coroutines.earliest, max(earliest, now + TICK_SECONDS))
        self._next_sweep = now + SWEEP_SECONDS

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

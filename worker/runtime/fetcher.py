"""The fetcher: one thread, one connection, one statement: complete these, claim those (SPEC W2).

While the database works on one batch the pool runs the next. claims.py decides what to claim and when, pace.py how much
to hold and how large statements are. Messages that could not start for hold_seconds are handed back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.runtime.claims import Claims, Request
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.outcome_log import OutcomeLog
from packhorse.worker.runtime.outcome_writer import OutcomeWriter
from packhorse.worker.runtime.pace import Pace
from packhorse.worker.runtime.pool import HandlerPool
from packhorse.worker.runtime.slots import RunningIds
from packhorse.worker.service import Service
from packhorse.worker.states import Ended
from packhorse.worker.store import messages as store

logger = logging.getLogger("packhorse.fetcher")

SURVIVED_SECONDS = 1.0
LINGER_SECONDS = 0.005  # with a backlog: wait this long for a bigger batch of completions


class Fetcher(Service):
    """Feeds the pool and writes outcomes.

    held: what is claimed and not ended. finished: filled by handler threads. draining: no further claims. isolation: it
    claims messages that were there when two processes died, and no others. on_isolated: told that such messages wait.
    """

    name = "fetcher"
    max_backoff_seconds = 2.0

    def __init__(
        self,
        broker: PostgresBroker,
        pool: HandlerPool,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        settings: Settings,
        queues: list[str],
        types: list[str],
        meter: Meter,
        running: RunningIds,
        *,
        isolation: bool = False,
        on_isolated: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._broker = broker
        self._pool = pool
        self._link = Link(open_connection)
        self._settings = settings
        self.meter = meter
        self.in_flight = InFlight(meter, OutcomeLog(settings.log_outcomes, worker_id), worker_id, running)
        self._pace = Pace(len(pool.slots), settings.batch_size)
        self.claims = Claims(self._link, worker_id, settings, queues, types, meter, self._pace, isolation=isolation, on_isolated=on_isolated)
        self._writer = OutcomeWriter(self._link, broker, self.in_flight.refused)
        self.finished: deque[ClaimedMessage] = deque()
        # handed back by handler threads, not yet known to the database; nothing leaves before it is written
        self._done: list[ClaimedMessage] = []
        self._outcomes: deque[ClaimedMessage] = deque()
        self.draining = False
        self.isolation = isolation
        self.busy_at = time.monotonic()  # when it last held something
        self._threshold = 1  # the fetcher wants to be woken when this many are finished
        self._waiting = False

    # -- called from other threads -------------------------------------------------------------------
    def on_finished(self, message: ClaimedMessage) -> None:
        """A handler thread hands a message back."""
        self.finished.append(message)
        if self._waiting and (len(self.finished) >= self._threshold or not self._pool.ready):
            self._waiting = False
            self._wake.set()

    def on_wake(self, queue: str) -> None:
        """The listener heard that a queue has work ("" = any)."""
        if self.claims.woken(queue):
            self._wake.set()

    def urgent(self) -> bool:
        """Leases run while the database is away."""
        return bool(self.in_flight)

    # -- the loop -------------------------------------------------------------------------------------
    def run_once(self) -> float:
        self._collect()
        self._outcomes.extend(self._writer.due())
        while self._outcomes:
            self._write_outcomes()
            self.ticked(time.monotonic())
        self.claims.lost.hand_back(self.in_flight.ids())
        if self.draining:
            if self._pool.ready:
                self.release_unstarted()
        elif self._pool.ready:
            self._hand_back()
        limit = self._claim_limit()
        if not self.isolation:
            crowded = len(self._pool.ready) + self._pool.running >= len(self._pool.slots)
            self.claims.tend(free=limit > 0 and not crowded, going=self.draining or self.stopping)
        if limit > 0 and (self._done or self.claims.due()):
            self._exchange(self.claims.request(min(limit, self._pace.batch)))
        elif self._done:
            self._exchange(self.claims.completion())
        self.meter.publish()
        if self.in_flight:
            self.busy_at = time.monotonic()
        return self._pause(limit)

    @property
    def unwritten(self) -> int:
        """Messages that were handed back and whose outcome is still to be written; without those that the database refuses."""
        return len(self.finished) + len(self._done) + len(self._outcomes) + len(self._writer.waiting)

    def _collect(self) -> None:
        """Sort finished messages: those that are done, and those with another outcome."""
        while True:
            try:
                message = self.finished.popleft()
            except IndexError:
                break
            self._pace.finished()
            if not self.in_flight.owns(message):
                self.in_flight.lost(message)  # the heartbeat learnt that somebody else owns it
            elif message.finished:
                self.in_flight.done([message])
                self.claims.ended(message, gone=True)
                self._pool.hooks.after_ending(message)
            elif message.outcome is None and not message.failed:
                self._done.append(message)
            else:
                self._outcomes.append(message)

    def _write_outcomes(self) -> None:
        """Write some outcomes other than done. Raises StoreUnavailable: to be tried again."""
        batch = self._writer.next(self._outcomes)
        for message in batch:
            self._pool.hooks.before_ending(message)
        before = time.monotonic()
        try:
            answers = self._writer.write(batch)
        except StoreError as error:
            self.meter.duties.failing("complete", error, self.unwritten, before)
            raise
        if self._writer.refusing:
            self.meter.duties.failing("complete", self._writer.refused_sqlstate, self.unwritten + len(self._writer.refused), before)
        elif any(answers):
            self.meter.duties.well("complete")
        for message, ended in zip(batch, answers, strict=False):
            self._outcomes.popleft()
            if ended is not None:
                self._ended(message, ended)

    def _ended(self, message: ClaimedMessage, ended: Ended) -> None:
        message.failed = message.failed or ended is Ended.DEAD
        self.in_flight.ended(message, ended)
        self.claims.ended(message, gone=ended.gone)
        self._pool.hooks.after_ending(message)
        message._exception = None

    def _exchange(self, request: Request) -> None:
        """Complete what is done and claim what is asked for: one statement."""
        # completions go with the front only: what a slice behind it takes must be its own, and they can wait for a moment
        done = self._done[: self._pace.batch] if request.look.front else []
        hooks = self._pool.hooks
        if hooks.before_ack:
            for message in done:
                hooks.before_ending(message)
        before = time.monotonic()
        try:
            rows, hints = self.claims.run(done, request)
        except StoreError as error:
            if done and isinstance(error, StoreUnavailable):
                self.meter.duties.failing("complete", error, self.unwritten, before)
            if not isinstance(error, StoreUnavailable):
                # the database refuses the statement, or somebody has locked a row of it: write them one by one,
                # so that one at fault stops no other
                self._outcomes.extend(done)
                del self._done[: len(done)]
            raise
        after = time.monotonic()
        if done:
            self.meter.duties.well("complete")
        del self._done[: len(done)]
        if done:
            self._writer.written()
        self.in_flight.done(done, hints.lost)
        self.meter.publish()  # before the next message starts: it may be the one that kills the process
        claimed = self.claims.read(request, rows, hints, before, after)
        for message in claimed:
            self.in_flight.add(message)
        if claimed:
            self._pool.put(claimed)
        if hooks.after_ack:
            for message in done:
                hooks.after_ending(message)
        self.claims.learn(request, len(done), len(claimed), before, after)

    # -- how much to hold -----------------------------------------------------------------------------
    def _claim_limit(self) -> int:
        if self.draining or self.stopping:
            return 0
        self._pace.measure()
        # what is finished takes no slot: it leaves with the same statement
        room = max(0, self._pace.capacity() - len(self._pool.ready) - self._pool.running)
        if self.isolation:
            return min(room, 1) if self._all_survive() else 0
        if room and self._writer.refusing:  # work that nobody can take down should not go on for ever
            return max(0, room - self._writer.refusing) or int(self._writer.may_try())
        return room

    def _all_survive(self) -> bool:
        """Apart, messages start one by one: the next one when those that run have run for a while. So a process that one of them
        kills at once dies with that one alone, most often."""
        before = time.monotonic() - SURVIVED_SECONDS
        return not self._pool.ready and all(slot.message is None or slot.started_at < before for slot in self._pool.slots)

    def _hand_back(self) -> None:
        """Messages that wait for a thread for longer than hold_seconds are for others to take."""
        try:
            oldest = self._pool.ready[0]
        except IndexError:
            return
        if time.monotonic() - oldest.claimed_at > self._settings.hold_seconds and self._pool.running >= len(self._pool.slots):
            self.release_unstarted()

    def release_unstarted(self) -> int:
        """Give back everything that no thread has started; attempts are given back. Returns how many."""
        unstarted = []
        while True:
            try:
                unstarted.append(self._pool.ready.pop())
            except IndexError:
                break
        if unstarted:
            try:
                with self._link.connection() as connection:
                    store.release(connection, [m.id for m in unstarted], [m.lease_token for m in unstarted])
            except StoreError:
                self._pool.ready.extendleft(unstarted)
                raise
            for message in unstarted:
                self.in_flight.ended(message, Ended.RELEASED)
        return len(unstarted)

    def mark_refused(self) -> None:
        """The process stops: messages that are done, and whose completion the database refuses, are marked, so that nobody runs them
        again. Raises StoreError."""
        self._outcomes.extend(self._writer.refused)
        self._writer.refused.clear()
        while self._outcomes:
            self._write_outcomes()  # once more
        done = self._writer.refused_completions()
        if done:
            detail = f"SQLSTATE {self._writer.refused_sqlstate}: {self._writer.refused_text}"
            with self._link.connection() as connection:
                count = store.mark_completion_refused(connection, [m.id for m in done], [m.lease_token for m in done], detail)
            logger.error("completions_marked count=%d worker_id=%s sqlstate=%s", count, self.claims.worker_id, self._writer.refused_sqlstate)
            for message in done:
                self._writer.refused.remove(message)
                message.finished = True
                self.in_flight.drop(message)

    def _pause(self, limit: int) -> float:
        """Seconds until the next turn, unless somebody wakes the fetcher. limit: what this turn could claim."""
        if self._done or self._outcomes:
            return 0.0
        if self.draining or self.stopping:
            self._threshold = 1
            timeout = 0.05
        elif (self.claims.backlog or self.claims.attending) and self._pace.busy:
            self._threshold = self._pace.threshold()
            timeout = LINGER_SECONDS
            if limit and not self.claims.backlog:  # with the next look
                timeout = max(0.0, self.claims.next_turn - time.monotonic())
        else:
            self._threshold = 1
            # with no room only a message that ends helps, and that wakes the fetcher
            timeout = (
                0.25 if self.claims.backlog or not limit else max(0.0, min(self.claims.next_turn - time.monotonic(), self._settings.poll_seconds))
            )
            if self.claims.attending:
                timeout = max(0.0, min(timeout, self.claims.next_turn - time.monotonic() if limit else 0.01))
            if self.in_flight:
                timeout = min(timeout, 0.25)  # also for what waits to be written
        self._waiting = True
        if len(self.finished) >= self._threshold or (self.claims.signalled and limit):
            self._waiting = False
            return 0.0
        return timeout

    def on_stop(self) -> None:
        self._link.close()

"""The pump: one thread, one connection, one statement: complete these, claim those (SPEC W2).

While the database works on one batch the lane runs the next. What is claimed, and when, says claims.py, how much
is held and how large statements are pace.py. Messages that could not start for hold_seconds are handed back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from worker.db.connection import DeadlineConnection
from worker.db.pool import Link
from worker.errors import StoreError, StoreUnavailable
from worker.messages import ClaimedMessage
from worker.runtime.claims import Claims, Request
from worker.runtime.endings import EndingWriter
from worker.runtime.held import Held
from worker.runtime.lane import Lane
from worker.runtime.meter import Meter
from worker.runtime.outcomes import OutcomeLog
from worker.runtime.pace import Pace
from worker.runtime.suspects import SuspectTurn
from worker.service import Service
from worker.store import messages as store

logger = logging.getLogger("packhorse.pump")

LINGER_SECONDS = 0.005  # with a backlog: wait this long for a bigger batch of completions


class Pump(Service):
    """Feeds the lane and writes outcomes.

    held: what is claimed and not ended. finished: filled by handler threads. draining: no further claims.
    """

    name = "pump"
    max_backoff_seconds = 2.0

    def __init__(
        self,
        broker: Any,
        lane: Lane,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        settings: Any,
        queues: list[str],
        types: list[str],
        meter: Meter,
    ) -> None:
        super().__init__()
        self._broker = broker
        self._lane = lane
        self._link = Link(open_connection)
        self._settings = settings
        self.meter = meter
        self.held = Held(meter, OutcomeLog(settings.log_outcomes, worker_id), worker_id)
        self._pace = Pace(len(lane.slots), settings.batch_size)
        self._suspects = SuspectTurn()
        self.claims = Claims(self._link, worker_id, settings, queues, types, meter, self._pace, self._suspects)
        self._writer = EndingWriter(self._link, broker)
        self.finished: deque[ClaimedMessage] = deque()
        # handed back by handler threads, not yet known to the database; nothing leaves before it is written
        self._done: list[ClaimedMessage] = []
        self._endings: deque[ClaimedMessage] = deque()
        self.draining = False
        self._threshold = 1  # the pump wants to be woken when this many are finished
        self._waiting = False

    # -- called from other threads -------------------------------------------------------------------
    def on_finished(self, message: ClaimedMessage) -> None:
        """A handler thread hands a message back."""
        self.finished.append(message)
        if self._waiting and (len(self.finished) >= self._threshold or not self._lane.ready):
            self._waiting = False
            self._wake.set()

    def on_wake(self, queue: str) -> None:
        """The listener heard that a queue has work ("" = any)."""
        if self.claims.woken(queue):
            self._wake.set()

    def urgent(self) -> bool:
        """Leases run while the database is away."""
        return bool(self.held)

    # -- the loop -------------------------------------------------------------------------------------
    def run_once(self) -> float:
        self._collect()
        if (waited := self._writer.due()) is not None:
            self._endings.append(waited)
        while self._endings:
            self._write_endings()
            self.ticked(time.monotonic())
        self.claims.lost.hand_back(self.held.ids())
        if self.draining:
            if self._lane.ready or self._suspects.reserved is not None:
                self.release_unstarted()
        elif self._lane.ready:
            self._hand_back()
        limit = self._claim_limit()
        crowded = len(self._lane.ready) + self._lane.running >= len(self._lane.slots)
        self.claims.tend(free=limit > 0 and not crowded, going=self.draining or self.stopping)
        if limit > 0 and (self._done or self.claims.due() or self._suspects.due(not self.held)):
            alone = self._suspects.due(not self._lane.ready and self._lane.running == 0)
            self._exchange(self.claims.request(min(limit, self._pace.batch), suspects=alone))
        elif self._done:
            self._exchange(self.claims.completion())
        self.meter.publish()
        return self._pause(limit)

    @property
    def unwritten(self) -> int:
        """Messages that were handed back and whose outcome the database does not know yet."""
        return len(self.finished) + len(self._done) + len(self._endings) + len(self._writer.waiting)

    def _collect(self) -> None:
        """Sort finished messages: those that are done, and those with another ending."""
        while True:
            try:
                message = self.finished.popleft()
            except IndexError:
                break
            self._pace.finished()
            if not self.held.owns(message):
                self.held.lost(message)  # the heartbeat learnt that somebody else owns it
            elif message.settled:
                self.held.done([message])
                self.claims.ended(message, gone=True)
                self._lane.hooks.after_ending(message)
            elif message.ending is None and not message.failed:
                self._done.append(message)
            else:
                self._endings.append(message)

    def _write_endings(self) -> None:
        """Write some endings other than done. Raises StoreUnavailable: to be tried again."""
        batch = self._writer.next(self._endings)
        for message in batch:
            self._lane.hooks.before_ending(message)
        answers = self._writer.write(batch)
        for message, answer in zip(batch, answers, strict=False):
            self._endings.popleft()
            if answer is not None:
                self._ended(message, answer)

    def _ended(self, message: ClaimedMessage, answer: str) -> None:
        message.failed = message.failed or answer == "dead"
        self.held.ended(message, answer)
        self.claims.ended(message, gone=answer in ("done", "dead", "cancelled"))
        self._lane.hooks.after_ending(message)
        message._exception = None

    def _exchange(self, request: Request) -> None:
        """Complete what is done and claim what is asked for: one statement."""
        # completions go with the front only: what a slice behind it takes must be its own, and they can wait for a moment
        done = self._done[: self._pace.batch] if request.look.front else []
        hooks = self._lane.hooks
        if hooks.before_ack:
            for message in done:
                hooks.before_ending(message)
        before = time.monotonic()
        try:
            rows = self.claims.run(done, request)
        except StoreError as error:
            if not isinstance(error, StoreUnavailable):
                # the database refuses the statement, or somebody has locked a row of it: write them one by one,
                # so that one at fault stops no other
                self._endings.extend(done)
                del self._done[: len(done)]
            raise
        after = time.monotonic()
        del self._done[: len(done)]
        self.held.done(done, {row[1] for row in rows if row[0] == "lost"} if rows and rows[0][0] == "lost" else ())
        self.meter.publish()  # before the next message starts: it may be the one that kills the process
        claimed = self.claims.read(request, rows, before, after)
        self._take(claimed, request.suspects)
        if hooks.after_ack:
            for message in done:
                hooks.after_ending(message)
        self.claims.learn(request, len(done), len(claimed), before, after)

    def _take(self, claimed: list[ClaimedMessage], suspects: bool) -> None:
        """To the lane; a suspect waits until the process is empty."""
        for message in claimed:
            self.held.add(message)
        if suspects and claimed and (self._lane.running or self._lane.ready):
            self._suspects.reserved = claimed[0]
        elif claimed:
            self._lane.put(claimed)

    # -- how much to hold -----------------------------------------------------------------------------
    def _claim_limit(self) -> int:
        if self.draining or self.stopping:
            return 0
        if self._suspects.reserved is not None:
            self._start_reserved()
            return 0
        if self._suspects.running:
            if self.held:
                return 0  # it runs alone
            self._suspects.running = False
        if self._suspects.due(not self.held):
            return 1
        self._pace.measure()
        # what is finished takes no slot: it leaves with the same statement
        return max(0, self._pace.capacity() - len(self._lane.ready) - self._lane.running)

    def _hand_back(self) -> None:
        """Messages that wait for a thread for longer than hold_seconds are for others to take."""
        try:
            oldest = self._lane.ready[0]
        except IndexError:
            return
        if time.monotonic() - oldest.claimed_at > self._settings.hold_seconds and self._lane.running >= len(self._lane.slots):
            self.release_unstarted()

    def _start_reserved(self) -> None:
        """The process takes nothing else: once it is empty its suspect runs, alone."""
        message = self._suspects.reserved
        if message is not None and not self._lane.ready and self._lane.running == 0:
            self._suspects.reserved = None
            self._suspects.running = True
            self._lane.put([message])

    def release_unstarted(self) -> int:
        """Give back everything that no thread has started; attempts are given back. Returns how many."""
        unstarted = [] if self._suspects.reserved is None else [self._suspects.reserved]
        self._suspects.reserved = None
        while True:
            try:
                unstarted.append(self._lane.ready.pop())
            except IndexError:
                break
        if unstarted:
            try:
                with self._link.connection() as connection:
                    store.release(connection, [m.id for m in unstarted], [m.lease_token for m in unstarted])
            except StoreError:
                self._lane.ready.extendleft(unstarted)
                raise
            for message in unstarted:
                self.held.ended(message, "release")
        return len(unstarted)

    def _pause(self, limit: int) -> float:
        """Seconds until the next turn, unless somebody wakes the pump. limit: what this turn could claim."""
        if self._done or self._endings:
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
            # with no room only a message that ends helps, and that wakes the pump
            timeout = (
                0.25 if self.claims.backlog or not limit else max(0.0, min(self.claims.next_turn - time.monotonic(), self._settings.poll_seconds))
            )
            if self.claims.attending:
                timeout = max(0.0, min(timeout, self.claims.next_turn - time.monotonic() if limit else 0.01))
            if self.held:
                timeout = min(timeout, 0.02 if self._suspects.known else 0.25)  # also for what waits to be written
        self._waiting = True
        if len(self.finished) >= self._threshold or (self.claims.signalled and limit):
            self._waiting = False
            return 0.0
        return timeout

    def on_stop(self) -> None:
        self._link.close()

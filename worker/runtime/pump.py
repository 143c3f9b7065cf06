"""The pump: one thread, one connection, one statement: complete these, claim those (SPEC W2).

While the database works on one batch the lane runs the next. How much is held and how large statements
are says pace.py, where a claim looks says cursor.py. Messages that could not start for hold_seconds are
handed back.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from worker.db.connection import DeadlineConnection
from worker.db.pool import Link
from worker.errors import StoreError, StoreUnavailable
from worker.messages import ClaimedMessage
from worker.runtime.cursor import ALL, ClaimCursor, Look
from worker.runtime.endings import EndingWriter
from worker.runtime.held import Held
from worker.runtime.lane import Lane
from worker.runtime.lost_claims import LostClaims
from worker.runtime.meter import Meter
from worker.runtime.outcomes import OutcomeLog
from worker.runtime.pace import Pace
from worker.runtime.successors import Successors
from worker.runtime.suspects import SuspectTurn
from worker.runtime.wakeups import Wakeups
from worker.service import Service
from worker.store import messages as store

logger = logging.getLogger("packhorse.pump")

LINGER_SECONDS = 0.005  # with a backlog: wait this long for a bigger batch of completions
AGAIN_SECONDS = 0.05  # after a claim that took all there was: what will be due next is still to be asked


class Pump(Service):
    """Feeds the lane and writes outcomes.

    held: what is claimed and not ended. finished: filled by handler threads. draining: no further claims.
    last_claim: when a claim last succeeded, in seconds of the monotonic clock (readiness, SPEC O4).
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
        self._worker_id = worker_id
        self._settings = settings
        self._queues = queues
        self._types = types
        self.meter = meter
        self.held = Held(meter, OutcomeLog(settings.log_outcomes, worker_id), worker_id)
        self._lease = f"{settings.lease_seconds} seconds"
        self._cursor = ClaimCursor(queues)
        self._pace = Pace(len(lane.slots), settings.batch_size)
        self._wakeups = Wakeups(self._link, queues)
        self._successors = Successors()
        self._suspects = SuspectTurn()
        self._lost_claims = LostClaims(self._link, worker_id, settings.lease_seconds)
        self._writer = EndingWriter(self._link, broker)
        self.finished: deque[ClaimedMessage] = deque()
        # handed back by handler threads, not yet known to the database; nothing leaves before it is written
        self._done: list[ClaimedMessage] = []
        self._endings: deque[ClaimedMessage] = deque()
        self.draining = False
        self.last_claim = time.monotonic()
        self._claimed = 0  # how many the last statement claimed
        self._backlog = False
        self._threshold = 1  # the pump wants to be woken when this many are finished
        self._waiting = False
        self._next_poll = 0.0
        self._next_due = 0.0  # when the next message will be due, as far as the last claim knew
        self._signalled = True  # something may have become startable since the last claim looked at the front
        self._turn = 0  # which queue is looked at first

    # -- called from other threads -------------------------------------------------------------------
    def on_finished(self, message: ClaimedMessage) -> None:
        """A handler thread hands a message back."""
        self.finished.append(message)
        if self._waiting and (len(self.finished) >= self._threshold or not self._lane.ready):
            self._waiting = False
            self._wake.set()

    def on_wake(self, queue: str) -> None:
        """The listener heard that a queue has work ("" = any)."""
        if not queue or queue in self._queues:
            self._wakeups.woken()
            self._signalled = True
            self._wake.set()

    # -- the loop -------------------------------------------------------------------------------------
    def run_once(self) -> float:
        self._collect()
        if (waited := self._writer.due()) is not None:
            self._endings.append(waited)
        while self._endings:
            self._write_endings()
            self.ticked(time.monotonic())
        self._lost_claims.hand_back(self.held.ids())
        if self.draining:
            if self._lane.ready or self._suspects.reserved is not None:
                self.release_unstarted()
        elif self._lane.ready:
            self._hand_back()
        limit = self._claim_limit()
        now = time.monotonic()
        wanted = limit > 0 and (
            self._backlog
            or self._signalled
            or now >= self._next_poll
            or bool(self._done)
            or self._successors.unasked
            or self._suspects.due(not self.held)
        )
        if wanted:
            self._claim(min(limit, self._pace.batch))
        elif self._done:
            self._exchange(self._done[: self._pace.batch], 0, ALL, self._queues)
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
                self._successors.ended(message)
                self._signalled = True  # a limit may allow another one now
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
        self._signalled = True  # it may be due again soon, or have made room for another one
        if answer in ("done", "dead", "cancelled"):
            self._successors.ended(message)
        self._lane.hooks.after_ending(message)
        message._exception = None

    def _claim(self, limit: int) -> None:
        batch = self._pace.batch
        if self._suspects.due(not self._lane.ready and self._lane.running == 0):
            self._exchange(self._done[:batch], 1, ALL, self._queues, suspects=True)
            return
        # no queue is served before another: one with a backlog would starve those behind it
        self._turn = (self._turn + 1) % len(self._queues)
        queues = self._queues[self._turn :] + self._queues[: self._turn]
        look = self._cursor.look(queues)
        # completions go with the front only: what a slice takes must be its own, and they can wait for a moment
        self._exchange(self._done[:batch] if look.front else [], limit, look, queues)

    def _exchange(self, done: list[ClaimedMessage], limit: int, look: Look, queues: list[str], *, suspects: bool = False) -> None:
        """Complete `done`, claim up to `limit` from these queues in this order: one statement."""
        if self._lane.hooks.before_ack:
            for message in done:
                self._lane.hooks.before_ending(message)
        if limit and look.front and not suspects:
            self._signalled = False  # before the claim: what is signalled while it runs may not be in its snapshot
        before = time.monotonic()
        try:
            with self._link.connection() as connection:
                first = self._successors.first(connection, ask=limit > 0)
                rows = store.complete_and_claim(
                    connection,
                    [m.id for m in done],
                    [m.lease_token for m in done],
                    self._worker_id,
                    queues,
                    limit,
                    self._lease,
                    self._types,
                    look.since,
                    look.until,
                    suspects,
                    first,
                )
        except StoreError as error:
            self._signalled = True
            self._claim_failed(limit, before)
            if isinstance(error, StoreUnavailable):
                if limit:
                    self._lost_claims.suspected()
            else:
                # the database refuses the statement, or somebody has locked a row of it: write them one by one,
                # so that one at fault stops no other
                self._endings.extend(done)
                del self._done[: len(done)]
            raise
        except Exception:  # the answer was there and could not be read
            self._claim_failed(limit, before)
            if limit:
                self._lost_claims.suspected()
            raise
        after = time.monotonic()
        del self._done[: len(done)]
        self.held.done(done, {row[1] for row in rows if row[0] == "lost"} if rows and rows[0][0] == "lost" else ())
        self.meter.publish()  # before the next message starts: it may be the one that kills the process
        self._take(rows, before + self._settings.lease_seconds, after, look, suspects)
        if self._lane.hooks.after_ack:
            for message in done:
                self._lane.hooks.after_ending(message)
        self._pace.exchanged(len(done) + self._claimed, after - before)
        if limit:
            self.last_claim = after
            self.meter.claimed("hit" if self._claimed else "empty", after - before)
            self._after_claim(self._claimed, limit, look, after - before, suspects)

    def _claim_failed(self, limit: int, before: float) -> None:
        if limit:
            self.meter.claimed("error", time.monotonic() - before)
            self.meter.publish()

    def _take(self, rows: list[tuple[Any, ...]], lease_until: float, now: float, look: Look, suspects: bool) -> None:
        """Sort the answer: claimed messages to the lane, hints to the cursor."""
        claimed = []
        self._next_due = float("inf")
        self._successors.ids = []
        for row in rows:
            match row[0]:
                case "claimed":
                    message = ClaimedMessage(row, lease_until, now)
                    self.held.add(message)
                    claimed.append(message)
                case "promoted":
                    self._successors.ids.append(row[1])
                case "next":
                    self._next_due = now - row[15]  # its "age" is the time until then, negative
                case "suspect":
                    self._suspects.seen()
        self._claimed = len(claimed)
        if suspects and claimed and (self._lane.running or self._lane.ready):
            self._suspects.reserved = claimed[0]
        elif claimed:
            if not suspects:  # they have an index, and a place in time, of their own
                last: dict[tuple[str, int], str] = {}
                for message in claimed:
                    last[message.queue_name, message.priority] = message.run_at
                self._cursor.claimed(look, last, len(claimed))
            self._lane.put(claimed)

    def _after_claim(self, count: int, limit: int, look: Look, took: float, suspects: bool) -> None:
        """Learn from a claim whether there is a backlog, and when to look again."""
        if suspects:
            self._suspects.claimed(count)
            return
        now = time.monotonic()
        self._cursor.looked(look, took, exhausted=count < limit)
        self._backlog = count >= limit or (self._backlog and not look.front)
        if self._backlog:
            if self._pace.busy:
                self._wakeups.announce_busy()
            return
        if not look.whole:
            self._cursor.look_again_soon()
            self._next_poll = min(now + self._settings.poll_seconds, max(now, self._cursor.next_sweep))
        elif count:
            self._next_poll = now + AGAIN_SECONDS  # a handler that ends before is back with a claim anyway
        elif self._settings.listens and not self._wakeups.asleep():
            self._wakeups.announce_sleep()
            self._next_poll = 0.0  # once more: a producer may have committed before it saw the announcement
        else:
            self._next_poll = now + self._settings.poll_seconds * random.uniform(0.75, 1.0)
        self._next_poll = min(self._next_poll, self._next_due)

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
        elif self._backlog and self._pace.busy:
            self._threshold = self._pace.threshold()
            timeout = LINGER_SECONDS
        else:
            self._threshold = 1
            # with no room only a message that ends helps, and that wakes the pump
            timeout = 0.25 if self._backlog or not limit else max(0.0, min(self._next_poll - time.monotonic(), self._settings.poll_seconds))
            if self.held:
                timeout = min(timeout, 0.02 if self._suspects.known else 0.25)  # also for what waits to be written
        self._waiting = True
        if len(self.finished) >= self._threshold or (self._signalled and limit):
            self._waiting = False
            return 0.0
        return timeout

    def on_stop(self) -> None:
        self._link.close()

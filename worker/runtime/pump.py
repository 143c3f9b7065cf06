"""The pump: one thread, one connection, one statement: complete these, claim those (SPEC W2).

While the database works on one batch the lane runs the next. How many messages are held follows from
how fast they finish: what can start within HOLD_AHEAD_SECONDS, never less than one per thread, never
more than batch_size. Messages that could not start for hold_seconds are handed back.
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
from worker.errors import StoreConflict, StoreError, StoreUnavailable
from worker.messages import ClaimedMessage
from worker.runtime.cursor import ALL, ClaimCursor, Look
from worker.runtime.lane import Lane
from worker.runtime.meter import Meter
from worker.runtime.outcomes import OutcomeLog
from worker.service import Service
from worker.settle import settle, without_details
from worker.store import messages as store

logger = logging.getLogger("packhorse.pump")

HOLD_AHEAD_SECONDS = 0.05
LINGER_SECONDS = 0.005  # with a backlog: wait this long for a bigger batch of completions
WAKE_SECONDS = 30.0  # how long a request for NOTIFY stands
BUSY_REPEAT_SECONDS = 1.0
SUSPECT_REPEAT_SECONDS = 1.0
MAX_FIRST = 1000
BUSY_RATE = 500  # messages per second from which batches are worth waiting for
STATEMENT_SECONDS = 0.004  # no statement should take longer: it holds row locks, and others wait for the processor
MAX_BATCH = 1000
MIN_BATCH = 100  # below this the cost of a statement shows


class Pump(Service):
    """Feeds the lane and writes outcomes. `held` maps id -> message; changed by the pump's thread only.

    finished: filled by handler threads. draining: no further claims. counts: outcomes by name.
    """

    name = "pump"
    max_backoff_seconds = 2.0

    def __init__(
        self, broker: Any, lane: Lane, open_connection: Callable[[], DeadlineConnection], worker_id: UUID, settings: Any,
        queues: list[str], types: list[str], meter: Meter,
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
        self._outcomes = OutcomeLog(settings.log_outcomes, worker_id)
        self._lease = f"{settings.lease_seconds} seconds"
        self._cursor = ClaimCursor(queues)
        self.held: dict[int, ClaimedMessage] = {}
        self.finished: deque[ClaimedMessage] = deque()
        # handed back by handler threads, not yet known to the database; nothing leaves before it is written
        self._done: list[ClaimedMessage] = []
        self._endings: deque[ClaimedMessage] = deque()
        self.counts: dict[str, int] = {}
        self.draining = False
        self.last_claim = time.monotonic()  # of the last claim that succeeded (readiness, SPEC O4)
        self._rate = 0.0  # messages finished per second, smoothed
        self._rate_at = time.monotonic()
        self._rate_count = 0
        self._backlog = False
        self._batch = 200  # messages that one statement completes, and claims, at most
        self._threshold = 1  # the pump wants to be woken when this many are finished
        self._waiting = False
        self._next_poll = 0.0
        self._next_due = 0.0  # when the next message will be due, as far as the last claim knew
        self._signalled = True
        self._asleep_until = 0.0  # we asked for NOTIFY until then (monotonic)
        self._busy_at = 0.0
        self._first: list[int] = []  # messages whose conversation went on while we had no room
        self._suspects_since: float | None = None
        self._suspects_not_before = 0.0
        self._running_suspect = False

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
            self._signalled = True
            self._wake.set()

    # -- the loop -------------------------------------------------------------------------------------
    def run_once(self) -> float:
        self._collect()
        settled = bool(self._endings)
        while self._endings:
            self._settle_one(self._endings[0])
            self._endings.popleft()
            self.ticked(time.monotonic())
        if self._lane.ready and not self.draining:
            self._hand_back()
        limit = self._claim_limit()
        now = time.monotonic()
        wanted = limit > 0 and (
            self._backlog or self._signalled or now >= self._next_poll or bool(self._done) or settled or self._suspect_turn_waits()
        )
        if wanted:
            self._claim(min(limit, self._batch))
        elif self._done:
            self._exchange(self._done[: self._batch], 0, ALL)
        self.meter.publish()
        return self._pause()

    @property
    def unwritten(self) -> int:
        """Messages that were handed back and whose outcome the database does not know yet."""
        return len(self.finished) + len(self._done) + len(self._endings)

    def _collect(self) -> None:
        """Sort finished messages: those that are done, and those with another ending."""
        while True:
            try:
                message = self.finished.popleft()
            except IndexError:
                break
            self._rate_count += 1
            if message.id not in self.held or self.held[message.id] is not message:
                self._count("lost")  # the heartbeat learnt that somebody else owns it
                self.meter.finished(message, "lost")
                logger.info("lease_lost message_id=%s worker_id=%s", message.id, self._worker_id)
            elif message.settled:
                self._forget(message, "done")
                self.meter.done([message])
                self._outcomes.done([message])
                self._emit("ack", message)
            elif message.ending is None and not message.failed:
                self._done.append(message)
            else:
                self._endings.append(message)

    def _settle_one(self, message: ClaimedMessage) -> None:
        """Write one ending other than done. Raises StoreUnavailable or StoreConflict: to be tried again."""
        self._emit_before("nack" if message.failed else "ack", message)
        try:
            with self._link.connection() as connection:
                answer = settle(connection, message, self._broker)
        except (StoreUnavailable, StoreConflict):
            raise
        except StoreError as error:
            logger.warning("outcome_not_storable message_id=%s error_class=%s", message.id, type(error).__name__)
            answer = self._settle_plainly(message)
        message.failed = message.failed or answer == "dead"
        self._forget(message, answer)
        self.meter.finished(message, answer)
        self._outcomes.ended(message, answer)
        if answer == "lost":
            logger.info("lease_lost message_id=%s worker_id=%s", message.id, self._worker_id)
        self._emit("nack" if message.failed else "ack", message)
        message._exception = None

    def _settle_plainly(self, message: ClaimedMessage) -> str:
        """What should be written cannot be stored: write a fixed text instead; a lease that runs out is the last resort."""
        without_details(message)
        try:
            with self._link.connection() as connection:
                return settle(connection, message, self._broker)
        except (StoreUnavailable, StoreConflict):
            raise
        except StoreError as error:
            logger.error("outcome_refused message_id=%s error=%s: its lease will run out", message.id, error)
            return "unstorable"

    def _claim(self, limit: int) -> None:
        if self._suspect_turn():
            self._exchange(self._done[: self._batch], 1, ALL, suspects=True)
            return
        look = self._cursor.look(self._queues)
        # completions go with the front only: what a slice takes must be its own, and they can wait for a moment
        self._exchange(self._done[: self._batch] if look.front else [], limit, look)

    def _exchange(self, done: list[ClaimedMessage], limit: int, look: Look, *, suspects: bool = False) -> None:
        """Complete `done`, claim up to `limit`: one statement."""
        if self._lane.hooks.before_ack:
            for message in done:
                self._emit_before("ack", message)
        if limit and look.front:
            self._signalled = False  # before the claim: what is signalled while it runs may not be in its snapshot
        before = time.monotonic()
        try:
            with self._link.connection() as connection:
                rows = store.complete_and_claim(
                    connection, [m.id for m in done], [m.lease_token for m in done], self._worker_id, self._queues,
                    limit, self._lease, self._types, look.since, look.until, suspects, self._first[:MAX_FIRST],
                )
        except (StoreUnavailable, StoreConflict):
            self._signalled = True
            self._claim_failed(limit, before)
            raise
        except StoreError:
            self._signalled = True
            self._claim_failed(limit, before)
            # the database refuses the statement: write them one by one, so that one at fault stops no other
            self._endings.extend(done)
            del self._done[: len(done)]
            raise
        after = time.monotonic()
        self._completed(done, {row[1] for row in rows if row[0] == "lost"} if rows and rows[0][0] == "lost" else set())
        self._take(rows, before + self._settings.lease_seconds, after, look)
        if self._lane.hooks.after_ack:
            for message in done:
                self._emit("ack", message)
        self._size_batches(len(done) + self._claimed, after - before)
        if limit:
            self.last_claim = after
            self.meter.claimed("hit" if self._claimed else "empty", after - before)
            self._after_claim(self._claimed, limit, look, after - before, suspects)

    _claimed = 0  # how many the last statement claimed

    def _claim_failed(self, limit: int, before: float) -> None:
        if limit:
            self.meter.claimed("error", time.monotonic() - before)
            self.meter.publish()

    def _completed(self, done: list[ClaimedMessage], lost: set[int]) -> None:
        """The database has written these completions, but for those of `lost` (the first rows of its answer)."""
        del self._done[: len(done)]
        for message in done:
            self.held.pop(message.id, None)
            message.settled = True
        self._count("done", len(done) - len(lost))
        if lost:
            for message in [m for m in done if m.id in lost]:
                self._count("lost")
                self.meter.finished(message, "lost")
                logger.info("lease_lost message_id=%s worker_id=%s", message.id, self._worker_id)
            done = [m for m in done if m.id not in lost]
        self.meter.done(done)
        self._outcomes.done(done)
        self.meter.publish()  # before the next message starts: it may be the one that kills the process

    def _take(self, rows: list[tuple[Any, ...]], lease_until: float, now: float, look: Look) -> None:
        """Sort the answer: claimed messages to the lane, hints to the cursor."""
        claimed = []
        self._next_due = float("inf")
        self._first = []
        for row in rows:
            match row[0]:
                case "claimed":
                    message = ClaimedMessage(row, lease_until, now)
                    self.held[message.id] = message
                    claimed.append(message)
                case "promoted":
                    self._first.append(row[1])
                case "next":
                    self._next_due = now - row[15]  # its "age" is the time until then, negative
                case "suspect":
                    if self._suspects_since is None and now >= self._suspects_not_before:
                        self._suspects_since = now
        self._claimed = len(claimed)
        if claimed:
            last: dict[tuple[str, int], str] = {}
            for message in claimed:
                last[message.queue_name, message.priority] = message.run_at
            self._cursor.claimed(look, last, len(claimed))
            self._lane.put(claimed)

    def _after_claim(self, count: int, limit: int, look: Look, took: float, suspects: bool) -> None:
        """Learn from a claim whether there is a backlog, and when to look again."""
        now = time.monotonic()
        if suspects:
            self._running_suspect = count > 0
            self._suspects_since = None
            if not count:  # paused, limited or behind its conversation: do not ask again at once
                self._suspects_not_before = now + SUSPECT_REPEAT_SECONDS
            return
        self._cursor.looked(look, took, exhausted=count < limit)
        self._backlog = count >= limit or (self._backlog and not look.front)
        if self._backlog:
            if now - self._busy_at > BUSY_REPEAT_SECONDS and self._rate > BUSY_RATE:
                self._announce_busy(now)
            return
        if not look.whole:
            self._cursor.look_again_soon()
            self._next_poll = min(now + self._settings.poll_seconds, max(now, self._cursor.next_sweep))
        elif count == 0 and now + WAKE_SECONDS / 2 > self._asleep_until and self._settings.listen:
            self._announce_sleep(now)
            self._next_poll = 0.0  # once more: a producer may have committed before it saw the announcement
        else:
            self._next_poll = now + self._settings.poll_seconds * random.uniform(0.75, 1.0)
        self._next_poll = min(self._next_poll, self._next_due)

    def _announce_sleep(self, now: float) -> None:
        with self._link.connection() as connection:
            store.announce_sleep(connection, self._queues, WAKE_SECONDS)
        self._asleep_until = now + WAKE_SECONDS
        self._busy_at = 0.0

    def _announce_busy(self, now: float) -> None:
        with self._link.connection() as connection:
            for queue in self._queues:
                store.announce_busy(connection, queue)
        self._busy_at = now
        self._asleep_until = 0.0

    # -- how much to hold -----------------------------------------------------------------------------
    def _size_batches(self, count: int, took: float) -> None:
        """Batches that fit into STATEMENT_SECONDS, by what statements cost lately; small ones say little."""
        if count >= MIN_BATCH:
            fitting = STATEMENT_SECONDS / took * count / 2  # it completes as many as it claims
            self._batch = int(min(MAX_BATCH, max(MIN_BATCH, 0.8 * self._batch + 0.2 * fitting)))

    def _claim_limit(self) -> int:
        if self.draining or self.stopping:
            return 0
        if self._running_suspect:
            if self.held:
                return 0  # it runs alone
            self._running_suspect = False
        if self._suspect_turn_waits():
            return 1 if not self.held else 0
        now = time.monotonic()
        if now - self._rate_at >= 0.02:
            rate = self._rate_count / (now - self._rate_at)
            self._rate = rate if rate > self._rate else 0.7 * self._rate + 0.3 * rate
            self._rate_at, self._rate_count = now, 0
        # what is finished takes no slot: it leaves with the same statement
        return max(0, self._capacity() - len(self._lane.ready) - self._lane.running)

    def _capacity(self) -> int:
        """How many messages can start within HOLD_AHEAD_SECONDS; at least one per thread."""
        return min(int(self._settings.batch_size), len(self._lane.slots) + int(self._rate * HOLD_AHEAD_SECONDS))

    def _suspect_turn_waits(self) -> bool:
        """Suspects get their turn when the process happens to be empty, or after five seconds."""
        return self._suspects_since is not None and (
            not self.held or time.monotonic() - self._suspects_since > 5.0
        )

    def _suspect_turn(self) -> bool:
        return self._suspects_since is not None and not self._lane.ready and self._lane.running == 0

    def _hand_back(self) -> None:
        """Messages that wait for a thread for longer than hold_seconds are for others to take."""
        try:
            oldest = self._lane.ready[0]
        except IndexError:
            return
        if time.monotonic() - oldest.claimed_at > self._settings.hold_seconds and self._lane.running >= len(self._lane.slots):
            self.release_unstarted()

    def release_unstarted(self) -> int:
        """Give back everything that no thread has started; attempts are given back. Returns how many."""
        unstarted = []
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
                self._forget(message, "release")
                self.meter.finished(message, "release")
                self._outcomes.ended(message, "release")
        return len(unstarted)

    def _pause(self) -> float:
        """Seconds until the next turn, unless somebody wakes the pump."""
        if self._done or self._endings:
            return 0.0
        if self.draining or self.stopping:
            self._threshold = 1
            timeout = 0.05
        elif self._backlog and self._rate > BUSY_RATE:
            self._threshold = max(1, min(self._capacity() // 3, self._batch))
            timeout = LINGER_SECONDS
        else:
            self._threshold = 1
            timeout = 0.25 if self._backlog else max(0.0, min(self._next_poll - time.monotonic(), self._settings.poll_seconds))
            if self.held:
                timeout = min(timeout, 0.25) if self._suspects_since is None else min(timeout, 0.02)
        self._waiting = True
        if len(self.finished) >= self._threshold or self._signalled:
            self._waiting = False
            return 0.0
        return timeout

    # -- bookkeeping ----------------------------------------------------------------------------------
    def _forget(self, message: ClaimedMessage, outcome: str) -> None:
        self.held.pop(message.id, None)
        message.settled = True
        self._count(outcome)

    def _count(self, outcome: str, by: int = 1) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + by

    def _emit_before(self, verb: str, message: ClaimedMessage) -> None:
        hooks = self._lane.hooks
        try:
            hooks.run_before(hooks.before_nack if verb == "nack" else hooks.before_ack, message)
        except Exception:
            logger.critical("hook_failed hook=before_%s", verb, exc_info=True)

    def _emit(self, verb: str, message: ClaimedMessage) -> None:
        hooks = self._lane.hooks
        hooks.run_after(hooks.after_nack if verb == "nack" else hooks.after_ack, message)

    def on_stop(self) -> None:
        self._link.close()

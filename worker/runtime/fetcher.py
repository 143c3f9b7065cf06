"""The fetcher: one thread, one connection, one statement: complete these, claim those (SPEC W2).

While the database works on one batch the pools run the next. claims.py decides what to claim and when,
pace.py how much to hold and how large statements are. Messages that could not start for hold_seconds are
handed back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.runtime.claims import Claims, Intake, Kind, Request
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.outcome_log import OutcomeLog
from packhorse.worker.runtime.outcome_writer import OutcomeWriter
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.service import Service
from packhorse.worker.states import Ended
from packhorse.worker.store import messages as store

logger = logging.getLogger("packhorse.fetcher")

SURVIVED_SECONDS = 1.0
#: When thousands fail together, what they do not hold up is claimed after each so many written outcomes.
OUTCOMES_IN_A_TURN = 100
LINGER_SECONDS = 0.005  # with a backlog: wait this long for a bigger batch of completions


class Fetcher(Service):
    """Feeds the pools and writes outcomes.

    kinds: what each pool runs. finished: filled by the pools. draining: no further claims. quiet: none for
    now. isolation: it claims messages that were there when two processes died, and no others. on_isolated:
    told that such messages wait. forward, on_forwarded: of a relay, see Claims.
    """

    name = "fetcher"
    max_backoff_seconds = 2.0
    quiet = False

    def __init__(
        self,
        broker: PostgresBroker,
        kinds: list[Kind],
        hooks: Hooks,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        settings: Settings,
        queues: list[str],
        meter: Meter,
        running: RunningIds,
        *,
        isolation: bool = False,
        on_isolated: Callable[[], None] = lambda: None,
        forward: str | None = None,
        on_forwarded: Callable[[Sequence[str]], None] = lambda queues: None,
    ) -> None:
        super().__init__()
        self._broker = broker
        self._hooks = hooks
        self._pools = list({id(kind.pool): kind.pool for kind in kinds}.values())
        self._link = Link(open_connection)
        self._settings = settings
        self.meter = meter
        self.in_flight = InFlight(meter, OutcomeLog(settings.log_outcomes, worker_id), worker_id, running)
        self.claims = Claims(
            self._link,
            worker_id,
            settings,
            queues,
            kinds,
            meter,
            isolation=isolation,
            on_isolated=on_isolated,
            forward=forward,
            on_forwarded=on_forwarded,
        )
        self._writer = OutcomeWriter(self._link, broker, self.in_flight.refused)
        self.finished: deque[ClaimedMessage] = deque()
        # handed back by the pools, not yet known to the database (like the `done` of an intake); nothing
        # leaves before it is written
        self._outcomes: deque[ClaimedMessage] = deque()
        self.draining = False
        self.isolation = isolation
        self.busy_at = time.monotonic()  # when it last held something
        self._threshold = 1  # the fetcher wants to be woken when this many are finished
        self._waiting = False

    # -- called from other threads -------------------------------------------------------------------
    def on_finished(self, message: ClaimedMessage, *, starving: bool = False) -> None:
        """A pool hands a message back. starving: it has nothing else to begin."""
        self.finished.append(message)
        if self._waiting and (starving or len(self.finished) >= self._threshold):
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
        self._is_to_be_written(self._writer.due())
        left = max(0, len(self._outcomes) - OUTCOMES_IN_A_TURN)
        while len(self._outcomes) > left:
            self._write_outcomes()
            self.ticked(time.monotonic())
        self.claims.lost.hand_back(self.in_flight.ids())
        if self.draining or self.quiet:
            self.release_unstarted()
        else:
            self._hand_back()
        if not self.isolation:
            self._tend()
        could_claim = [intake for intake in self.claims.in_turn() if self._serve(intake)]
        self.meter.publish()
        if self.in_flight:
            self.busy_at = time.monotonic()
        return self._pause(could_claim)

    def _tend(self) -> None:
        going = self.draining or self.stopping or self.quiet  # a quiet one watches no queue for others
        full = [intake for intake in self.claims.intakes if going or intake.full()]
        self.claims.tend(free=not full, fast=all(intake.fast for intake in full), going=going)

    def _serve(self, intake: Intake) -> bool:
        """Complete and claim for one intake, when there is reason to; whether it had room."""
        limit = self._claim_limit(intake)
        if limit > 0 and (intake.done or intake.due()):
            self._exchange(intake, intake.request(min(limit, intake.pace.batch)))
        elif intake.done:
            self._exchange(intake, intake.completion())
        return limit > 0

    @property
    def unwritten(self) -> int:
        """Messages that were handed back and whose outcome is still to be written; without those that the
        database refuses.
        """
        done = sum(len(intake.done) for intake in self.claims.intakes)
        return len(self.finished) + done + len(self._outcomes) + len(self._writer.waiting)

    def _collect(self) -> None:
        """Sort finished messages: those that are done, and those with another outcome."""
        intakes = self.claims.intakes
        only = intakes[0] if len(intakes) == 1 else None
        while True:
            try:
                message = self.finished.popleft()
            except IndexError:
                break
            intake = only or self.claims.intake_of(message)
            intake.held -= 1
            intake.pace.finished()
            intake.ended(message.ran_seconds)
            if message.stage is AttemptStage.ENDED:  # its transaction was committed
                self.in_flight.done([message])
                self.claims.ended(message, gone=True)
                self._hooks.after_ending(message)
            elif not self.in_flight.owns(message):
                self.in_flight.lost(message)  # the heartbeat learnt that somebody else owns it
            elif message.outcome is None and not message.failed:
                intake.done.append(message)
            else:
                self._is_to_be_written([message])

    def _is_to_be_written(self, messages: Iterable[ClaimedMessage]) -> None:
        """Their outcome; until then each takes the room of one that runs."""
        for message in messages:
            self._outcomes.append(message)
            self.claims.intake_of(message).unwritten += 1

    def _write_outcomes(self) -> None:
        """Write some outcomes other than done. Raises StoreUnavailable: to be tried again."""
        batch = self._writer.next(self._outcomes)
        for message in batch:
            self._hooks.before_ending(message)
        before = time.monotonic()
        try:
            answers = self._writer.write(batch)
        except StoreError as error:
            self.meter.duties.failing("complete", error, self.unwritten, before)
            raise
        if self._writer.refusing:
            self.meter.duties.failing(
                "complete", self._writer.refused_sqlstate, self.unwritten + len(self._writer.refused), before
            )
        elif any(answers):
            self.meter.duties.well("complete")
        for message, ended in zip(batch, answers, strict=False):
            self._outcomes.popleft()
            self.claims.intake_of(message).unwritten -= 1
            if ended is not None:
                self._ended(message, ended)

    def _ended(self, message: ClaimedMessage, ended: Ended) -> None:
        # a failure breaker may let the last attempt rest
        message.failed = ended is Ended.DEAD or (message.failed and ended is not Ended.SNOOZE)
        self.in_flight.ended(message, ended)
        self.claims.ended(message, gone=ended.gone)
        if ended is Ended.RETRY:
            self._hooks.delayed(message)
        self._hooks.after_ending(message)
        message._exception = None

    def _exchange(self, intake: Intake, request: Request) -> None:
        """Complete what is done and claim what is asked for: one statement."""
        # completions go with the front only: what a slice behind it takes must be its own, and they can wait
        # for a moment
        done = intake.done[: intake.pace.batch] if request.look.front else []
        hooks = self._hooks
        if hooks.before_ack:
            for message in done:
                hooks.before_ending(message)
        before = time.monotonic()
        try:
            rows, hints = intake.run(done, request)
        except StoreError as error:
            if done and isinstance(error, StoreUnavailable):
                self.meter.duties.failing("complete", error, self.unwritten, before)
            if not isinstance(error, StoreUnavailable):
                # the database refuses the statement, or somebody has locked a row of it: write them one by
                # one, so that one at fault stops no other
                self._is_to_be_written(done)
                del intake.done[: len(done)]
            raise
        after = time.monotonic()
        if done:
            self.meter.duties.well("complete")
        del intake.done[: len(done)]
        if done:
            self._writer.written()
        self.in_flight.done(done, hints.lost)
        self.meter.publish()  # before the next message starts: it may be the one that kills the process
        self.claims.completed_by(intake, done)
        claimed = intake.read(request, rows, hints, before, after)
        for message in claimed:
            self.in_flight.add(message)
        if claimed:
            intake.pool.put(claimed)
        if hooks.after_ack:
            for message in done:
                hooks.after_ending(message)
        intake.learn(request, len(done), len(claimed), before, after)

    # -- how much to hold -----------------------------------------------------------------------------
    def _claim_limit(self, intake: Intake) -> int:
        if self.draining or self.stopping or self.quiet:
            return 0
        intake.pace.measure()
        room = intake.room()
        if self.isolation:
            return min(room, 1) if self._all_survive() else 0
        if room and self._writer.refusing:  # work that nobody can take down should not go on for ever
            return max(0, room - self._writer.refusing) or int(self._writer.may_try())
        return room

    def _all_survive(self) -> bool:
        """Apart, messages start one by one: the next one when those that run have run for a while. So a
        process that one of them kills at once dies with that one alone, most often."""
        before = time.monotonic() - SURVIVED_SECONDS
        return not any(pool.ready for pool in self._pools) and all(
            slot.started_at < before for pool in self._pools for slot in pool.running_slots()
        )

    def _hand_back(self) -> None:
        """Messages that wait for a slot for longer than hold_seconds are for others to take."""
        for pool in self._pools:
            try:
                oldest = pool.ready[0]
            except IndexError:
                continue
            if (
                time.monotonic() - oldest.claimed_at > self._settings.hold_seconds
                and pool.running >= pool.size
            ):
                self.release_unstarted()

    def release_unstarted(self) -> int:
        """Give back everything that no handler has started; attempts are given back. Returns how many."""
        return sum(self._release(pool.ready) for pool in self._pools if pool.ready)

    def _release(self, ready: deque[ClaimedMessage]) -> int:
        unstarted = []
        while True:
            try:
                unstarted.append(ready.pop())
            except IndexError:
                break
        if unstarted:
            try:
                with self._link.connection() as connection:
                    store.release(connection, [m.id for m in unstarted], [m.lease_token for m in unstarted])
                self.claims.wakeups.tell(sorted({m.queue_name for m in unstarted}))
            except StoreError:
                ready.extendleft(unstarted)
                raise
            for message in unstarted:
                self.claims.intake_of(message).held -= 1
                self.in_flight.ended(message, Ended.RELEASED)
        return len(unstarted)

    def mark_refused(self) -> None:
        """The process stops: messages that are done, and whose completion the database refuses, are marked,
        so that nobody runs them again. Raises StoreError."""
        self._is_to_be_written(self._writer.refused)
        self._writer.refused.clear()
        while self._outcomes:
            self._write_outcomes()  # once more
        done = self._writer.refused_completions()
        if done:
            detail = f"SQLSTATE {self._writer.refused_sqlstate}: {self._writer.refused_text}"
            with self._link.connection() as connection:
                count = store.mark_completion_refused(
                    connection, [m.id for m in done], [m.lease_token for m in done], detail
                )
            logger.error(
                "completions_marked count=%d worker_id=%s sqlstate=%s",
                count,
                self.claims.worker_id,
                self._writer.refused_sqlstate,
            )
            for message in done:
                self._writer.refused.remove(message)
                message.end()
                self.in_flight.drop(message)

    def _pause(self, could_claim: list[Intake]) -> float:
        """Seconds until the next turn, unless somebody wakes the fetcher. could_claim: the intakes that had
        room in this turn.
        """
        intakes, claims = self.claims.intakes, self.claims
        if self._outcomes or any(intake.done for intake in intakes):
            return 0.0
        next_turn = (
            min([claims.wakeups.next_turn, *[intake.next_poll for intake in could_claim]]) - time.monotonic()
        )
        busy = [
            intake
            for intake in intakes
            if not self.quiet
            and intake.pace.busy
            and (claims.backlog or claims.attending or intake.pool.patient)
        ]
        if self.draining or self.stopping:
            self._threshold = 1
            timeout = 0.05
        elif busy:
            self._threshold = min(intake.pace.threshold() for intake in busy)
            timeout = LINGER_SECONDS
            if could_claim and not claims.backlog:  # with the next look
                timeout = max(0.0, next_turn if claims.attending else min(timeout, next_turn))
        else:
            self._threshold = 1
            # with no room only a message that ends helps, and that wakes the fetcher
            timeout = (
                0.25
                if claims.backlog or not could_claim
                else max(0.0, min(next_turn, self._settings.poll_seconds))
            )
            if claims.attending:
                timeout = max(0.0, min(timeout, next_turn if could_claim else 0.01))
            timeout = max(0.0, min(timeout, claims.wakeups.call_at - time.monotonic()))
            if self.in_flight:
                timeout = min(timeout, 0.25)  # also for what waits to be written
            if any(intake.backlog and intake.room() for intake in could_claim):
                # the last claim was cut off by the size of a batch: a thousand coroutines have room for more
                timeout = 0.0
        self._waiting = True
        if len(self.finished) >= self._threshold or any(intake.signalled for intake in could_claim):
            self._waiting = False
            return 0.0
        return timeout

    def on_stop(self) -> None:
        self._link.close()

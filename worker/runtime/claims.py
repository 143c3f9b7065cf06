"""Complete these, claim those: the statement, when it is due, and what its answer says about the next one (SPEC W2).

cursor.py decides where a claim looks, pace.py how much it asks for, successors.py what it looks at first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any
from uuid import UUID

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.records import Hints
from packhorse.worker.runtime.cursor import ALL, ClaimCursor, Look
from packhorse.worker.runtime.lost_claims import LostClaims
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.pace import Pace
from packhorse.worker.runtime.successors import Successors
from packhorse.worker.runtime.wakeups import QUIET_SECONDS, Wakeups
from packhorse.worker.store import messages as store

ISOLATION_POLL_SECONDS = 0.5
AGAIN_SECONDS = 0.05  # after a claim that took all there was: what will be due next is still to be asked


@dataclass(frozen=True, slots=True)
class Request:
    """What one statement claims: up to `limit` messages of these queues, in this order; 0: it only completes."""

    limit: int
    look: Look
    queues: list[str]


class Claims:
    """Used by the fetcher's thread, but for `woken`.

    backlog: the last claim took all that it asked for. signalled: something may have become startable since the last
    one looked at the front. next_poll: when to look in any case (monotonic). lost: what was leased to us without our
    knowing. isolation: it claims messages that were there when two processes died, and no others; on_isolated: told that
    such messages wait.
    """

    def __init__(
        self,
        link: Link,
        worker_id: UUID,
        settings: Settings,
        queues: list[str],
        types: list[str],
        meter: Meter,
        pace: Pace,
        *,
        isolation: bool = False,
        on_isolated: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self.worker_id = worker_id
        self._isolation = isolation
        self._on_isolated = on_isolated
        self._settings = settings
        self._lease = f"{settings.lease_seconds} seconds"
        self._queues = queues
        self.types = types
        self._meter = meter
        self._pace = pace
        self._cursor = ClaimCursor(queues)
        self._wakeups = Wakeups(link, queues, types, lambda: bool(settings.listens))
        self._successors = Successors()
        self.lost = LostClaims(link, worker_id, settings.lease_seconds)
        self.backlog = False
        self.signalled = True
        self.next_poll = 0.0
        self._next_due = 0.0  # when the next message will be due, as far as the last claim knew
        self._turn = 0  # which queue is looked at first
        self._echo = 0.0  # seconds until the next of the looks after we stopped watching; 0: no more

    # -- what happens between claims ------------------------------------------------------------------
    def woken(self, queue: str) -> bool:
        """The listener heard that a queue has work ("" = any); called by its thread. False: none of ours."""
        if queue and queue not in self._queues:
            return False
        if queue:
            self._wakeups.woken(queue)
        self.signalled = True
        return True

    def heard_by(self, listening: Callable[[], bool]) -> None:
        """Whether a NOTIFY would reach us now; until this is said, the settings say it."""
        self._wakeups.listening = listening

    @property
    def attending(self) -> bool:
        """Do we look every few milliseconds, so that producers need not notify?"""
        return bool(self._wakeups.attending)

    @property
    def next_turn(self) -> float:
        """When the fetcher is to turn without any other reason (monotonic)."""
        return min(self.next_poll, self._wakeups.next_turn)

    def tend(self, *, free: bool, going: bool) -> None:
        """Once a turn: keep what we told producers true. free: a thread could start a message; going: the process ends. Raises StoreError."""
        if self._wakeups.attending:
            if going:
                self._wakeups.leave(wake=True)
            elif free:
                self._wakeups.free()
            else:
                self._wakeups.full(fast=self._pace.busy)
        elif free and not going and self._wakeups.renew():
            self.signalled = True

    def ended(self, message: ClaimedMessage, *, gone: bool) -> None:
        """It ended by another statement: it may be due again soon, or have made room for another one. gone: it has left its conversation."""
        self.signalled = True
        if gone:
            self._successors.ended(message)

    def due(self) -> bool:
        """Is there a reason to look for messages now?"""
        return self.backlog or self.signalled or self._successors.unasked or time.monotonic() >= self.next_poll

    # -- the statement --------------------------------------------------------------------------------
    def request(self, limit: int) -> Request:
        """The next claim, of up to `limit` messages."""
        # no queue is served before another: one with a backlog would starve those behind it
        self._turn = (self._turn + 1) % len(self._queues)
        queues = self._queues[self._turn :] + self._queues[: self._turn]
        return Request(limit, ALL if self._isolation else self._cursor.look(queues), queues)

    def completion(self) -> Request:
        """No claim at all."""
        return Request(0, ALL, self._queues)

    def run(self, done: list[ClaimedMessage], request: Request) -> tuple[list[tuple[Any, ...]], Hints]:
        """Complete `done` and claim what the request says; rows of messages and hints. Raises StoreError."""
        if request.limit and request.look.front:
            self.signalled = False  # before the claim: what is signalled while it runs may not be in its snapshot
        before = time.monotonic()
        try:
            with self._link.connection() as connection:
                first = self._successors.first(connection, ask=request.limit > 0)
                return store.complete_and_claim(
                    connection,
                    [m.id for m in done],
                    [m.lease_token for m in done],
                    self.worker_id,
                    request.queues,
                    request.limit,
                    self._lease,
                    self.types,
                    request.look.since,
                    request.look.until,
                    self._isolation,
                    first,
                )
        except Exception as error:
            if request.limit:
                if not isinstance(error, StoreError) or isinstance(error, StoreUnavailable):  # an answer that cannot be read, or that is lost
                    self.lost.suspected()
                # refused together with completions: which of the two it was, the next claim will say, which goes without them
                blamed = error if not done or isinstance(error, StoreUnavailable) else None
                self._meter.claimed("error", time.monotonic() - before, blamed)
                self._meter.publish()
            if isinstance(error, StoreError):
                self.signalled = True
            raise

    def read(self, request: Request, rows: list[tuple[Any, ...]], hints: Hints, before: float, now: float) -> list[ClaimedMessage]:
        """The messages of an answer to a statement sent at `before`; its hints are for the next request."""
        lease_until = before + self._settings.lease_seconds
        claimed = [ClaimedMessage(row, lease_until, now) for row in rows]
        self._next_due = inf if hints.next_in is None else now + hints.next_in
        self._successors.ids = list(hints.promoted)
        if hints.isolated:
            self._on_isolated()
        if claimed and not self._isolation:  # those have an index, and a place in time, of their own
            last: dict[tuple[str, int], str] = {}
            for message in claimed:
                last[message.queue_name, message.priority] = message.run_at
            self._cursor.claimed(request.look, last, len(claimed))
        return claimed

    def learn(self, request: Request, completed: int, claimed: int, before: float, after: float) -> None:
        """How it went: whether there is a backlog, how large statements should be, when to look again. Raises StoreError."""
        self._pace.exchanged(completed + claimed, after - before)
        if not request.limit:
            return
        self._meter.claimed("hit" if claimed else "empty", after - before)
        now = time.monotonic()
        if self._isolation:  # few messages, in a process that does not live long: it looks often
            self.backlog = claimed >= request.limit
            self.next_poll = now + ISOLATION_POLL_SECONDS
            return
        look = request.look
        self._cursor.looked(look, after - before, exhausted=claimed < request.limit)
        self.backlog = claimed >= request.limit or (self.backlog and not look.front)
        listening = self._wakeups.listening()
        if listening or self._wakeups.attending:
            self._wakeups.attend(backlog=self.backlog and self._pace.busy)
        if self.backlog:
            if self._wakeups.attending:
                self._wakeups.looked(claimed, self._pace.rate, backlog=True)
                self._wakeups.pressed()
            return
        if not look.whole:
            self._cursor.look_again_soon()
            self.next_poll = min(now + self._settings.poll_seconds, max(now, self._cursor.next_sweep))
        elif claimed:
            self.next_poll = now + AGAIN_SECONDS  # a handler that ends before is back with a claim anyway
        elif self._wakeups.attending:
            self.next_poll = inf  # said below
        elif listening and not self._wakeups.asleep():
            self._wakeups.announce_sleep()
            self.next_poll = 0.0  # once more: a producer may have committed before it saw the announcement
        else:
            self.next_poll = now + self._settings.poll_seconds * random.uniform(0.75, 1.0)
            if self._echo:  # a transaction that saw us watch may commit as long afterwards as it has lasted
                self.next_poll = min(self.next_poll, now + self._echo)
                self._echo = self._echo * 2 if self._echo < self._settings.poll_seconds else 0.0
        if self._wakeups.attending:
            pause = self._wakeups.looked(claimed, self._pace.rate, backlog=False)
            self.next_poll = min(self.next_poll, now + pause)
            if not self._wakeups.attending:
                self._echo = QUIET_SECONDS
        self.next_poll = min(self.next_poll, self._next_due)

"""Complete these, claim those: the statement, when it is due, and what its answer says about the next one
(SPEC W2).

A process has one intake per kind of handler: threads, coroutines, and each actor that has a limit of its own.
Every intake claims its own types by its own room, so a flood of one kind starves neither the other kinds nor
other queues.

cursor.py decides where a claim looks, pace.py how much it asks for, successors.py what it looks at first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any
from uuid import UUID

from packhorse.worker.attempt.heartbeat import MOST_STRETCH, stretched
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.config import Settings
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.patterns import claimed_as, is_pattern, name_for
from packhorse.worker.records import Hints
from packhorse.worker.runtime.cursor import ALL, ClaimCursor, Look
from packhorse.worker.runtime.lost_claims import LostClaims
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.pace import HOLD_AHEAD_SECONDS, Pace
from packhorse.worker.runtime.pool import HandlerPool
from packhorse.worker.runtime.ring import Word
from packhorse.worker.runtime.successors import Successors
from packhorse.worker.runtime.threads import SLOW_SECONDS
from packhorse.worker.runtime.wakeups import QUIET_SECONDS, Wakeups
from packhorse.worker.store import messages as store

ISOLATION_POLL_SECONDS = 0.5
FAST_SECONDS = 0.02
# so long ahead with what it holds, a process waits for its handlers and not for its claims (Pace.capacity)
LOADED_SECONDS = HOLD_AHEAD_SECONDS / 2
# of the time between two looks; where polling alone finds messages they go on looking often
MOST_TOLD_STRETCH, MOST_SILENT_STRETCH = 20.0, 2.5
AGAIN_SECONDS = 0.05  # after a claim that took all there was: what will be due next is still to be asked


@dataclass(frozen=True, slots=True)
class Kind:
    """Message types that one pool runs, `most` of them at once (None: as many as the pool has room for)."""

    pool: HandlerPool
    types: list[str]
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What one statement claims: up to `limit` messages of these queues, in this order; 0: it only
    completes.
    """

    limit: int
    look: Look
    queues: list[str]


class Intake:
    """The claims of one kind. Used by the fetcher's thread, but for `signalled`.

    backlog: the last claim took all that it asked for. signalled: something may have become startable since
    the last one looked at the front. next_poll: when to look in any case (monotonic). held: claimed and not
    handed back by the pool. done: handed back, and to be completed. unwritten: handed back, and another
    outcome is to be written.
    """

    def __init__(self, kind: Kind, pace: Pace, claims: Claims) -> None:
        self.pool = kind.pool
        self.types = claimed_as(kind.types, claims.types) if claims.forward is None else None
        self._patterns = [name for name in kind.types if is_pattern(name)]
        self._most = kind.most
        self.pace = pace
        self._claims = claims
        self._cursor = ClaimCursor(claims.queues)
        self._successors = Successors()
        self.backlog = False
        self.signalled = True
        self.next_poll = 0.0
        self.held = self.unwritten = 0
        self._ran_seconds = inf  # of handlers, smoothed; none has ended yet
        self.done: list[ClaimedMessage] = []
        self._next_due = 0.0  # when the next message will be due, as far as the last claim knew
        self._turn = 0  # which queue is looked at first
        self._echo = 0.0  # seconds until the next of the looks after we stopped watching; 0: no more

    def room(self) -> int:
        """How many more messages could start soon."""
        # what is done takes no slot: it leaves with the same statement
        room = self.pace.capacity() - len(self.pool.ready) - self.pool.running - self.unwritten
        if self._most is not None:
            room = min(room, self._most - self.held)
        return max(0, room)

    def full(self) -> bool:
        """Would a message that comes now have to wait?"""
        return not self.room() or len(self.pool.ready) + self.pool.running >= self.pool.size

    def ended(self, ran_seconds: float) -> None:
        """A handler took so long. Quick to fall: one that was delayed says little."""
        self._ran_seconds = min(ran_seconds, (self._ran_seconds + ran_seconds) / 2)

    @property
    def fast(self) -> bool:
        """Are threads free again soon?"""
        return self.pace.busy or self._ran_seconds < FAST_SECONDS

    @property
    def loaded(self) -> bool:
        """Would its messages be done sooner if others took some? Where handlers are quicker than claims, more
        processes only make each claim smaller: 100 of them drained 1,152 messages a second, few 21,000. Quick
        handlers run one after the other, whatever the size of their pool.
        """
        at_once = 1 if self._ran_seconds < SLOW_SECONDS else self.pool.size
        return self.held > 0 and self.held * self._ran_seconds / at_once > LOADED_SECONDS

    def due(self) -> bool:
        """Is there a reason to look for messages now?"""
        now = time.monotonic()
        return self.backlog or self.signalled or self._successors.unasked or now >= self.next_poll

    def conversation_went_on(self, message: ClaimedMessage) -> None:
        """It has left its conversation, by a statement that did not tell what comes next of these types."""
        self._successors.ended(message)

    # -- the statement --------------------------------------------------------------------------------
    def request(self, limit: int) -> Request:
        """The next claim, of up to `limit` messages."""
        # no queue is served before another: one with a backlog would starve those behind it
        queues = self._claims.queues
        self._turn = (self._turn + 1) % len(queues)
        queues = queues[self._turn :] + queues[: self._turn]
        return Request(limit, ALL if self._claims.isolation else self._cursor.look(queues), queues)

    def completion(self) -> Request:
        """No claim at all."""
        return Request(0, ALL, self._claims.queues)

    def run(self, done: list[ClaimedMessage], request: Request) -> tuple[list[tuple[Any, ...]], Hints]:
        """Complete `done` and claim what the request says; rows of messages and hints. Raises StoreError."""
        claims = self._claims
        if request.limit and request.look.front:
            # before the claim: what is signalled while it runs may not be in its snapshot
            self.signalled = False
        before = time.monotonic()
        try:
            with claims.link.connection() as connection:
                first = self._successors.first(connection, ask=request.limit > 0)
                return store.complete_and_claim(
                    connection,
                    [m.id for m in done],
                    [m.lease_token for m in done],
                    claims.worker_id,
                    request.queues,
                    request.limit,
                    claims.lease,
                    self.types,
                    request.look.since,
                    request.look.until,
                    claims.isolation,
                    first,
                    claims.forward,
                )
        except Exception as error:
            if request.limit:
                # an answer that cannot be read, or that is lost
                if not isinstance(error, StoreError) or isinstance(error, StoreUnavailable):
                    claims.lost.suspected()
                # refused together with completions: which of the two it was, the next claim will say, which
                # goes without them
                blamed = error if not done or isinstance(error, StoreUnavailable) else None
                claims.meter.claimed("error", time.monotonic() - before, blamed)
                claims.meter.publish()
            if isinstance(error, StoreError):
                self.signalled = True
            raise

    def read(
        self, request: Request, rows: list[tuple[Any, ...]], hints: Hints, before: float, now: float
    ) -> list[ClaimedMessage]:
        """The messages of an answer to a statement sent at `before`; its hints are for the next request."""
        claims = self._claims
        lease_until = before + claims.settings.lease_seconds
        claimed = [ClaimedMessage(row, lease_until, now) for row in rows]
        if self._patterns:
            for message in claimed:
                message.actor_name = name_for(claims.types, message.message_type) or message.message_type
        self.held += len(claimed)
        self._next_due = inf if hints.next_in is None else now + hints.next_in
        self._successors.ids = list(hints.promoted)
        if hints.isolated:
            claims.on_isolated()
        if claims.forward is not None:
            claims.on_forwarded(hints.forwarded)
            for message in claimed if hints.expires else ():
                message.expires_at = hints.expires.get(message.id)
        if claimed and not claims.isolation:  # those have an index, and a place in time, of their own
            last: dict[tuple[str, int], str] = {}
            for message in claimed:
                last[message.queue_name, message.priority] = message.run_at
            self._cursor.claimed(request.look, last, len(claimed))
        return claimed

    def learn(self, request: Request, completed: int, claimed: int, before: float, after: float) -> None:
        """How it went: whether there is a backlog, how large statements should be, when to look again. Raises
        StoreError.
        """
        claims, wakeups, poll_seconds = self._claims, self._claims.wakeups, self._claims.settings.poll_seconds
        self.pace.exchanged(completed + claimed, after - before)
        if not request.limit:
            return
        claims.meter.claimed("hit" if claimed else "empty", after - before)
        now = time.monotonic()
        if claims.isolation:  # few messages, in a process that does not live long: it looks often
            self.backlog = claimed >= request.limit
            self.next_poll = now + ISOLATION_POLL_SECONDS
            return
        look = request.look
        self._cursor.looked(look, after - before, exhausted=claimed < request.limit)
        self.backlog = claimed >= request.limit or (self.backlog and not look.front)
        listening = wakeups.listening()
        if listening or wakeups.attending:
            wakeups.attend(backlog=self.backlog and self.pace.busy)
        if self.backlog:
            if wakeups.attending:
                wakeups.looked(claimed, self.pace.rate, backlog=True)
                if self.loaded:
                    wakeups.pressed()
            return
        if not look.whole:
            self._cursor.look_again_soon()
            self.next_poll = min(now + poll_seconds, max(now, self._cursor.next_sweep))
        elif claimed:
            self.next_poll = now + AGAIN_SECONDS  # a handler that ends before is back with a claim anyway
        elif wakeups.attending:
            self.next_poll = inf  # said below
        elif listening and not wakeups.asleep():
            wakeups.announce_sleep()
            claims.look_again()  # all of them: a producer may have committed before it saw the announcement
            self.next_poll = 0.0
        else:
            self.next_poll = now + poll_seconds * self._rest(listening) * random.uniform(0.75, 1.0)
            if self._echo:  # a transaction that saw us watch may commit as long afterwards as it has lasted
                self.next_poll = min(self.next_poll, now + self._echo)
                self._echo = self._echo * 2 if self._echo < poll_seconds else 0.0
        if wakeups.attending:
            pause = wakeups.looked(claimed, self.pace.rate, backlog=False)
            self.next_poll = min(self.next_poll, now + pause)
            if not wakeups.attending:
                claims.echo(QUIET_SECONDS)
        self.next_poll = min(self.next_poll, self._next_due)

    def _rest(self, listening: bool) -> float:
        """How many times longer than poll_seconds: many idle processes that could take the same messages look
        by turns.
        """
        most = MOST_SILENT_STRETCH
        if listening:  # where Python producers publish, nobody tells us of what SQL enqueues
            most = MOST_STRETCH if self._claims.settings.producers_publish else MOST_TOLD_STRETCH
        return stretched(self._claims.wakeups.peers(), most)

    def echo(self, seconds: float) -> None:
        """We stopped watching: look again after so many seconds, and later each time."""
        self._echo = seconds


class Claims:
    """The intakes of a process, and what they share. Used by the fetcher's thread, but for `woken`.

    lost: what was leased to us without our knowing. isolation: they claim messages that were there when two
    processes died, and no others; on_isolated: told that such messages wait. forward: of a relay, which takes
    every type from queues that go there, and no others; on_forwarded: told which ones do, with each claim.
    """

    def __init__(
        self,
        link: Link,
        worker_id: UUID,
        settings: Settings,
        queues: list[str],
        kinds: list[Kind],
        meter: Meter,
        *,
        isolation: bool = False,
        on_isolated: Callable[[], None] = lambda: None,
        forward: str | None = None,
        on_forwarded: Callable[[Sequence[str]], None] = lambda queues: None,
    ) -> None:
        self.link = link
        self.worker_id = worker_id
        self.isolation = isolation
        self.on_isolated = on_isolated
        self.forward = forward
        self.on_forwarded = on_forwarded
        self.settings = settings
        self.lease = f"{settings.lease_seconds} seconds"
        self.queues = queues
        self.meter = meter
        self.types = sorted({name for kind in kinds for name in kind.types})
        self.wakeups = Wakeups(
            link, worker_id, queues, self.types, lambda: settings.woken_by != "poll", forward
        )
        self.lost = LostClaims(link, worker_id, settings.lease_seconds)
        paces = {
            id(kind.pool): Pace(kind.pool.size, max(settings.batch_size, kind.pool.size)) for kind in kinds
        }
        self.intakes = [Intake(kind, paces[id(kind.pool)], self) for kind in kinds]
        self._by_type = {
            name: intake for kind, intake in zip(kinds, self.intakes, strict=True) for name in kind.types
        }
        self._next = 0

    # -- what happens between claims ------------------------------------------------------------------
    def intake_of(self, message: ClaimedMessage) -> Intake:
        """The one that has claimed it."""
        return self.intakes[0] if self.forward is not None else self._by_type[message.actor_name]

    def in_turn(self) -> list[Intake]:
        """All of them, another one first each time."""
        self._next = (self._next + 1) % len(self.intakes)
        return self.intakes[self._next :] + self.intakes[: self._next]

    def woken(self, text: str) -> bool:
        """The listener heard that a queue has work ("" = any); called by its thread. False: none of ours, or
        the turn of others.
        """
        if text:
            word = Word.read(text)
            if word.queue not in self.queues or not self.wakeups.hear(word):
                return False
        self.look_again()
        return True

    def look_again(self) -> None:
        """Something may have become startable, of any type."""
        for intake in self.intakes:
            intake.signalled = True

    def echo(self, seconds: float) -> None:
        """We stopped watching: all of them look again after so many seconds."""
        for intake in self.intakes:
            intake.echo(seconds)

    def heard_by(
        self,
        listening: Callable[[], bool],
        peers: Callable[[], int] = lambda: 1,
        before: Callable[[], UUID | None] = lambda: None,
        tell: Callable[[list[str]], None] = lambda queues: None,
    ) -> None:
        """Whether a NOTIFY would reach us now; until this is said, the settings say it. peers: processes that
        could take our messages, we among them; before: the one before us. tell: publishes by Redis.
        """
        self.wakeups.listening, self.wakeups.peers = listening, peers
        self.wakeups.before, self.wakeups.tell = before, tell

    @property
    def attending(self) -> bool:
        """Do we look every few milliseconds, so that producers need not notify?"""
        return bool(self.wakeups.attending)

    @property
    def backlog(self) -> bool:
        """Was there more, of some kind, than a claim took?"""
        return any(intake.backlog for intake in self.intakes)

    @property
    def signalled(self) -> bool:
        """May something have become startable that nobody has looked at?"""
        return any(intake.signalled for intake in self.intakes)

    @property
    def next_poll(self) -> float:
        """When the first of them looks in any case (monotonic)."""
        return min(intake.next_poll for intake in self.intakes)

    @property
    def next_turn(self) -> float:
        """When the fetcher is to turn without any other reason (monotonic)."""
        return min(self.next_poll, self.wakeups.next_turn)

    def tend(self, *, free: bool, fast: bool, going: bool) -> None:
        """Once a turn: keep what we told producers true. free: each kind could start a message; fast: it will
        soon; going: the process ends. Raises StoreError."""
        self.wakeups.answer(room=not going and (free or fast or self.attending))
        if not self.attending:
            waiting = [intake for intake in self.intakes if intake.backlog and intake.loaded and not going]
            self.wakeups.spread(backlog=bool(waiting), fast=all(intake.fast for intake in waiting))
        if self.wakeups.attending:
            if going:
                self.wakeups.leave(wake=True)
            elif free:
                self.wakeups.free()
            else:
                self.wakeups.full(fast=fast)
        elif free and not going and self.wakeups.renew():
            self.look_again()

    def ended(self, message: ClaimedMessage, *, gone: bool) -> None:
        """It ended by another statement: it may be due again soon, or have made room for another one. gone:
        it has left its conversation.
        """
        self.look_again()
        if gone:
            for intake in self.intakes:
                intake.conversation_went_on(message)

    def completed_by(self, intake: Intake, done: list[ClaimedMessage]) -> None:
        """A claim of that intake completed these, and knows what comes next of its own types only."""
        if len(self.intakes) > 1:
            for message in done:
                if message.conversation_key is not None:
                    for other in self.intakes:
                        if other is not intake:
                            other.conversation_went_on(message)

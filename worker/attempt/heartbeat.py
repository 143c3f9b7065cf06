"""Heartbeats: held leases go on, lost ones and cancel requests are learnt, others' lost messages rescued.

The last service to stop: it beats until the last outcome is written (SPEC W5, FAILURES 49). What this
process may still believe is measured on the monotonic clock from *before* each request (SPEC P2).
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import WRITTEN, AttemptStage
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreError, StoreUnavailable
from packhorse.worker.observe.duties import Duties, code_of
from packhorse.worker.service import Service
from packhorse.worker.store import messages
from packhorse.worker.store import workers as store
from packhorse.worker.version import __version__

logger = logging.getLogger("packhorse.heartbeat")

UPKEEP_SECONDS = 300.0
#: After an outage others get so long to come back before their leases are taken.
RETURN_SECONDS = 5.0
MORE_SECONDS = 1.0  # a step of the upkeep that could not do all in one go goes on after this
REFUSED_SECONDS = 10.0  # a step that the database refused is tried again after this
RETRY_SECONDS = 1.0  # and a beat, a rescue
#: Problems that a process writes to its row in `workers`.
MOST_PROBLEMS = 20
#: So many idle processes of the same work go on as one does; more of them do by turns what each does by the
#: clock, up to so much more seldom.
FEW_PEERS, MOST_STRETCH = 5, 5.0


def stretched(peers: int, most: float = MOST_STRETCH) -> float:
    """How much longer each of so many processes waits between two looks: 1 to `most`. The fleet looks as
    often as FEW_PEERS processes do, and more often when it is larger than FEW_PEERS * most.
    """
    return min(most, max(1.0, peers / FEW_PEERS))


class Heartbeat(Service):
    """Beats every heartbeat_seconds; rescues every rescue_seconds; upkeep every five minutes, a step per
    turn.

    held: the messages this process holds now. on_attention(message, lease_held): called for a message whose
    lease is lost (False) or whose cancellation was asked (True). counts: (done, failed) so far. on_beat: the
    database answered. daemon_id: the parent of the process. duties: where it is noted what could not be done;
    what the database refuses stops no other duty, what it does not answer ends the turn.
    """

    name = "heartbeat"
    max_backoff_seconds = 2.0

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        settings: Settings,
        held: Callable[[], Sequence[ClaimedMessage]],
        on_attention: Callable[[ClaimedMessage, bool], None],
        counts: Callable[[], tuple[int, int]] = lambda: (0, 0),
        on_beat: Callable[[], None] = lambda: None,
        duties: Duties | None = None,
        daemon_id: UUID | None = None,
    ) -> None:
        super().__init__()
        self._link = Link(open_connection)
        self._worker_id = worker_id
        self._settings = settings
        self._held = held
        self._on_attention = on_attention
        self._counts = counts
        self._on_beat = on_beat
        self.duties = duties or Duties()
        self._daemon_id = daemon_id
        #: Called with what operators have asked of this daemon ("quiet", "drain", None), at each registration
        #: and beat; None: nobody asks.
        self.on_asked: Callable[[str | None], None] | None = None
        self.noted = partial(self.duties.note, "heartbeat")
        self._refused: set[str] = set()  # duties of which it was said
        self.state = "running"
        self._next_beat = 0.0
        self._next_rescue = time.monotonic() + random.uniform(0.2, 1.0) * settings.rescue_seconds
        self._next_expiry = 0.0
        #: When each step of the upkeep is due (monotonic); of those that are due at once the one that waited
        #: longest is first.
        self._steps = dict.fromkeys(store.UPKEEP_STEPS, 0.0)
        self.rescued_total = 0
        # as of the last beat; read by any thread
        self.peers = 1  # processes that could do our work now
        self.before: UUID | None = None  # the one before us on the ring of their ids
        self._more_to_rescue = False
        self._registration: tuple[list[str], list[str], int, bool, str, str | None] | None = None

    def register(
        self,
        connection: DeadlineConnection,
        queues: list[str],
        types: list[str],
        threads: int,
        isolation: bool = False,
        policies: str = "{}",
        forward: str | None = None,
    ) -> None:
        """The process starts: declares its queues and types. Repeated by a beat after the process was
        forgotten.
        """
        self._registration = queues, types, threads, isolation, policies, forward
        host, lease = socket.gethostname(), self._settings.lease_seconds
        problems = self._problems()
        store.register(
            connection,
            self._worker_id,
            host,
            os.getpid(),
            __version__,
            queues,
            types,
            threads,
            lease,
            isolation,
            policies,
            problems,
            self._daemon_id,
            forward,
        )
        self._learn(connection)

    def _learn(self, connection: DeadlineConnection) -> None:
        if self.on_asked is not None:
            self.on_asked(store.asked(connection, self._worker_id))

    def start(self) -> None:
        self.duties.expect("beat", self._settings.heartbeat_seconds)
        self.duties.expect("rescue", 1.2 * self._settings.rescue_seconds)
        super().start()

    def urgent(self) -> bool:
        """Leases run while the database is away."""
        return bool(self._held())

    def run_once(self) -> float:
        now = time.monotonic()
        # after an outage the others come back when we do: until then their types and leases look abandoned
        if self.failures:
            self._steps = {
                step: max(due, now + self._settings.lease_seconds) for step, due in self._steps.items()
            }
            self._next_rescue = max(
                self._next_rescue, now + min(RETURN_SECONDS, self._settings.lease_seconds / 2)
            )
        if now >= self._next_beat:
            beaten = self._did("beat", self.beat)
            self._next_beat = now + (self._settings.heartbeat_seconds if beaten else RETRY_SECONDS)
        self.ticked(time.monotonic())
        if now >= self._next_rescue:
            rescued = self._did("rescue", self._rescue)
            # seldom: nobody waits for it, and an idle process should say little
            if now >= self._next_expiry and self._did("expire", self._expire):
                self._next_expiry = now + 5 * self._settings.rescue_seconds * stretched(self.peers)
            wait_seconds = (
                self._settings.rescue_seconds * stretched(self.peers) * random.uniform(0.8, 1.2)
                if rescued
                else RETRY_SECONDS
            )
            self._next_rescue = now if self._more_to_rescue else now + wait_seconds
        self.ticked(time.monotonic())
        step = min(self._steps, key=lambda step: self._steps[step])
        if now >= self._steps[step]:
            self._upkeep(step, now)
        return float(
            max(0.01, min(self._next_beat, self._next_rescue, *self._steps.values()) - time.monotonic())
        )

    def _did(self, duty: str, do: Callable[[], object]) -> bool:
        """One duty. Raises StoreUnavailable: the others would meet the same."""
        try:
            with self.duties.watching(duty):
                do()
        except StoreUnavailable:
            raise
        except StoreError as error:
            if duty not in self._refused:
                self._refused.add(duty)
                logger.warning(
                    "duty_refused duty=%s error_class=%s error=%s: tried again, the others go on",
                    duty,
                    code_of(error),
                    error,
                )
            return False
        if duty in self._refused:
            self._refused.discard(duty)
            logger.info("duty_recovered duty=%s", duty)
        return True

    def _rescue(self) -> None:
        self._more_to_rescue = False
        with self._link.connection() as connection:
            count = store.rescue(connection)
            self.rescued_total += count
            messages.complete_refused(connection)
        self._more_to_rescue = count >= store.RESCUE_ROWS  # a full page

    def _expire(self) -> None:
        with self._link.connection() as connection:
            store.expire(connection)

    def _upkeep(self, step: str, now: float) -> None:
        """One step. It goes to the end of the line before it begins: one that fails stops no other, and is
        not tried in each turn.
        """
        more = False
        del self._steps[step]
        self._steps[step] = now + REFUSED_SECONDS

        def do() -> None:
            nonlocal more
            with self._link.connection() as connection:
                more = store.upkeep(connection, step, self._settings.unknown_type_seconds)

        if self._did(step, do):
            pause = UPKEEP_SECONDS * stretched(self.peers) * random.uniform(0.8, 1.2)
            self._steps[step] = now + (MORE_SECONDS if more else pause)

    def _problems(self) -> list[str]:
        return [problem.text for problem in self.duties.problems(time.monotonic())[:MOST_PROBLEMS]]

    def beat(self) -> None:
        """One heartbeat: messages whose lease has four fifths left need no renewal yet."""
        before = time.monotonic()
        lease = self._settings.lease_seconds
        held = [m for m in self._held() if m.stage not in WRITTEN]
        old = [m for m in held if m.lease_until - before < lease * 0.8]
        ids, tokens, running = (
            [m.id for m in old],
            [m.lease_token for m in old],
            sum(m.stage is AttemptStage.RUNNING for m in held),
        )
        done, failed = self._counts()
        with self._link.connection() as connection:
            beat = store.beat(
                connection,
                self._worker_id,
                ids,
                tokens,
                lease,
                self.state,
                done,
                failed,
                self._problems(),
                running,
            )
        if self.on_asked is not None:
            self.on_asked(beat.asked)
        self._see(beat.peers)
        self.before = beat.before
        self._on_beat()
        attention = beat.attention
        lost = {item.id for item in attention if not item.lease_held}
        not_renewed = {item.id for item in attention if not item.renewed}
        cancelled = {item.id for item in attention if item.lease_held and item.cancel_requested}
        for message in old:
            if message.id in lost:
                self._on_attention(message, False)
                continue
            if message.id not in not_renewed:
                message.lease_until = before + lease
            if message.id in cancelled:
                self._on_attention(message, True)
        if lost:
            with self._link.connection() as connection:
                store.withdraw_crashes(connection, list(lost), self._worker_id)
        if not beat.known and self._registration:
            with self._link.connection() as connection:
                self.register(connection, *self._registration)

    def _see(self, peers: int) -> None:
        """When many are gone at once their messages are waiting for us, and not for our turn."""
        if peers < self.peers / 2:
            self._next_rescue = min(self._next_rescue, time.monotonic())
        if stretched(peers) != stretched(self.peers):
            self.duties.expect("rescue", 1.2 * self._settings.rescue_seconds * stretched(peers))
        self.peers = peers

    def on_stop(self) -> None:
        self._link.close()

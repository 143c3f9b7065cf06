"""Heartbeats: held leases go on, lost ones and cancel requests are learnt, others' lost messages rescued.

The last service to stop: it beats until the last outcome is written (SPEC W5, FAILURES 49). What this
process may still believe is measured on the monotonic clock from *before* each request (SPEC P2).
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from worker import __version__
from worker.db.connection import DeadlineConnection
from worker.db.pool import Link
from worker.messages import ClaimedMessage
from worker.service import Service
from worker.store import workers as store

UPKEEP_SECONDS = 300.0
MORE_SECONDS = 1.0  # a step of the upkeep that could not do all in one go goes on after this


class Heartbeat(Service):
    """Beats every heartbeat_seconds; rescues every rescue_seconds; upkeep every five minutes, a step per turn.

    held: the messages this process holds now. on_attention(message, lease_held): called for a message
    whose lease is lost (False) or whose cancellation was asked (True). counts: (done, failed) so far. on_beat: the database answered.
    """

    name = "heartbeat"
    max_backoff_seconds = 2.0

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        worker_id: UUID,
        settings: Any,
        held: Callable[[], Sequence[ClaimedMessage]],
        on_attention: Callable[[ClaimedMessage, bool], None],
        counts: Callable[[], tuple[int, int]] = lambda: (0, 0),
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._link = Link(open_connection)
        self._worker_id = worker_id
        self._settings = settings
        self._held = held
        self._on_attention = on_attention
        self._counts = counts
        self._on_beat = on_beat
        self.state = "running"
        self._next_beat = 0.0
        self._next_rescue = time.monotonic() + random.uniform(0.2, 1.0) * settings.rescue_seconds
        self._next_expiry = 0.0
        self._next_upkeep = 0.0
        self._step = 0  # of store.UPKEEP_STEPS
        self.rescued_total = 0
        self._registration: tuple[list[str], list[str], int] | None = None

    def register(self, connection: DeadlineConnection, queues: list[str], types: list[str], threads: int) -> None:
        """The process starts: declares its queues and types. Repeated by a beat after the process was forgotten."""
        self._registration = queues, types, threads
        store.register(
            connection, self._worker_id, socket.gethostname(), os.getpid(), __version__, queues, types, threads, self._settings.lease_seconds
        )

    def urgent(self) -> bool:
        """Leases run while the database is away."""
        return bool(self._held())

    def run_once(self) -> float:
        now = time.monotonic()
        if self.failures:  # after an outage the others come back when we do: until then their types look abandoned
            self._next_upkeep = max(self._next_upkeep, now + self._settings.lease_seconds)
        if now >= self._next_beat:
            self.beat()
            self._next_beat = now + self._settings.heartbeat_seconds
        self.ticked(time.monotonic())
        if now >= self._next_rescue:
            with self._link.connection() as connection:
                self.rescued_total += store.rescue(connection)
                if now >= self._next_expiry:  # seldom: nobody waits for it, and an idle process should say little
                    store.expire(connection)
                    self._next_expiry = now + 5 * self._settings.rescue_seconds
            self._next_rescue = now + self._settings.rescue_seconds * random.uniform(0.8, 1.2)
        self.ticked(time.monotonic())
        if now >= self._next_upkeep:
            self._upkeep(now)
        return float(max(0.01, min(self._next_beat, self._next_rescue, self._next_upkeep) - time.monotonic()))

    def _upkeep(self, now: float) -> None:
        """One step. What is next stands before it begins: a step that fails is not tried in each turn, and stops no other."""
        step = store.UPKEEP_STEPS[self._step]
        self._step = (self._step + 1) % len(store.UPKEEP_STEPS)
        self._next_upkeep = now if self._step else now + UPKEEP_SECONDS * random.uniform(0.8, 1.2)
        with self._link.connection() as connection:
            more = store.upkeep(connection, step, self._settings.unknown_type_seconds)
        if more:
            self._step, self._next_upkeep = store.UPKEEP_STEPS.index(step), now + MORE_SECONDS

    def beat(self) -> None:
        """One heartbeat: messages younger than a third of the lease need no renewal yet."""
        before = time.monotonic()
        lease = self._settings.lease_seconds
        old = [m for m in self._held() if not m.settled and m.lease_until - before < lease * 0.8]
        done, failed = self._counts()
        with self._link.connection() as connection:
            attention, known = store.beat(
                connection, self._worker_id, [m.id for m in old], [m.lease_token for m in old], lease, self.state, done, failed
            )
        self._on_beat()
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
        if not known and self._registration:
            with self._link.connection() as connection:
                self.register(connection, *self._registration)

    def on_stop(self) -> None:
        self._link.close()

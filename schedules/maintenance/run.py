"""The run loop of all maintenance: start, step, beat, gates, end (SPEC M6, M7).

A step is one transaction, and so is its beat: a run that is killed anywhere goes on where it was. Between two
steps the run rests, looks at the health gates, and hears whether somebody wants it to end. How it ended is
recorded whatever happens; what cannot even be recorded is taken over by the next run of the task.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from math import inf
from threading import Event
from typing import Any

from packhorse.schedules.maintenance.gates import judge
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreError
from packhorse.worker.store import maintenance as store

logger = logging.getLogger("packhorse.maintenance")

LEAST_REST_SECONDS = 0.01
GATE_WAIT_SECONDS = (0.5, 5.0)
#: What a run is asked by its beat -> how it ends.
ENDS = {"cancel": "cancelled", "pause": "paused", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Task:
    """What is run. plan: what its record says of it. gates: thresholds that make it wait, None for none;
    table: whose gates are looked at.

    pause_ratio: rest after a step, as a share of the time that the step took; None: no rest.
    """

    name: str
    kind: str
    plan: dict[str, Any]
    cutoff: datetime | None = None
    batch_size: int | None = None
    budget_seconds: float = inf
    gates: Gates | None = None
    table: str | None = None
    pause_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. more: something is left. cursor, size: where a run that goes on begins, and with how
    large a step.
    """

    rows: int
    more: bool
    cursor: list[str] | None = None
    size: int | None = None


class Work(ABC):
    """The steps of a task. `step` runs in a transaction; `committed` and `failed` after it.

    rest_ratio: instead of the task's pause_ratio. least_rest_seconds: when it rests at all.
    gates_every_seconds: short steps need not look each time.
    """

    rest_ratio: float | None = None
    least_rest_seconds: float = LEAST_REST_SECONDS
    gates_every_seconds: float = 0.0

    @abstractmethod
    def step(self) -> Step:
        """Do the next piece. Raises StoreError."""

    def committed(self, took_seconds: float) -> None:  # noqa: B027 -- most have nothing to do
        """The step is written."""

    def failed(self, error: StoreError) -> None:
        """The step was rolled back: return, and it is tried again, or raise."""
        raise error


class _TakenOver(Exception):
    """Somebody else has taken the run over."""


class Run:
    """One run of a task in one thread, on a connection in autocommit.

    stop: set from outside to pause it. on_progress(rows, gate): after each step and each wait. rows: changed
    so far. record: what the database knows of it, from start on. remark: goes into its record as the error,
    also of a run that succeeded. silent_after_seconds: a run that has not beaten for so long is taken over;
    None: the database's default.
    """

    record: store.RunRecord

    def __init__(
        self,
        connection: DeadlineConnection,
        task: Task,
        *,
        triggered_by: str,
        message_id: int | None = None,
        stop: Event | None = None,
        on_progress: Callable[[int, str | None], Any] = lambda rows, gate: None,
        silent_after_seconds: float | None = None,
    ) -> None:
        self._connection = connection
        self._task = task
        self._triggered_by = triggered_by
        self._message_id = message_id
        self._stop = stop or Event()
        self._on_progress = on_progress
        self._silent_after_seconds = silent_after_seconds
        self._deadline = time.monotonic() + task.budget_seconds
        self._held_by: str | None = None
        self._slow = False
        self._looked_at = -inf
        self.rows = 0
        self.remark: str | None = None

    def execute(self, work: Callable[[Run], str]) -> str:
        """Start, do the work, end: the state that `work` returns, "lost", or "busy" when another process
        works on the task.

        Raises StoreError, InvalidArgument after recording the failure.
        """
        task = self._task
        with translated():
            record = store.start(
                self._connection,
                task.name,
                task.kind,
                self._triggered_by,
                self._message_id,
                task.plan,
                cutoff=task.cutoff,
                batch_size=task.batch_size,
                silent_after_seconds=self._silent_after_seconds,
            )
        if record is None:
            return "busy"
        self.record = record
        try:
            with translated():
                state = work(self)
                if state != "lost" and not store.end(self._connection, record.id, state, self.remark):
                    state = "lost"
        except (StoreError, InvalidArgument) as error:
            logger.error(
                "maintenance_failed task=%s run_id=%s error_class=%s error=%s",
                task.name,
                record.id,
                type(error).__name__,
                error,
            )
            self._record_failure(error)
            raise
        if self.rows or state != "succeeded":
            logger.info(
                "maintenance_ended task=%s run_id=%s state=%s rows=%d", task.name, record.id, state, self.rows
            )
        return state

    def steps(self, work: Work) -> str:
        """Step after step until nothing is left (succeeded), the budget, `stop` or an operator ends it
        (paused), it is cancelled, or it was lost.
        """
        while True:
            if self._over():
                return "paused"
            if time.monotonic() - self._looked_at >= work.gates_every_seconds:
                waited = self._wait_at_gates()
                if waited != "go":
                    return waited
                self._looked_at = time.monotonic()
            began = time.monotonic()
            try:
                with translated(), self._connection.transaction():
                    done = work.step()
                    asked = store.beat(
                        self._connection,
                        self.record.id,
                        rows_done=done.rows,
                        cursor=done.cursor,
                        batch_size=done.size,
                    )
                    if asked == "lost":
                        raise _TakenOver  # the rows come back: whoever has the run now counts them
            except _TakenOver:
                return "lost"
            except StoreError as error:
                work.failed(error)
                continue
            took = time.monotonic() - began
            work.committed(took)
            self._count(done.rows)
            if asked == "cancel":
                return "cancelled"
            if not done.more:
                return "succeeded"
            if asked == "pause":
                return "paused"
            ratio = self._task.pause_ratio if work.rest_ratio is None else work.rest_ratio
            if ratio is not None:
                self.rest(max(work.least_rest_seconds, took * ratio * (2 if self._slow else 1)))

    def alone(self, act: Callable[[], int]) -> str:
        """Work that has transactions of its own, and no step to go on from. act: how many it changed."""
        rows = act()
        with translated():
            store.beat(self._connection, self.record.id, rows_done=rows)
        self._count(rows)
        return "succeeded"

    def rest(self, seconds: float) -> None:
        """Wait, unless it is stopped."""
        self._stop.wait(seconds)

    def _over(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self._deadline

    def _count(self, rows: int) -> None:
        self.rows += rows
        self._on_progress(rows, None)

    def _wait_at_gates(self) -> str:
        """Wait until every gate is open: go, paused (the time is over), cancelled or lost."""
        task = self._task
        if task.gates is None:
            return "go"
        pause, longest = GATE_WAIT_SECONDS
        while True:
            verdict = judge(store.gates(self._connection, task.table), task.gates, self._held_by)
            self._slow = verdict.slow
            if verdict.closed is None:
                if self._held_by is not None:
                    logger.info("maintenance_goes_on task=%s gate=%s", task.name, self._held_by)
                self._held_by = None
                return "go"
            if verdict.closed != self._held_by:
                logger.info(
                    "maintenance_waits task=%s gate=%s: %s", task.name, verdict.closed, verdict.reason
                )
            self._held_by = verdict.closed
            began = time.monotonic()
            self.rest(pause)
            asked = store.beat(
                self._connection,
                self.record.id,
                gate=verdict.closed,
                throttled_seconds=time.monotonic() - began,
            )
            self._on_progress(0, verdict.closed)
            if asked != "go":
                return ENDS[asked]
            if self._over():
                return "paused"
            pause = min(longest, pause * 2)

    def _record_failure(self, error: Exception) -> None:
        try:
            with translated():
                store.end(self._connection, self.record.id, "failed", str(error))
        except StoreError as second:  # the connection is gone: the run is taken over by the next one
            logger.warning(
                "maintenance_not_recorded run_id=%s error_class=%s", self.record.id, type(second).__name__
            )

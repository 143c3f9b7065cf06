"""One run of a backfill: prepare, walk the source batch by batch, settle, verify (SPEC M8).

A step is one transaction: rows, ledger, counts and cursor are written together, by the run loop of all
maintenance (run.py), so a run that is killed at any statement loses nothing and repeats nothing. Beside a
busy queue the batches are short and far apart; beside an idle one they are long. A row that refuses is found
by halves, explained in the ledger, and holds up none behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from threading import Event
from typing import Any

from packhorse.schedules.backfill.acts import check, verified
from packhorse.schedules.backfill.base import (
    ONE_TRANSACTION_ROWS,
    SILENT_SECONDS,
    Backfill,
    BatchResult,
    CheckFinding,
    quickly,
    refuse,
    refuse_run_of_drop,
)
from packhorse.schedules.backfill.beats import Beats
from packhorse.schedules.backfill.guard import look
from packhorse.schedules.maintenance.batches import (
    BATCH_TIMEOUT_SECONDS,
    QUERY_CANCELED,
    BatchWork,
    next_size,
)
from packhorse.schedules.maintenance.policies import Gates
from packhorse.schedules.maintenance.run import ENDS, Run, Step, Task
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreError, StoreRejected
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store import maintenance as maintenance_store
from packhorse.worker.store.backfill_tables import SourceTable

logger = logging.getLogger("packhorse.backfill")

FIRST_BATCH = 1000
#: How long a batch should take, and how long the rest after it, as a share of that: beside an idle queue, and
#: beside one that has work. A claim that comes meanwhile shares the processors with the batch, and its commit
#: writes the batch's log to the disk: so one claim in twelve meets a batch, and a short one.
IDLE = (0.35, 0.0)
BUSY = (0.008, 12.0)
#: Time makes a batch no smaller than this: below it nearly all of the time is that of the statements, and not
#: of the rows, so still fewer rows would take as long.
LEAST_ROWS = 100
#: How long writers of a source that is changed in place wait for the rows of a batch.
IN_PLACE_SECONDS = 0.04
#: Above so many rows, the total is the planner's estimate.
COUNTED_ROWS = 5_000_000
#: Rows that refuse; so many end the run, for then the cause is not in the rows.
MOST_REFUSED = 1000
#: What a value is refused with: it fits no type, no column, no index.
OF_A_VALUE = ("22", "54")
#: Deadline of one statement that beats for itself.
LONG_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: succeeded, paused, cancelled, lost, or busy (another process works on it). findings:
    of the verification.
    """

    state: str
    rows: int
    findings: tuple[CheckFinding, ...] = ()


class BackfillRun(BatchWork):
    """Runs a backfill in the calling thread. Options beside these are those of Run (stop, on_progress,
    message_id).

    open_connection: of the role that owns the tables, in autocommit. budget_seconds: it pauses after that,
    and the next run goes on.
    """

    least_rest_seconds = 0.001
    gates_every_seconds = 0.25

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        backfill: Backfill,
        gates: Gates,
        *,
        operator: str,
        reason: str | None = None,
        budget_seconds: float = inf,
        stop: Event | None = None,
        silent_after_seconds: float = SILENT_SECONDS,
        **options: Any,
    ) -> None:
        self._open = open_connection
        self._backfill = backfill
        self._gates = gates
        self._operator = operator
        self._reason = reason
        self._budget_seconds = budget_seconds
        self._stop = stop or Event()
        self._options = {"silent_after_seconds": silent_after_seconds, "triggered_by": operator, **options}
        self._findings: tuple[CheckFinding, ...] = ()
        self._refused = 0

    def run(self) -> RunResult:
        """Work until the source is copied and verified, or something ends it before. Raises InvalidArgument
        (the check), StoreError.
        """
        connection = self._connection = self._open()
        try:
            with translated():
                idle = self._backfill.nothing_to_do(connection)
                if idle is not None:
                    return RunResult("succeeded", 0, (CheckFinding("ok", "done", idle),))
                self._source = self._begin()
            task = Task(
                self._backfill.task,
                "backfill",
                {"source": self._source.label, "settings": self._backfill.settings},
                batch_size=FIRST_BATCH,
                budget_seconds=self._budget_seconds,
                gates=self._gates,
                table=self._source.label,
            )
            run = Run(connection, task, stop=self._stop, **self._options)
            state = run.execute(self._life)
            return RunResult(state, run.rows, self._findings)
        finally:
            connection.close()

    def _begin(self) -> SourceTable:
        """The source, after the check. The backfill is declared; nothing else is changed."""
        refuse_run_of_drop(self._backfill)
        refuse(check(self._connection, self._backfill), f"the backfill {self._backfill.name} cannot run")
        source = self._backfill.find_source(self._connection)
        assert source is not None, "the check refuses a source that is not there"
        found = store.declare(
            self._connection, self._backfill.name, source.label, self._backfill.settings, self._operator
        )
        if found["is_paused"]:
            raise InvalidArgument(
                f"name: the backfill {self._backfill.name} is paused",
                field="name",
                hint=f"packhorse backfill resume {self._backfill.name}",
            )
        return source

    def _life(self, run: Run) -> str:
        """From the first statement to the verification, as the run that has the task."""
        self._run = run
        self._cursor = run.record.cursor
        with translated():
            self._note_beginning()
        quickly(self._connection, lambda: self._backfill.prepare(self._connection, self._source))
        state = run.steps(self)
        if state == "succeeded":
            state = self._settle()
        if state == "succeeded":
            state = self._verify()
        return state

    def _note_beginning(self) -> None:
        record, name, connection = self._run.record, self._backfill.name, self._connection
        store.move(
            connection,
            name,
            "running",
            self._operator,
            self._reason,
            {"run_id": record.id, "goes_on": record.resumed > 0},
        )
        estimated = self._source.estimated_rows > COUNTED_ROWS
        total = int(self._source.estimated_rows) if estimated else tables.count(connection, self._source)
        store.note_total(connection, name, total, estimated)
        maintenance_store.expect(connection, record.id, total)
        first = (
            max(1, total)
            if total <= ONE_TRANSACTION_ROWS and not self._backfill.changes_in_place
            else FIRST_BATCH
        )
        self._size = min((record.batch_size if record.cursor else None) or first, self._backfill.most_rows)

    def _settle(self) -> str:
        """What follows the walk, with signs of life."""
        for stage in self._backfill.settle(self._source):
            logger.info("backfill_stage backfill=%s stage=%s", self._backfill.name, stage.name)
            asked = self._beating(lambda act=stage.act: act(self._connection))  # type: ignore[misc]
            if asked is not None:
                return ENDS[asked]
        return "succeeded"

    def _verify(self) -> str:
        with translated():
            store.move(self._connection, self._backfill.name, "copied", self._operator)
            look(self._connection, self._backfill, self._source)
        asked = self._beating(self._compare)
        if asked is not None:
            return ENDS[asked]
        refused = [finding.text for finding in self._findings if finding.level == "refused"]
        self._run.remark = "; ".join(refused) or None
        return "succeeded"

    def _compare(self) -> None:
        self._findings = tuple(verified(self._connection, self._backfill, self._source, self._operator))

    def _beating(self, act: Callable[[], None]) -> str | None:
        """Do it; None, or what was asked meanwhile (cancel, pause, lost), which has ended it."""
        self._connection.deadline_seconds = LONG_SECONDS
        with Beats(self._open, self._run.record.id, self._connection, self._stop) as beats:
            try:
                with translated():
                    maintenance_store.long_statements(self._connection)
                    act()
            except StoreError as error:
                if beats.asked is None or error.sqlstate != QUERY_CANCELED:
                    raise
                return beats.asked
        return None

    def step(self) -> Step:
        """One batch: its rows, its explanations, its counts."""
        connection = self._connection
        maintenance_store.batch_timeouts(connection, BATCH_TIMEOUT_SECONDS)
        maintenance_store.without_wait(connection)
        batch = self._batch = tables.next_batch(connection, self._source, self._cursor, self._size)
        if batch is None:
            self._copied = BatchResult(0)
            return Step(0, more=False)
        if self._backfill.needs_platform:  # statements of ours, which join by keys
            maintenance_store.by_key(connection)
        self._copied = copied = self._backfill.copy(connection, batch)
        store.note_step(
            connection, self._backfill.name, self._run.record.id, copied.rows, copied.skipped, batch.rows
        )
        return Step(batch.rows, more=batch.rows >= self._size, cursor=batch.through, size=self._size)

    def committed(self, took_seconds: float) -> None:
        """Where the next batch begins, how large it is, how long the rest before it."""
        self._conflicts = 0
        for key in self._copied.nulled:
            logger.warning(
                "backfill_value_nulled backfill=%s source=%s row=%s",
                self._backfill.name,
                self._source.label,
                key,
            )
        if self._batch is None:
            return
        self._cursor = self._batch.through
        target, self.rest_ratio = BUSY if store.queue_is_busy(self._connection) else IDLE
        if self._backfill.changes_in_place:
            target = min(target, IN_PLACE_SECONDS)
        if self._batch.rows >= self._size:
            fitting = next_size(self._size, took_seconds, self._backfill.most_rows, target)
            self._size = max(fitting, min(self._size, LEAST_ROWS))

    def of_a_row(self, error: StoreError) -> bool:
        return super().of_a_row(error) or (error.sqlstate or "").startswith(OF_A_VALUE)

    def pass_by(self, error: StoreError) -> None:
        """The next row refuses: it goes into the ledger with what the database says, and the cursor behind
        it.
        """
        self._refused += 1
        with translated(), self._connection.transaction():
            batch = tables.next_batch(self._connection, self._source, self._cursor, 1)
            if batch is None:
                return
            row = tables.first_key(self._connection, batch)
            where = f"row {row} of {self._source.label}"
            if not self._backfill.needs_platform or self._refused >= MOST_REFUSED:
                raise StoreRejected(f"{where} refuses: {error}") from error
            tables.explain(
                self._connection, self._backfill.name, batch, f"refused by the database, {error.sqlstate}"
            )
            store.note_step(self._connection, self._backfill.name, self._run.record.id, 0, 1, 1)
            maintenance_store.beat(
                self._connection, self._run.record.id, rows_done=1, cursor=batch.through, batch_size=1
            )
        logger.warning(
            "backfill_row_refused backfill=%s source=%s row=%s code=%s",
            self._backfill.name,
            self._source.label,
            row,
            error.sqlstate,
        )
        self._cursor = batch.through

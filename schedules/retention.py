"""One run of a retention policy: batches by key in short transactions, at the database's pace (SPEC M6).

Rows, cursor and progress change in one transaction per batch: a run that is killed anywhere goes on where it was.
The batch grows and shrinks towards TARGET_SECONDS and halves when a lock or the time runs out. Between batches the
run rests, looks at the health gates, and hears whether somebody wants it to end. A row that refuses to go holds up none
behind it; the run then ends as failed. The cutoff is read once, from the
database clock, and kept: what a dry run counts is what the run meets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import Any

from packhorse.schedules.gates import judge
from packhorse.schedules.policies import Gates, Retention
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreConflict, StoreError, StoreRejected
from packhorse.worker.store import maintenance as store
from packhorse.worker.suggest import did_you_mean

logger = logging.getLogger("packhorse.maintenance")

#: How the types begin that a policy's column may have.
TIME_TYPES = ("timestamp", "date")
TARGET_SECONDS = 0.35
FIRST_BATCH = 500
BATCH_TIMEOUT_SECONDS = 10.0
LEAST_REST_SECONDS = 0.01
GATE_WAIT_SECONDS = (0.5, 5.0)
#: Lock conflicts in a row after which a run fails instead of trying on.
MOST_CONFLICTS = 20
QUERY_CANCELED = "57014"  # the batch's statement_timeout
#: Rows that refuse (a foreign key restricts them, a trigger keeps them or raises) are passed by, and said at the end; so many end the run.
MOST_REFUSED = 1000
RAISED = "P0001"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do now: rows and bytes that it meets, the statement of each batch in words, warnings."""

    task: str
    table: str
    action: str
    cutoff: datetime
    rows: int
    bytes: int
    estimated_table_rows: int
    warnings: tuple[str, ...]


class _Lost(Exception):
    """Somebody else has taken the run over."""


def resolve(connection: DeadlineConnection, policy: Retention) -> tuple[store.Target, dict[str, Any], list[str]]:
    """The policy against the real table: target, facts, warnings. Raises InvalidArgument that names the field."""
    facts = store.table_facts(connection, policy.table, policy.column)
    if facts is None:
        raise InvalidArgument(f"table: there is no table {policy.table!r}", field="table", hint=_near(policy.table, store.table_names(connection)))
    if facts["column_type"] is None:
        raise InvalidArgument(
            f"column: {policy.table} has no column {policy.column!r}", field="column", hint=_near(policy.column, facts["columns"] or [])
        )
    if not facts["column_type"].startswith(TIME_TYPES):
        raise InvalidArgument(f"column: {policy.column} is {facts['column_type']}, not a time", field="column")
    if facts["is_queue"]:  # whoever wants less of them lets messages expire
        raise InvalidArgument(
            f"table: {policy.table} holds live messages only: none of them may be lost",
            field="table",
            hint="`expires_at` ends what is not worth doing any more; `keep_done` is how long finished ones stay.",
        )
    if facts["has_children"]:  # a key, or a ctid, is unique in each of them, not over all
        raise InvalidArgument(
            f"table: {policy.table} has child tables (inherits): rows of theirs with the same key would go, too",
            field="table",
            hint="Make a policy for each child, or partition the table.",
        )
    keys = tuple(facts["key_columns"] or ())
    if not keys and facts["relkind"] == "p":
        raise InvalidArgument(f"table: {policy.table} is partitioned and has no primary key: its batches could not be told apart", field="table")
    if not facts["may_delete" if policy.assign is None else "may_update"] or not facts["may_update"]:
        raise InvalidArgument(
            f"table: this role may not change {policy.table}", field="table", hint=f"grant select, update, delete on {policy.table} to its role."
        )
    warnings = []
    if not facts["column_indexed"]:
        warnings.append(
            f"{policy.table}.{policy.column} has no index: each batch reads the table. create index concurrently on {policy.table} ({policy.column});"
        )
    types = (facts["column_type"], *(facts["key_types"] or ("tid",)))
    where = policy.where
    if facts["is_dead_letters"] and policy.assign is None:  # whatever a policy says: what blocks a conversation stays until somebody acts (SPEC Q1)
        where = f"not blocks_conversation and ({where})" if where else "not blocks_conversation"
    return store.Target((facts["schema"], facts["name"]), policy.column, keys or ("ctid",), types, where, policy.assign), facts, warnings


def check_visible(connection: DeadlineConnection, policy: Retention, target: store.Target, facts: dict[str, Any], cutoff: datetime) -> None:
    """The policy's own SQL, and that row-level security that hides everything is an error, not "0 rows deleted" (FAILURES 72).

    Raises InvalidArgument that names where or assign, StoreRejected.
    """
    for field, parse in (("where", store.parse_where), ("assign", store.parse_assign)):
        try:
            with translated():
                parse(connection, target, cutoff)
        except (StoreRejected, InvalidArgument) as error:
            if error.sqlstate == "42501":  # not its SQL, but the role
                raise
            raise InvalidArgument(f"{field}: {error}", field=field, hint=f"One SQL expression, of columns of {policy.table}.") from error
    seen = store.probe(connection, target, cutoff)
    if not seen and facts["hidden_by_policies"] and facts["estimated_rows"] > 0:
        raise StoreRejected(
            f"{policy.table}: 0 rows visible of about {facts['estimated_rows']:.0f}: row-level security hides them from this role. "
            f"create policy {policy.name.replace('.', '_')}_maintenance on {policy.table} to packhorse_worker using (true);"
        )


def plan(connection: DeadlineConnection, policy: Retention) -> Plan:
    """Count what a run would meet now. Raises InvalidArgument, StoreRejected; reads the whole range."""
    with translated():
        target, facts, warnings = resolve(connection, policy)
        cutoff = store.cutoff(connection, policy.keep_seconds)
        check_visible(connection, policy, target, facts, cutoff)
        found, size = store.count(connection, target, cutoff)
    action = f"set {policy.assign}" if policy.assign else "delete"
    where = f" and ({target.where.replace(store.CUTOFF, repr(cutoff.isoformat()))})" if target.where else ""
    condition = f"{policy.column} < {cutoff.isoformat()}{where}"
    return Plan(policy.task, policy.table, f"{action} where {condition}", cutoff, found, size, int(facts["estimated_rows"]), tuple(warnings))


class RetentionRun:
    """One run in one thread. on_progress(rows, gate): after each batch and each wait. stop: set from outside to pause the run."""

    def __init__(
        self,
        connection: DeadlineConnection,
        policy: Retention,
        thresholds: Gates,
        *,
        triggered_by: str,
        message_id: int | None = None,
        stop: Event | None = None,
        on_progress: Callable[[int, str | None], Any] = lambda rows, gate: None,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._thresholds = thresholds
        self._triggered_by = triggered_by
        self._message_id = message_id
        self._stop = stop or Event()
        self._on_progress = on_progress
        self._held_by: str | None = None
        self._refused = 0
        self._refusal: str | None = None  # the first of them
        self.rows = 0

    def run(self) -> str:
        """Work until nothing is left (succeeded), the budget or `stop` ends it (paused), it is cancelled, or it was lost.

        "busy" when another process works on the task. Raises StoreError, InvalidArgument after recording the failure.
        """
        policy, connection = self._policy, self._connection
        with translated():
            target, facts, warnings = resolve(connection, policy)
            cutoff = store.cutoff(connection, policy.keep_seconds)
            run = store.start(
                connection,
                policy.task,
                "retention",
                self._triggered_by,
                self._message_id,
                {
                    "table": policy.table,
                    "column": policy.column,
                    "keep_seconds": policy.keep_seconds,
                    "where": policy.where,
                    "assign": policy.assign,
                    "warnings": warnings,
                },
                cutoff=cutoff,
                batch_size=min(FIRST_BATCH, policy.batch),
            )
        if run is None:
            return "busy"
        try:
            with translated():
                check_visible(connection, policy, target, facts, run.cutoff or cutoff)
                state = self._batches(run, target, run.cutoff or cutoff)
                if state == "succeeded":
                    self._say_refused()
                if state != "lost":
                    store.end(connection, run.id, state, self._refusal)
        except (StoreError, InvalidArgument) as error:
            logger.error("maintenance_failed task=%s run_id=%s error_class=%s error=%s", policy.task, run.id, type(error).__name__, error)
            self._record_failure(run.id, error)
            raise
        if self.rows or state != "succeeded":
            logger.info("maintenance_ended task=%s run_id=%s state=%s rows=%d", policy.task, run.id, state, self.rows)
        return state

    def _batches(self, run: store.Run, target: store.Target, cutoff: datetime) -> str:
        """Batch after batch; the state in which the run ends."""
        size = min(run.batch_size or FIRST_BATCH, self._policy.batch)
        cursor, conflicts = run.cursor, 0
        deadline = time.monotonic() + self._policy.budget_seconds
        while True:
            if self._stop.is_set() or time.monotonic() > deadline:
                return "paused"
            waited = self._wait_at_gates(run, deadline)
            if waited != "go":
                return waited
            began = time.monotonic()
            try:
                with translated(), self._connection.transaction():
                    changed, after, met = store.batch(self._connection, target, cutoff, cursor, size, BATCH_TIMEOUT_SECONDS)
                    asked = store.beat(self._connection, run.id, rows_done=changed, cursor=after, batch_size=size)
                    if asked == "lost":
                        raise _Lost  # the rows come back: whoever has the run now counts them
            except _Lost:
                return "lost"
            except StoreError as error:
                if _of_a_row(error):
                    if size > 1:
                        size //= 2
                    else:
                        cursor = self._pass_by(run, target, cutoff, cursor, error)
                    continue
                conflicts += 1
                if not (isinstance(error, StoreConflict) or error.sqlstate == QUERY_CANCELED) or conflicts >= MOST_CONFLICTS:
                    raise
                size = max(1, size // 2)
                self._stop.wait(min(5.0, 0.1 * 2**conflicts))
                continue
            took = time.monotonic() - began
            conflicts = 0
            if met and not changed:
                self._count_refused(met, f"a batch met {met} rows and changed none: row-level security or a trigger keeps them")
            self.rows += changed
            self._on_progress(changed, None)
            if asked == "cancel":
                return "cancelled"
            if met < size:
                return "succeeded"
            cursor = after
            size = next_size(size, took, self._policy.batch)
            self._stop.wait(max(LEAST_REST_SECONDS, took * self._policy.pause_ratio * (2 if self._slow else 1)))

    def _pass_by(self, run: store.Run, target: store.Target, cutoff: datetime, cursor: list[str] | None, error: StoreError) -> list[str] | None:
        """Leave the next row, which refuses, to whoever reads why; the cursor behind it."""
        self._count_refused(1, str(error))
        with translated(), self._connection.transaction():
            _, after, _ = store.batch(self._connection, target, cutoff, cursor, 1, BATCH_TIMEOUT_SECONDS, touch=False)
            store.beat(self._connection, run.id, cursor=after, batch_size=1)
        return after or cursor

    def _count_refused(self, rows: int, why: str) -> None:
        self._refused += rows
        self._refusal = self._refusal or why
        if self._refused >= MOST_REFUSED:
            self._say_refused()

    def _say_refused(self) -> None:
        if self._refusal is not None:
            raise StoreRejected(f"{self._policy.table}: {self._refused} row(s) refused and stay, first: {self._refusal}")

    _slow = False

    def _wait_at_gates(self, run: store.Run, deadline: float) -> str:
        """Wait until every gate is open: go, paused (the time is over), cancelled or lost."""
        pause, longest = GATE_WAIT_SECONDS
        while True:
            verdict = judge(store.gates(self._connection, self._policy.table), self._thresholds, self._held_by)
            self._slow = verdict.slow
            if verdict.closed is None:
                if self._held_by is not None:
                    logger.info("maintenance_goes_on task=%s gate=%s", self._policy.task, self._held_by)
                self._held_by = None
                return "go"
            if verdict.closed != self._held_by:
                logger.info("maintenance_waits task=%s gate=%s: %s", self._policy.task, verdict.closed, verdict.reason)
            self._held_by = verdict.closed
            began = time.monotonic()
            self._stop.wait(pause)
            asked = store.beat(self._connection, run.id, gate=verdict.closed, throttled_seconds=time.monotonic() - began)
            self._on_progress(0, verdict.closed)
            if asked != "go":
                return "cancelled" if asked == "cancel" else "lost"
            if self._stop.is_set() or time.monotonic() > deadline:
                return "paused"
            pause = min(longest, pause * 2)

    def _record_failure(self, run_id: int, error: Exception) -> None:
        try:
            with translated():
                store.end(self._connection, run_id, "failed", str(error))
        except StoreError as second:  # the connection is gone: the run is taken over by the next one
            logger.warning("maintenance_not_recorded run_id=%s error_class=%s", run_id, type(second).__name__)


def _of_a_row(error: StoreError) -> bool:
    """Does one row refuse what its neighbours may allow: a constraint, or a trigger that raises?"""
    return error.sqlstate is not None and (error.sqlstate.startswith("23") or error.sqlstate == RAISED)


def next_size(size: int, took_seconds: float, most: int) -> int:
    """The batch after one of `size` that took so long: towards TARGET_SECONDS, by half at most up, to a half down."""
    factor = TARGET_SECONDS / max(took_seconds, 0.001)
    return max(1, min(most, int(size * min(1.5, max(0.5, factor))) + (1 if factor > 1 else 0)))


def _near(name: str, known: list[str]) -> str:
    return did_you_mean(name, known, "Check the schema and the search_path.")

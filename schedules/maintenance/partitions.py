"""The life of partitions: made ahead, detached when old, exported if asked, dropped after a grace (SPEC M5).

Making and dropping are separate tasks with separate schedules and transactions: a drop that cannot have its
lock never keeps the next month from being there (FAILURES 64). Each step is one short transaction with a lock
timeout of a second, tried again; a detach runs concurrently, outside any transaction. Bounds come from the
catalogue, never from names. No default partition: one that is found in an adopted table is emptied period by
period and reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from packhorse.schedules.maintenance.periods import (
    lower_bound,
    partition_name,
    period_start,
    runway_seconds,
    uncovered,
    upper_bound,
)
from packhorse.schedules.maintenance.policies import Partitions
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import (
    InvalidArgument,
    StoreConflict,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from packhorse.worker.store import partitions as store

logger = logging.getLogger("packhorse.maintenance")

TRIES = 5
RETRY_SECONDS = 0.5
DETACH_LOCK_TIMEOUT = "5s"
#: Our own tables belong to whoever migrated; these functions work with the owner's rights for everybody else.
MADE_BY_FUNCTION = {"message_archive": "archive_make", "messages": "messages_make"}
DROPPED_BY_FUNCTION = frozenset({"message_archive"})


@dataclass(frozen=True, slots=True)
class PartitionStep:
    """One thing to be done: make, detach, export, drop or drain, the partition, its bounds, and why."""

    action: str
    partition: str
    lower: str
    upper: str
    reason: str
    estimated_rows: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A partitioned table as it stands. runway_seconds: until inserts find no partition, counted without a
    gap.
    """

    table: str
    partitions: int
    runway_seconds: float
    default_partition: str | None
    oldest: str | None
    problem: str | None


class PartitionKeeper:
    """The steps of one policy on one connection (autocommit, of the table's owner where steps change the
    table).
    """

    def __init__(self, connection: DeadlineConnection, policy: Partitions, stop: Event | None = None) -> None:
        self._connection = connection
        self._policy = policy
        self._stop = stop or Event()

    # -- looking ------------------------------------------------------------------------------------
    def status(self) -> Status:
        """How the table stands. Raises InvalidArgument, StoreError."""
        with translated():
            parent = self._parent()
            found = store.partitions(self._connection, self._policy.table)
        default = next((p.table for p in found if p.is_default), None)
        return Status(
            self._policy.table,
            sum(not p.is_default for p in found),
            runway_seconds(found, parent.now),
            default,
            found[0].lower if found and not found[0].is_default else None,
            f"it has a default partition {default}: `packhorse partitions drain {self._policy.name}`"
            if default
            else None,
        )

    def plan(self) -> list[PartitionStep]:
        """Every step that would be done now, in order: make, then detach, export and drop. Raises
        InvalidArgument, StoreError.
        """
        with translated():
            parent = self._parent()
            found = store.partitions(self._connection, self._policy.table)
            return [*self._missing(parent, found), *self._too_old(parent, found), *self._over(parent)]

    # -- making -------------------------------------------------------------------------------------
    def can_make(self) -> bool:
        """May this role make partitions of the table, itself or through a function of ours? Raises
        InvalidArgument, StoreError.
        """
        with translated():
            return self._parent().owned or self._policy.table in MADE_BY_FUNCTION

    def missing(self, ahead: int | None = None) -> list[PartitionStep]:
        """What make() would make now: of the current period and `ahead` more, those of the policy at most and
        by default.
        """
        with translated():
            return self._missing(
                self._parent(), store.partitions(self._connection, self._policy.table), ahead
            )

    def make(self) -> int:
        """Make what is missing; how many are new. One partition per transaction; what is there stays when a
        later one fails.
        """
        with translated():
            parent = self._parent()
            if not parent.owned and self._policy.table in MADE_BY_FUNCTION:
                return store.make_as_owner(
                    self._connection, MADE_BY_FUNCTION[self._policy.table], self._policy.ahead
                )
            self._need_owner(parent)
            steps = self._missing(parent, store.partitions(self._connection, self._policy.table))
        failures = _Failures()
        for step in steps:
            with failures:
                self._retried(
                    step,
                    partial(store.create, self._connection, parent, step.partition, step.lower, step.upper),
                )
                logger.info("partition_made table=%s partition=%s", self._policy.table, step.partition)
        failures.report()
        with translated():
            for step in self._missing(parent, store.partitions(self._connection, self._policy.table)):
                raise StoreRejected(
                    f"{self._policy.table}: cannot make {step.partition}: a table of this name stands there; rename or attach it"
                )
        return len(steps)

    def _missing(
        self, parent: store.Parent, found: list[store.Partition], most: int | None = None
    ) -> list[PartitionStep]:
        every, ahead = (
            self._policy.every,
            self._policy.ahead if most is None else min(most, self._policy.ahead),
        )
        ranges = [(lower_bound(p), upper_bound(p)) for p in found if not p.is_default]
        steps = []
        for shift in range(ahead + 1):
            period = (period_start(parent.now, every, shift), period_start(parent.now, every, shift + 1))
            for start, end in uncovered(ranges, *period):
                if end > parent.now:
                    name = partition_name(
                        parent.name, start, every, whole=(end - start) * 2 > period[1] - period[0]
                    )
                    steps.append(
                        PartitionStep(
                            "make", name, start.isoformat(), end.isoformat(), f"{ahead} {every}s ahead"
                        )
                    )
        return steps

    # -- dropping -----------------------------------------------------------------------------------
    def drop(self) -> int:
        """Detach what is too old, export and drop what was detached long enough ago; how many were
        dropped.
        """
        with translated():
            parent = self._parent()
            if not parent.owned and self._policy.table in DROPPED_BY_FUNCTION:
                refuse_unkept(self._connection, self._policy)
                dropped = 0
                while (more := store.drop_archive_as_owner(self._connection)) and not self._stop.is_set():
                    dropped += more  # a few at a time: after a long absence there are many
                return dropped + more
        failures = _Failures()
        self._detach(failures)
        with translated():
            over = self._over(parent)
        dropped, kept = 0, set()
        for step in over:
            if step.partition in kept:  # its export failed
                continue
            kept.add(step.partition)
            with failures:
                if step.action == "export":
                    self._export(parent, step)
                else:
                    self._drop_one(parent, step)
                    dropped += 1
                kept.remove(step.partition)
        failures.report()
        return dropped

    def detach(self) -> int:
        """Detach what is too old, and drop nothing: the grace begins. How many were detached."""
        failures = _Failures()
        count = self._detach(failures)
        failures.report()
        return count

    def _detach(self, failures: _Failures) -> int:
        with translated():
            parent = self._parent()
            self._need_owner(parent)
            found = store.partitions(self._connection, self._policy.table)
            old = self._too_old(parent, found)
        by_name = {p.table: p for p in found}
        count = 0
        for step in old:
            with failures:
                self._retried(
                    step,
                    partial(
                        store.detach,
                        self._connection,
                        parent,
                        by_name[step.partition],
                        lock_timeout=DETACH_LOCK_TIMEOUT,
                    ),
                    in_transaction=False,
                )
                logger.info("partition_detached table=%s partition=%s", self._policy.table, step.partition)
                count += 1
        return count

    def _too_old(self, parent: store.Parent, found: list[store.Partition]) -> list[PartitionStep]:
        keep = self._policy.keep
        if self._policy.keep_setting:
            keep = max(keep, store.longest_keep_done(self._connection) or 0)
        cutoff = period_start(parent.now, self._policy.every, -keep)
        return [
            PartitionStep(
                "detach",
                p.table,
                str(p.lower),
                str(p.upper),
                f"older than {keep} {self._policy.every}s",
                round(p.estimated_rows),
            )
            for p in found
            if not p.is_default and (upper_bound(p) <= cutoff or p.detach_pending)
        ]

    def _over(self, parent: store.Parent) -> list[PartitionStep]:
        steps = []
        for row in store.droppable(self._connection, parent, self._policy.grace_seconds):
            bounds = (row["lower_bound"], row["upper_bound"])
            if self._policy.export_dir is not None and row["exported_at"] is None:
                steps.append(
                    PartitionStep("export", row["partition"], *bounds, f"to {self._policy.export_dir}")
                )
            steps.append(
                PartitionStep(
                    "drop", row["partition"], *bounds, f"detached {row['detached_at']:%Y-%m-%d %H:%M}"
                )
            )
        return steps

    def _export(self, parent: store.Parent, step: PartitionStep) -> None:
        with translated():
            try:
                path, rows, digest = store.export(
                    self._connection, parent, step.partition, Path(self._policy.export_dir or ".")
                )
            except OSError as error:
                raise InvalidArgument(
                    f"export_dir: {error.strerror or error}: {self._policy.export_dir}", field="export_dir"
                ) from error
        logger.info(
            "partition_exported table=%s partition=%s path=%s rows=%d sha256=%s",
            self._policy.table,
            step.partition,
            path,
            rows,
            digest,
        )

    def _drop_one(self, parent: store.Parent, step: PartitionStep) -> None:
        with translated():
            if store.is_attached(self._connection, step.partition):
                raise StoreRejected(f"{step.partition}: is attached again: it stays")
        self._retried(step, partial(store.drop, self._connection, parent, step.partition))
        logger.info("partition_dropped table=%s partition=%s", self._policy.table, step.partition)

    # -- an adopted table with a default partition --------------------------------------------------
    def drain_default(self) -> int:
        """Move the rows of the default partition into partitions of their own, a period per transaction; how
        many rows.

        Readers go on; writers wait for the transaction of each period. Raises StoreError.
        """
        moved = 0
        while not self._stop.is_set():
            with translated():
                parent = self._parent()
                self._need_owner(parent)
                default = next(
                    (p for p in store.partitions(self._connection, self._policy.table) if p.is_default), None
                )
                oldest, left = (
                    store.default_span(self._connection, default, self._policy.column)
                    if default
                    else (None, 0)
                )
            if left and oldest is None:
                raise StoreRejected(
                    f"{self._policy.table}: {left} rows in {default.table if default else None} have no {self._policy.column}: no other "
                    "partition can hold them. Give them a time or delete them before you drop it"
                )
            if default is None or oldest is None:
                return moved
            start, end = (period_start(oldest, self._policy.every, shift) for shift in (0, 1))
            step = PartitionStep(
                "drain",
                partition_name(parent.name, start, self._policy.every),
                start.isoformat(),
                end.isoformat(),
                f"{left} rows left",
            )
            moved += self._retried(
                step,
                partial(
                    store.create,
                    self._connection,
                    parent,
                    step.partition,
                    step.lower,
                    step.upper,
                    fill_from=default,
                    column=self._policy.column,
                ),
            )
            logger.info(
                "partition_drained table=%s partition=%s rows=%d", self._policy.table, step.partition, moved
            )
        return moved

    # -- tools --------------------------------------------------------------------------------------
    def _parent(self) -> store.Parent:
        parent = store.parent(self._connection, self._policy.table, self._policy.column)
        if parent is None:
            raise InvalidArgument(
                f"table: there is no partitioned table {self._policy.table!r}", field="table"
            )
        if not parent.fits:
            raise InvalidArgument(
                f"column: {self._policy.table} is not range-partitioned by the time {self._policy.column} alone",
                field="column",
            )
        return parent

    def _need_owner(self, parent: store.Parent) -> None:
        if not parent.owned:
            raise StoreRejected(
                f"{self._policy.table}: only its owner can change its partitions: set maintenance_url to a connection of that role, "
                "or grant the role to this one"
            )

    def _retried(
        self, step: PartitionStep, act: Callable[[], int | None], *, in_transaction: bool = True
    ) -> int:
        """Do one step; a lock that cannot be had is tried again a few times, with growing pauses."""
        for attempt in range(1, TRIES + 1):
            try:
                with translated():
                    if not in_transaction:
                        act()
                        return 0
                    with self._connection.transaction():
                        return act() or 0
            except StoreConflict as error:
                if attempt == TRIES or self._stop.is_set():
                    raise
                logger.info(
                    "partition_waits table=%s partition=%s attempt=%d error=%s",
                    self._policy.table,
                    step.partition,
                    attempt,
                    error,
                )
                self._stop.wait(RETRY_SECONDS * 2**attempt)
            except StoreError as error:
                # the table, or its range, is there: another keeper was faster
                if error.sqlstate in ("42P07", "42P17") and step.action == "make":
                    return 0
                raise
        return 0


def refuse_unkept(connection: DeadlineConnection, policy: Partitions) -> None:
    """Raise StoreRejected when the function that drops the archive for others would drop what this policy
    wants exported or kept.

    It keeps the longest keep_done of the queues and a day more: what is shipped, not what somebody has
    configured.
    """
    kept = store.longest_keep_done(connection) or 0
    asked = [
        field
        for field, more in (
            ("export_dir", policy.export_dir is not None),
            ("grace", policy.grace_seconds > 86400.0),
            ("every", policy.every != "day"),
            ("keep", policy.source != "packhorse" and policy.keep > kept),
        )
        if more
    ]
    if asked:
        raise StoreRejected(
            f"{', '.join(asked)}: only the owner of {policy.table} can do that: set maintenance_url to a connection of that role "
            f"(without it the archive is dropped after the longest keep_done of the queues, {kept} days)"
        )


class _Failures:
    """Steps that failed while the others went on: the first error is raised at the end."""

    def __init__(self) -> None:
        self._first: StoreError | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, StoreError) or isinstance(error, StoreUnavailable):
            return False
        if self._first is None:
            self._first = error
        return True

    def report(self) -> None:
        if self._first is not None:
            raise self._first

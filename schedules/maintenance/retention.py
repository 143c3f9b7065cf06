"""One run of a retention policy: batches by key in short transactions, at the database's pace (SPEC M6).

A batch grows and shrinks towards a length of time, and halves when a lock or the time runs out (batches.py).
A row that refuses to go holds up none behind it; the run then ends as failed. The cutoff is read once, from
the database clock, and kept: what a dry run counts is what the run meets. The loop around is run.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.schedules.maintenance.batches import BATCH_TIMEOUT_SECONDS, BatchWork, next_size
from packhorse.schedules.maintenance.policies import Gates, Retention
from packhorse.schedules.maintenance.run import Run, Step, Task
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreError, StoreRejected
from packhorse.worker.store import maintenance as store
from packhorse.worker.suggest import did_you_mean

#: How the types begin that a policy's column may have.
TIME_TYPES = ("timestamp", "date")
FIRST_BATCH = 500
#: Rows that refuse (a foreign key restricts them, a trigger keeps them or raises) are passed by, and said at
#: the end; so many end the run.
MOST_REFUSED = 1000


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a run would do now: rows and bytes that it meets, the statement of each batch in words,
    warnings.
    """

    task: str
    table: str
    action: str
    cutoff: datetime
    rows: int
    bytes: int
    estimated_table_rows: int
    warnings: tuple[str, ...]


def resolve(
    connection: DeadlineConnection, policy: Retention
) -> tuple[store.Target, dict[str, Any], list[str]]:
    """The policy against the real table: target, facts, warnings. Raises InvalidArgument that names the
    field.
    """
    facts = store.table_facts(connection, policy.table, policy.column)
    if facts is None:
        raise InvalidArgument(
            f"table: there is no table {policy.table!r}",
            field="table",
            hint=_near(policy.table, store.table_names(connection)),
        )
    if facts["column_type"] is None:
        raise InvalidArgument(
            f"column: {policy.table} has no column {policy.column!r}",
            field="column",
            hint=_near(policy.column, facts["columns"] or []),
        )
    if not facts["column_type"].startswith(TIME_TYPES):
        raise InvalidArgument(
            f"column: {policy.column} is {facts['column_type']}, not a time", field="column"
        )
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
        raise InvalidArgument(
            f"table: {policy.table} is partitioned and has no primary key: its batches could not be told apart",
            field="table",
        )
    if not facts["may_delete" if policy.assign is None else "may_update"] or not facts["may_update"]:
        raise InvalidArgument(
            f"table: this role may not change {policy.table}",
            field="table",
            hint=f"grant select, update, delete on {policy.table} to its role.",
        )
    warnings = []
    if not facts["column_indexed"]:
        warnings.append(
            f"{policy.table}.{policy.column} has no index: each batch reads the table. create index concurrently on {policy.table} ({policy.column});"
        )
    types = (facts["column_type"], *(facts["key_types"] or ("tid",)))
    where = policy.where
    # whatever a policy says: what blocks a conversation stays until somebody acts (SPEC Q1)
    if facts["is_dead_letters"] and policy.assign is None:
        where = _and("not blocks_conversation", where)
    # a copy that a backfill still compares with its source stays until the clean-up (SPEC C2)
    if facts["has_copies"] and policy.assign is None:
        where = _and(connection.names.of("not platform.is_unfinished_copy(metadata)"), where)
    return (
        store.Target(
            (facts["schema"], facts["name"]), policy.column, keys or ("ctid",), types, where, policy.assign
        ),
        facts,
        warnings,
    )


def _and(condition: str, where: str | None) -> str:
    return f"{condition} and ({where})" if where else condition


def check_visible(
    connection: DeadlineConnection,
    policy: Retention,
    target: store.Target,
    facts: dict[str, Any],
    cutoff: datetime,
) -> None:
    """The policy's own SQL, and that row-level security that hides everything is an error, not "0 rows
    deleted" (FAILURES 72).

    Raises InvalidArgument that names where or assign, StoreRejected.
    """
    for field, parse in (("where", store.parse_where), ("assign", store.parse_assign)):
        try:
            with translated():
                parse(connection, target, cutoff)
        except (StoreRejected, InvalidArgument) as error:
            if error.sqlstate == "42501":  # not its SQL, but the role
                raise
            raise InvalidArgument(
                f"{field}: {error}", field=field, hint=f"One SQL expression, of columns of {policy.table}."
            ) from error
    seen = store.probe(connection, target, cutoff)
    if not seen and facts["hidden_by_policies"] and facts["estimated_rows"] > 0:
        raise StoreRejected(
            f"{policy.table}: 0 rows visible of about {facts['estimated_rows']:.0f}: row-level security hides them from this role. "
            f"create policy {policy.name.replace('.', '_')}_maintenance on {policy.table} to packhorse_worker using (true);"
        )


def plan(connection: DeadlineConnection, policy: Retention) -> RetentionPlan:
    """Count what a run would meet now. Raises InvalidArgument, StoreRejected; reads the whole range."""
    with translated():
        target, facts, warnings = resolve(connection, policy)
        cutoff = store.cutoff(connection, policy.keep_seconds)
        check_visible(connection, policy, target, facts, cutoff)
        found, size = store.count(connection, target, cutoff)
    action = f"set {policy.assign}" if policy.assign else "delete"
    where = f" and ({target.where.replace(store.CUTOFF, repr(cutoff.isoformat()))})" if target.where else ""
    condition = f"{policy.column} < {cutoff.isoformat()}{where}"
    return RetentionPlan(
        policy.task,
        policy.table,
        f"{action} where {condition}",
        cutoff,
        found,
        size,
        int(facts["estimated_rows"]),
        tuple(warnings),
    )


class RetentionRun(BatchWork):
    """One run of a policy: its steps are batches. Options are those of Run."""

    def __init__(
        self, connection: DeadlineConnection, policy: Retention, thresholds: Gates, **options: Any
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._thresholds = thresholds
        self._options = options
        self._refused = 0
        self._refusal: str | None = None  # the first of them

    def run(self) -> str:
        """Work until nothing is left (succeeded), the budget or `stop` ends it (paused), it is cancelled, or
        it was lost.

        "busy" when another process works on the task. Raises StoreError, InvalidArgument after recording the
        failure.
        """
        policy = self._policy
        with translated():
            self._target, self._facts, warnings = resolve(self._connection, policy)
            self._cutoff = store.cutoff(self._connection, policy.keep_seconds)
        said = {
            name: getattr(policy, name) for name in ("table", "column", "keep_seconds", "where", "assign")
        }
        task = Task(
            policy.task,
            "retention",
            {**said, "warnings": warnings},
            cutoff=self._cutoff,
            batch_size=min(FIRST_BATCH, policy.batch),
            budget_seconds=policy.budget_seconds,
            gates=self._thresholds,
            table=policy.table,
            pause_ratio=policy.pause_ratio,
        )
        return Run(self._connection, task, **self._options).execute(self._batches)

    def _batches(self, run: Run) -> str:
        self._run = run
        self._cutoff = run.record.cutoff or self._cutoff  # of the run that this one goes on with
        self._cursor = run.record.cursor
        self._size = min(run.record.batch_size or FIRST_BATCH, self._policy.batch)
        with translated():
            check_visible(self._connection, self._policy, self._target, self._facts, self._cutoff)
            if not run.record.resumed:
                store.expect(
                    self._connection,
                    run.record.id,
                    store.estimate(self._connection, self._target, self._cutoff),
                )
        state = run.steps(self)
        if state == "succeeded":
            self._say_refused()
        run.remark = self._refusal
        return state

    def step(self) -> Step:
        """One batch."""
        changed, after, met = store.batch(
            self._connection, self._target, self._cutoff, self._cursor, self._size, BATCH_TIMEOUT_SECONDS
        )
        self._last = changed, after, met
        return Step(changed, more=met >= self._size, cursor=after, size=self._size)

    def committed(self, took_seconds: float) -> None:
        """Where the next batch begins, and how large it is."""
        changed, self._cursor, met = self._last
        self._conflicts = 0
        if met and not changed:
            self._count_refused(
                met, f"a batch met {met} rows and changed none: row-level security or a trigger keeps them"
            )
        if met >= self._size:
            self._size = next_size(self._size, took_seconds, self._policy.batch)

    def pass_by(self, error: StoreError) -> None:
        """Leave the next row, which refuses, to whoever reads why; the cursor behind it."""
        self._count_refused(1, str(error))
        with translated(), self._connection.transaction():
            _, after, _ = store.batch(
                self._connection,
                self._target,
                self._cutoff,
                self._cursor,
                1,
                BATCH_TIMEOUT_SECONDS,
                touch=False,
            )
            store.beat(self._connection, self._run.record.id, cursor=after, batch_size=1)
        self._cursor = after or self._cursor

    def _count_refused(self, rows: int, why: str) -> None:
        self._refused += rows
        self._refusal = self._refusal or why
        if self._refused >= MOST_REFUSED:
            self._say_refused()

    def _say_refused(self) -> None:
        if self._refusal is not None:
            raise StoreRejected(
                f"{self._policy.table}: {self._refused} row(s) refused and stay, first: {self._refusal}"
            )


def _near(name: str, known: list[str]) -> str:
    return did_you_mean(name, known, "Check the schema and the search_path.")

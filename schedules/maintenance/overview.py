"""What maintenance an installation does: the plan of this configuration beside what the scheduler has planned
and what ran, and what a task would do now (SPEC M7).

The database says what is planned and what ran; what a task does is said by packhorse.toml of this process.
"""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.schedules.config import Plan, load_plan, read_plan
from packhorse.schedules.maintenance.partitions import PartitionKeeper
from packhorse.schedules.maintenance.policies import Gates, Partitions, Retention
from packhorse.schedules.maintenance.retention import plan as retention_plan
from packhorse.schedules.maintenance.tasks import find
from packhorse.schedules.registry import Job
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import ConfigError
from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.store import maintenance as store

#: What inspection.maintenance says of a task that the database does not know.
_UNKNOWN: Row = dict.fromkeys(
    (
        "is_planned",
        "cron",
        "next_planned_at",
        "paused_at",
        "problem",
        "rows_total",
        "last_success_at",
        "state",
        "gate",
        "rows_done",
        "rows_expected",
        "rows_per_second",
        "started_at",
        "ended_at",
        "error",
        "cancel_requested_by",
    )
)


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task. kind: retention, partitions or job. does: in words; None when this configuration has no such
    task. cron: as planned, else as configured. row: of inspection.maintenance; all None when the database
    knows nothing of it. is_planned: a scheduler enqueues it at row["next_planned_at"].
    """

    name: str
    kind: str
    table: str | None
    does: str | None
    cron: str | None
    row: Row

    @property
    def is_planned(self) -> bool:
        return bool(self.row["is_planned"])

    @property
    def is_unfinished(self) -> bool:
        return self.row["state"] in ("running", "paused")


@dataclass(frozen=True, slots=True)
class GateLine:
    """A health gate now. value: None when there is nothing to see. at_most: None when it is switched off."""

    name: str
    value: float | None
    at_most: float | None
    known: bool
    detail: str | None

    @property
    def is_closed(self) -> bool:
        return self.value is not None and self.at_most is not None and self.value > self.at_most


@dataclass(frozen=True, slots=True)
class Overview:
    """problems: of the configuration. has_worker: some live process takes the queue of maintenance."""

    tasks: tuple[TaskLine, ...]
    gates: tuple[GateLine, ...]
    problems: tuple[str, ...]
    has_worker: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run of a task would do now. count: rows or partitions; None when nobody can say. lines: each
    step, where there are several."""

    sentence: str
    count: int | None
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def overview(connection: DeadlineConnection) -> Overview:
    """Every task that is configured, planned or ran, by name; the gates now. Raises StoreError."""
    plan, problems = _configured()
    known = {str(row["task"]): row for row in inspection.maintenance(connection)}
    configured = {} if plan is None else plan.tasks()
    lines = tuple(
        _line(name, configured.get(name), known.get(name, _UNKNOWN)) for name in sorted({*configured, *known})
    )
    limits = Gates() if plan is None else plan.gates
    gates = tuple(
        GateLine(gate.gate, gate.value, getattr(limits, gate.gate, None), gate.known, gate.detail)
        for gate in store.gates(connection, None)
    )
    return Overview(lines, gates, tuple(problems), store.has_worker(connection))


def dry_run(connection: DeadlineConnection, task: str) -> Forecast:
    """What a run would do now; changes nothing. Counting reads the whole range. Raises InvalidArgument for an
    unknown task, ConfigError, StoreError."""
    policy = find(load_plan(), task)
    if isinstance(policy, Retention):
        found = retention_plan(connection, policy)
        verb = "changed" if policy.assign else "deleted"
        return Forecast(
            f"{found.rows:,} rows of {found.table} would be {verb}, {found.bytes:,} bytes.",
            found.rows,
            (found.action,),
            found.warnings,
        )
    if isinstance(policy, Job):
        return Forecast(f"{_does(policy, task)}.", None)
    making = task == policy.make_task
    steps = [step for step in PartitionKeeper(connection, policy).plan() if (step.action == "make") == making]
    lines = tuple(f"{step.action} {step.partition} ({step.lower} to {step.upper})" for step in steps)
    return Forecast(f"{len(steps):,} steps on the partitions of {policy.table}.", len(steps), lines)


def _configured() -> tuple[Plan | None, list[str]]:
    try:
        return read_plan()
    except ConfigError as error:
        return None, [str(error)]


def _line(name: str, policy: Retention | Partitions | Job | None, row: Row) -> TaskLine:
    cron = row["cron"]
    if policy is None:
        return TaskLine(name, name.partition(".")[0], None, None, cron, row)
    table = policy.needs if isinstance(policy, Job) else policy.table
    return TaskLine(
        name, name.partition(".")[0], table, _does(policy, name), cron or _cron(policy, name), row
    )


def _cron(policy: Retention | Partitions | Job, task: str) -> str:
    if isinstance(policy, Partitions):
        return policy.make_cron if task == policy.make_task else policy.drop_cron
    return policy.cron


def _does(policy: Retention | Partitions | Job, task: str) -> str:
    """In words, without a full stop."""
    if isinstance(policy, Retention):
        act = f"sets {policy.assign}" if policy.assign else "deletes"
        age = (
            f"{policy.column} is past"
            if policy.keep_seconds == 0
            else f"{policy.column} is older than {_length(policy.keep_seconds)}"
        )
        moment = f"now - {_length(policy.keep_seconds)}" if policy.keep_seconds else "now"
        more = (policy.where or "").replace(store.CUTOFF, moment)
        more = f"({more})" if " or " in more.lower() else more
        return f"{act} where {age}{f' and {more}' if more else ''}"
    if isinstance(policy, Job):
        return f"repairs at most {policy.batch} rows a time until it finds fewer"
    if task == policy.make_task:
        return f"makes {_many(policy.ahead, policy.every)} ahead"
    rest = f", drops them {_length(policy.grace_seconds)} later" if policy.grace_seconds else " and drops"
    return f"detaches what is older than {_many(policy.keep, policy.every)}{rest}"


def _many(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _length(seconds: float) -> str:
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length and seconds % length == 0:
            return _many(int(seconds / length), unit)
    return f"{seconds:g} seconds"

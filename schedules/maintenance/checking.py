"""The plan against the real database: what is wrong, what is merely slow, what is not there (SPEC M6)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance.partitions import DROPPED_BY_FUNCTION, MADE_BY_FUNCTION, refuse_unkept
from packhorse.schedules.maintenance.policies import Retention
from packhorse.schedules.maintenance.retention import TIME_TYPES, check_visible, resolve
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreConflict, StoreRejected
from packhorse.worker.store import maintenance as store
from packhorse.worker.store import partitions as partition_store

#: Removing their rows earlier than a retry may come would let a webhook in twice.
_NEEDED_BY_RETRIES = frozenset({"processed_messages"})


@dataclass
class Findings:
    """problems: task and what is wrong with it. warnings: it works, slowly. absent: tasks whose table is not
    there.

    left_out: shipped tasks that this role may not do, and the cure; all else works without them.
    """

    problems: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)


def check_plan(connection: DeadlineConnection, plan: Plan) -> Findings:
    """Look at every policy's table, columns, SQL, privileges and visibility; changes nothing, waits for no
    lock longer than a second.

    Raises StoreUnavailable.
    """
    found = Findings()
    with translated():
        longest_backoff = store.longest_backoff(connection)
        for job in plan.jobs:
            if job.needs is not None and not store.table_exists(connection, job.needs):
                found.absent.add(job.task)
        for policy in plan.retention:
            if policy.optional and not store.table_exists(connection, policy.table):
                found.absent.add(policy.task)
                continue
            if policy.table in _NEEDED_BY_RETRIES and policy.keep_seconds < longest_backoff:
                found.problems.append(
                    (
                        policy.task,
                        (
                            f"[retention.{policy.name}]: keep: {policy.keep_seconds:.0f} s is shorter than the longest backoff of a queue "
                            f"({longest_backoff:.0f} s)"
                        ),
                    )
                )
            _check_retention(connection, policy, found)
        for partitions in plan.partitions:
            parent = partition_store.parent(connection, partitions.table, partitions.column)
            if parent is None and partitions.optional:
                found.absent |= {partitions.make_task, partitions.drop_task}
            elif parent is None or not parent.fits:
                what = (
                    f"table: there is no partitioned table {partitions.table!r}"
                    if parent is None
                    else f"column: {partitions.table} is not range-partitioned by the time {partitions.column} alone"
                )
                found.problems += [
                    (task, f"[partitions.{partitions.name}]: {what}")
                    for task in (partitions.make_task, partitions.drop_task)
                ]
            elif not parent.owned:
                for task, ours in (
                    (partitions.make_task, MADE_BY_FUNCTION),
                    (partitions.drop_task, DROPPED_BY_FUNCTION),
                ):
                    what = (
                        f"[partitions.{partitions.name}]: only the owner of {partitions.table} can change its partitions: set maintenance_url "
                        "to a connection of that role"
                    )
                    if partitions.table not in MADE_BY_FUNCTION:
                        found.problems.append((task, what))
                    elif partitions.table not in ours:
                        found.left_out[task] = f"{what}; until then old ones stay and take space"
                if partitions.table in DROPPED_BY_FUNCTION:
                    try:
                        refuse_unkept(connection, partitions)
                    except StoreRejected as error:
                        found.problems.append(
                            (partitions.drop_task, f"[partitions.{partitions.name}]: {error}")
                        )
    return found


def _check_retention(connection: DeadlineConnection, policy: Retention, found: Findings) -> None:
    """All that is wrong with one policy: a field that is refused is replaced, so that it hides nothing
    else.
    """
    checked: Retention | None = policy
    while checked is not None:
        try:
            with translated(), connection.transaction():
                store.wait_a_second(connection)
                target, facts, warnings = resolve(connection, checked)
                check_visible(
                    connection, checked, target, facts, store.cutoff(connection, checked.keep_seconds)
                )
            if checked is policy:
                found.warnings += [
                    f"[retention.{policy.name}]: {warning}"
                    for warning in warnings
                    if facts["estimated_rows"] > 10_000
                ]
            return
        except StoreConflict as error:
            # left open by somebody: no reason to keep a timetable from starting, or this task from it
            found.warnings.append(
                f"[retention.{policy.name}]: not checked, {policy.table} is locked: {error}"
            )
            return
        except (InvalidArgument, StoreRejected) as error:
            found.problems.append((policy.task, f"[retention.{policy.name}]: {error}"))
            refused = error.field if isinstance(error, InvalidArgument) else None
            checked = _without(connection, checked, refused)


def _without(connection: DeadlineConnection, policy: Retention, field: str | None) -> Retention | None:
    """The policy with a value in this field that the table takes; None when there is none, or when it has
    been replaced already.
    """
    if field == "column":
        facts = store.table_facts(connection, policy.table, policy.column) or {}
        times = (name for name in facts.get("columns") or [] if _is_time(connection, policy.table, name))
        column = next(times, policy.column)
        return replace(policy, column=column) if column != policy.column else None
    if field == "where" and policy.where is not None:
        return replace(policy, where=None)
    idle = f"{policy.column} = {policy.column}"  # no assignment at all would be a policy that deletes
    return replace(policy, assign=idle) if field == "assign" and policy.assign != idle else None


def _is_time(connection: DeadlineConnection, table: str, column: str) -> bool:
    facts = store.table_facts(connection, table, column)
    return facts is not None and str(facts["column_type"]).startswith(TIME_TYPES)

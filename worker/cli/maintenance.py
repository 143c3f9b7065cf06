"""packhorse maintenance: list, plan, run, status, history, cancel; and the connection of the tables'
owner.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Annotated, Any

import typer

from packhorse.schedules.config import Plan, load_plan
from packhorse.schedules.maintenance.checking import check_plan
from packhorse.schedules.maintenance.partitions import PartitionKeeper
from packhorse.schedules.maintenance.policies import Partitions, Retention
from packhorse.schedules.maintenance.retention import plan as retention_plan
from packhorse.schedules.maintenance.tasks import TaskRunner, find
from packhorse.worker.cli.common import (
    MIGRATE_SECONDS,
    AsJson,
    Limit,
    Operator,
    Reason,
    Yes,
    confirmed,
    database,
    database_url,
    operator_name,
)
from packhorse.worker.cli.render import print_fields, print_json, print_rows, progress
from packhorse.worker.config import load_settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.store import maintenance as store

app = typer.Typer(no_args_is_help=True, help="Maintenance: retention, partitions, repairs.")

Task = Annotated[
    str, typer.Argument(metavar="TASK", help="Name of the task, as `packhorse maintenance list` shows it.")
]


def open_owner() -> DeadlineConnection:
    """A connection of the tables' owner: maintenance_url, else the embedded server's owner, else
    database_url.
    """
    from packhorse.worker.db.sessions import open_owner as opened

    settings = load_settings()
    url = None if settings.maintenance_url else database_url(settings, owner=True)
    return opened(settings, url=url, deadline_seconds=MIGRATE_SECONDS)


@contextmanager
def owner() -> Iterator[DeadlineConnection]:
    """The same, closed at the end of the block; refuses a schema that this code does not understand. Raises
    SchemaMismatch, StoreError.
    """
    from packhorse.worker.db import schema_version

    connection = open_owner()
    try:
        schema_version.check(connection)
        yield connection
    finally:
        connection.close()


@app.command("list")
def list_tasks(as_json: AsJson = False) -> int:
    """Every task of this configuration: table, schedule, last run and success, what holds it."""
    plan = load_plan()
    with database() as connection:
        health = {row["task"]: row for row in store.health(connection)}
    with owner() as connection:
        findings = check_plan(connection, plan)
    problems = dict(findings.problems)
    rows = []
    for task, policy in sorted(plan.tasks().items()):
        last = health.get(task, {})
        rows.append(
            {
                "task": task,
                "table": getattr(policy, "table", getattr(policy, "needs", None)),
                "cron": _cron(task, policy),
                "state": "absent"
                if task in findings.absent
                else "left out"
                if task in findings.left_out
                else last.get("state", "never ran"),
                "rows": last.get("rows_done"),
                "last_success_at": last.get("last_success_at"),
                "gate": last.get("gate"),
                "problem": problems.get(task) or findings.left_out.get(task) or last.get("error"),
            }
        )
    if as_json:
        print_json(rows)
    else:
        print_rows(
            rows, ["task", "cron", "state", "rows", "last_success_at", "gate", "problem"], empty="no tasks"
        )
    return EXIT_FAILED if problems else EXIT_OK


def _cron(task: str, policy: Any) -> str:
    if isinstance(policy, Partitions):
        return policy.make_cron if task == policy.make_task else policy.drop_cron
    return str(policy.cron)


@app.command("plan")
def show_plan(task: Task, as_json: AsJson = False) -> int:
    """What a run would do now: rows and bytes, or each partition; changes nothing. (Also: maintenance run
    --dry-run.)
    """
    return _show_plan(load_plan(), task, as_json)


def _show_plan(plan: Plan, task: str, as_json: bool) -> int:
    policy = find(plan, task)
    with owner() as connection:
        if isinstance(policy, Retention):
            found = retention_plan(connection, policy)
            document = {name: getattr(found, name) for name in found.__dataclass_fields__} | {
                "warnings": list(found.warnings)
            }
            print_json(document) if as_json else print_fields(document)
        elif isinstance(policy, Partitions):
            making = task == policy.make_task
            steps = [
                step
                for step in PartitionKeeper(connection, policy).plan()
                if (step.action == "make") == making
            ]
            rows = [{name: getattr(step, name) for name in step.__dataclass_fields__} for step in steps]
            columns = ["action", "partition", "lower", "upper", "estimated_rows", "reason"]
            print_json(rows) if as_json else print_rows(rows, columns, empty="nothing to do")
        else:
            document = {
                "task": task,
                "action": f"call {policy.statement.removeprefix('job_')} until it finds fewer than {policy.batch} rows",
            }
            print_json(document) if as_json else print_fields(document)
    return EXIT_OK


@app.command()
def run(
    task: Task,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Run a task here and now, with a progress bar; Ctrl-C pauses it after its batch, the next run goes
    on.
    """
    plan = load_plan()
    policy = find(plan, task)
    if dry_run:
        return _show_plan(plan, task, as_json)
    total = 0
    if isinstance(policy, Retention):
        with owner() as connection:
            total = retention_plan(connection, policy).rows
        confirmed(
            f"{'Change' if policy.assign else 'Delete'} {total} rows of {policy.table}?", yes or total == 0
        )
    elif isinstance(policy, Partitions) and task == policy.drop_task:
        confirmed(f"Detach and drop old partitions of {policy.table}?", yes)
    stop = Event()
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    done = 0
    with progress(task, total) as advance:

        def on_progress(rows: int, gate: str | None) -> None:
            nonlocal done
            done += rows
            advance(rows)

        state = TaskRunner(open_owner, plan, stop).run(
            task, triggered_by=operator_name(operator), on_progress=on_progress
        )
    if as_json:
        print_json({"task": task, "state": state, "rows": done})
    else:
        print(
            {
                "busy": f"{task}: another process works on it",
                "paused": f"{task}: paused after {done} rows; the next run goes on",
            }.get(state, f"{task}: {state}, {done} rows")
        )
    return EXIT_OK if state in ("succeeded", "paused") else EXIT_FAILED


@app.command()
def status(as_json: AsJson = False) -> int:
    """The health gates now, and every unfinished run."""
    with database() as connection:
        gates = [
            {"gate": gate.gate, "value": gate.value, "known": gate.known, "detail": gate.detail}
            for gate in store.gates(connection, None)
        ]
        running = [row for row in store.health(connection) if row["state"] in ("running", "paused")]
    thresholds = load_plan().gates
    for gate in gates:
        gate["at_most"] = getattr(thresholds, str(gate["gate"]), None)
    if as_json:
        print_json({"gates": gates, "runs": running})
    else:
        print_rows(gates, ["gate", "value", "at_most", "known", "detail"], empty="no gates")
        print()
        print_rows(running, ["task", "state", "gate", "rows_done", "started_at"], empty="nothing runs")
    return EXIT_OK


@app.command()
def history(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Name of the task; none: all of them.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> int:
    """Runs, newest first: rows, batches, gates that held them, outcome, who triggered them."""
    with database() as connection:
        found = store.history(connection, task, limit)
    if task is not None and not found:  # a task that is configured no longer keeps its history
        find(load_plan(), task)
    if as_json:
        print_json(found)
    else:
        print_rows(
            found,
            [
                "id",
                "task",
                "state",
                "triggered_by",
                "rows_done",
                "batches",
                "resumed",
                "gates_hit",
                "started_at",
                "ended_at",
                "error",
            ],
            empty="no runs",
        )
    return EXIT_OK


@app.command()
def cancel(task: Task, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """End the unfinished run of a task after its batch; what it did stays done."""
    find(load_plan(), task)
    with database() as connection:
        answer = store.cancel(connection, task, operator_name(operator), reason)
    if as_json:
        print_json({"task": task, "answer": answer})
    else:
        print(
            {"requested": f"{task} ends after its batch", "cancelled": f"{task} is cancelled"}.get(
                answer, f"{task} does not run"
            )
        )
    return EXIT_OK

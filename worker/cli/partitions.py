"""packhorse partitions: status, plan, make, detach, drop, drain, check, history."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.schedules.config import load_plan
from packhorse.schedules.maintenance.partitions import PartitionKeeper, PartitionStep
from packhorse.schedules.maintenance.policies import Partitions
from packhorse.schedules.maintenance.tasks import TaskRunner
from packhorse.worker.cli.common import AsJson, Limit, Operator, Yes, confirmed, operator_name
from packhorse.worker.cli.errors import usage
from packhorse.worker.cli.maintenance import open_owner, owner
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.store import partitions as store
from packhorse.worker.suggest import did_you_mean

app = typer.Typer(no_args_is_help=True, help="Partitions: made ahead, detached, exported, dropped.")

Policy = Annotated[
    str,
    typer.Argument(
        metavar="POLICY", help="Name of the partition policy, as `packhorse partitions status` shows it."
    ),
]
#: Below this runway `check` fails and the alert rings: a week for months, two days for the rest.
LEAST_RUNWAY_SECONDS = {"month": 7 * 86400.0}
LEAST_RUNWAY_OTHERS_SECONDS = 2 * 86400.0


def _policy(name: str) -> Partitions:
    known = {policy.name: policy for policy in load_plan().partitions}
    if name not in known:
        raise usage(
            "policy",
            f"there is no partition policy {name[:80]!r}",
            did_you_mean(name, known, f"Known: {', '.join(known)}"),
        )
    return known[name]


def _statuses() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    with owner() as connection:
        for policy in load_plan().partitions:
            try:
                status = PartitionKeeper(connection, policy).status()
            except InvalidArgument as error:
                if not policy.optional:
                    nothing = {"partitions": 0, "runway_days": 0.0, "oldest": None}
                    found.append(
                        {"policy": policy.name, "table": policy.table, **nothing, "problem": str(error)}
                    )
                continue
            runway = status.runway_seconds
            short = (
                f"the runway is short: {runway / 86400:.1f} days"
                if runway < LEAST_RUNWAY_SECONDS.get(policy.every, LEAST_RUNWAY_OTHERS_SECONDS)
                else None
            )
            found.append(
                {
                    "policy": policy.name,
                    "table": policy.table,
                    "partitions": status.partitions,
                    "runway_days": round(runway / 86400, 1),
                    "oldest": status.oldest,
                    "problem": status.problem or short,
                }
            )
    return found


@app.command()
def status(as_json: AsJson = False) -> int:
    """Every partitioned table: how many partitions, days until inserts find none, problems."""
    found = _statuses()
    columns = ["policy", "table", "partitions", "runway_days", "oldest", "problem"]
    print_json(found) if as_json else print_rows(found, columns, empty="no partitioned tables")
    return EXIT_OK


@app.command()
def check(as_json: AsJson = False) -> int:
    """Exit 1 when a runway is short (months: a week, others: two days) or a default partition exists; for
    monitoring.
    """
    found = [row for row in _statuses() if row["problem"]]
    print_json(found) if as_json else print_rows(
        found, ["policy", "runway_days", "problem"], empty="all partitions are in order"
    )
    return EXIT_FAILED if found else EXIT_OK


@app.command()
def plan(policy: Policy, as_json: AsJson = False) -> int:
    """Every step that is due now, with its reason; changes nothing."""
    with owner() as connection:
        _print_steps(PartitionKeeper(connection, _policy(policy)).plan(), as_json)
    return EXIT_OK


def _print_steps(steps: list[PartitionStep], as_json: bool) -> None:
    rows = [{name: getattr(step, name) for name in step.__dataclass_fields__} for step in steps]
    print_json(rows) if as_json else print_rows(
        rows, ["action", "partition", "lower", "upper", "estimated_rows", "reason"], empty="nothing to do"
    )


@app.command()
def make(policy: Policy, operator: Operator = None, as_json: AsJson = False) -> int:
    """Make the partitions that are missing."""
    return _run(_policy(policy).make_task, operator, as_json)


@app.command()
def detach(policy: Policy, yes: Yes = False, as_json: AsJson = False) -> int:
    """Detach what is too old and drop nothing yet; `drop` does that when the grace is over."""
    chosen = _policy(policy)
    confirmed(f"Detach old partitions of {chosen.table}?", yes)
    with owner() as connection:
        count = PartitionKeeper(connection, chosen).detach()
    print_json({"policy": policy, "detached": count}) if as_json else print(
        f"{count} partitions of {chosen.table} detached"
    )
    return EXIT_OK


@app.command()
def drop(policy: Policy, operator: Operator = None, yes: Yes = False, as_json: AsJson = False) -> int:
    """Detach what is too old; export and drop what was detached longer than the grace ago."""
    chosen = _policy(policy)
    confirmed(f"Detach and drop old partitions of {chosen.table}?", yes)
    return _run(chosen.drop_task, operator, as_json)


def _run(task: str, operator: str | None, as_json: bool) -> int:
    state = TaskRunner(open_owner, load_plan()).run(task, triggered_by=operator_name(operator))
    print_json({"task": task, "state": state}) if as_json else print(f"{task}: {state}")
    return EXIT_OK if state == "succeeded" else EXIT_FAILED


@app.command()
def drain(policy: Policy, yes: Yes = False, as_json: AsJson = False) -> int:
    """Empty the default partition of an adopted table into partitions of its own, a period per
    transaction.
    """
    chosen = _policy(policy)
    confirmed(f"Move the rows of the default partition of {chosen.table}?", yes)
    with owner() as connection:
        moved = PartitionKeeper(connection, chosen).drain_default()
    if as_json:
        print_json({"policy": policy, "rows": moved})
    else:
        print(f"{moved} rows moved; drop the empty default partition when nothing writes to it")
    return EXIT_OK


@app.command()
def history(limit: Limit = 50, as_json: AsJson = False) -> int:
    """What was detached, exported and dropped, newest first."""
    with owner() as connection:
        found = store.history(connection, None, limit)
    print_json(found) if as_json else print_rows(
        found,
        [
            "parent",
            "partition",
            "lower_bound",
            "upper_bound",
            "detached_at",
            "export_path",
            "export_rows",
            "dropped_at",
        ],
        empty="nothing yet",
    )
    return EXIT_OK

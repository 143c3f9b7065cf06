"""packhorse backfill: list, look, try, run, pause, compare, clean up, take back. The rules are in
ops/backfills.py and schedules/backfill.
"""

from __future__ import annotations

import signal
from threading import Event
from typing import Annotated, Any

import typer

from packhorse.schedules.backfill import acts, declare, known
from packhorse.schedules.backfill.base import Backfill, CheckFinding
from packhorse.schedules.backfill.engine import BackfillRun
from packhorse.schedules.config import load_plan
from packhorse.worker.cli.common import AsJson, Operator, Reason, Yes, confirmed, database, operator_name
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.maintenance import open_owner, owner
from packhorse.worker.cli.render import print_fields, print_json, print_rows, progress
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.ops import backfills as ops

app = typer.Typer(
    no_args_is_help=True, help="Backfills: move rows to another table or form, beside the work."
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the backfill, as `packhorse backfill list` shows it.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of it, such as source=legacy.webhook_logs; repeat it."
    ),
]

FINDING_COLUMNS = ["level", "check", "text", "hint"]


def _import_declared() -> None:
    from packhorse.worker.runtime.actors import import_configured

    import_configured()


def _find(name: str, given: list[str] | None = None) -> Backfill:
    """A backfill with the settings of this command line, else with those that it was begun with."""
    settings: dict[str, str] = {}
    for part in given or []:
        key, is_set, value = part.partition("=")
        if not is_set or not key or not value:
            raise usage(
                "set", f"{part[:60]!r} is not KEY=VALUE", "For example --set source=legacy.webhook_logs"
            )
        settings[key] = value
    if name not in declare.shipped():
        _import_declared()
    with database() as connection:
        return known.find(connection, name, settings)


@app.command("list")
def list_backfills(as_json: AsJson = False) -> int:
    """Every backfill: its state, how far it is, and what it does."""
    _import_declared()
    with database() as connection:
        rows = ops.list_all(connection, known.titles())
    if as_json:
        print_json(rows)
    else:
        print_rows(
            rows,
            ["name", "state", "rows_done", "rows_total", "rows_per_second", "eta_seconds", "title"],
            empty="no backfills",
        )
    return EXIT_OK


@app.command()
def show(name: Name, as_json: AsJson = False) -> int:
    """How far it is: rows done of all, rate of the last minute, time left; what the verification found, what
    was not copied and why.
    """
    with database() as connection:
        found = ops.show(connection, name)
    if as_json:
        print_json({**found.row, "ledger": found.ledger})
        return EXIT_OK
    findings = found.row.pop("findings") or []
    print_fields(found.row)
    if findings:
        print()
        print_rows(findings, FINDING_COLUMNS, empty="")
    print()
    print_rows(found.ledger, ["outcome", "reason", "rows"], empty="every row was copied as it was")
    return EXIT_OK


def _print_findings(findings: Any, as_json: bool, more: dict[str, Any] | None = None) -> int:
    rows = [finding.as_row() for finding in findings]
    if as_json:
        print_json({**(more or {}), "findings": rows})
    else:
        if more:
            print_fields(more)
            print()
        print_rows(rows, FINDING_COLUMNS, empty="nothing was found")
    return EXIT_FAILED if any(row["level"] == "refused" for row in rows) else EXIT_OK


@app.command()
def check(name: Name, given: Setting = None, as_json: AsJson = False) -> int:
    """What stands in the way and what to know before; exit 1 when it would be refused. Also a look for the
    drop guard.
    """
    backfill = _find(name, given)
    with owner() as connection:
        findings: list[CheckFinding] = acts.check(connection, backfill)
    return _print_findings(findings, as_json)


@app.command("dry-run")
def dry_run(name: Name, given: Setting = None, as_json: AsJson = False) -> int:
    """The check, the count, and the first batch, done and taken back: nothing is changed."""
    backfill = _find(name, given)
    with owner() as connection:
        found = acts.dry_run(connection, backfill)
    said = {
        "rows": found.rows,
        "first_batch": found.batch,
        "would_copy": found.copied.rows,
        "would_skip": found.copied.skipped,
    }
    return _print_findings(found.findings, as_json, said)


@app.command()
def run(
    name: Name,
    given: Setting = None,
    operator: Operator = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> int:
    """Run it here to its end, then compare; Ctrl-C pauses it after its batch, the next run goes on. Exit 1
    when the comparison fails.
    """
    backfill = _find(name, given)
    stop = Event()
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with owner() as connection:
        source = backfill.find_source(connection)
    with progress(backfill.task, int(source.estimated_rows) if source else 0) as advance:
        work = BackfillRun(
            open_owner,
            backfill,
            load_plan().gates,
            operator=operator_name(operator),
            reason=reason,
            stop=stop,
            on_progress=lambda rows, gate: advance(rows),
        )
        ended = work.run()
    said = {"backfill": name, "state": ended.state, "rows": ended.rows}
    if ended.state == "busy":
        raise CommandError(
            f"name: another process works on the backfill {name}",
            code="busy",
            field="name",
            hint="One that has died is gone on with half a minute after its last sign.",
        )
    code = _print_findings(ended.findings, as_json, said)
    return code if ended.state in ("succeeded", "paused") else EXIT_FAILED


@app.command()
def start(
    name: Name,
    given: Setting = None,
    operator: Operator = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> int:
    """Let workers carry it: `packhorse scheduler` works on it in slices until its end."""
    backfill = _find(name, given)
    with owner() as connection:
        findings = acts.check(connection, backfill)
        if any(finding.level == "refused" for finding in findings):
            return _print_findings(findings, as_json)
        source = backfill.find_source(connection)
        assert source is not None, "the check has seen it"
    with database() as connection:
        message_id = ops.start(
            connection, name, source.label, backfill.settings, operator_name(operator), reason
        )
    if as_json:
        print_json({"backfill": name, "message_id": message_id})
    else:
        print(f"{name}: message {message_id} carries it; watch it with: packhorse backfill show {name}")
    return EXIT_OK


def _said(name: str, answer: str, as_json: bool) -> int:
    if as_json:
        print_json({"backfill": name, "answer": answer})
    else:
        print(f"{name}: {ops.ANSWERS[answer]}")
    return EXIT_OK


@app.command()
def pause(name: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Let it rest after its batch, whoever runs it, until resume."""
    with database() as connection:
        answer = ops.pause(connection, name, operator_name(operator), reason)
    return _said(name, answer, as_json)


@app.command()
def resume(name: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Let a paused one go on: by workers, where they carry it; else by the next run."""
    with database() as connection:
        answer = ops.resume(connection, name, operator_name(operator), reason)
    return _said(name, answer, as_json)


@app.command()
def cancel(name: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """End its run after its batch; what was copied stays, and the next run begins at the beginning."""
    with database() as connection:
        answer = ops.cancel(connection, name, operator_name(operator), reason)
    return _said(name, answer, as_json)


@app.command()
def verify(name: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Compare source and target row by row; exit 1 when a row is neither copied nor explained. Also a look
    for the drop guard.
    """
    backfill = _find(name)
    with owner() as connection:
        findings = acts.verify(connection, backfill, operator_name(operator), reason)
    return _print_findings(findings, as_json)


@app.command()
def finish(
    name: Name,
    given: Setting = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=0, help="For a table that is dropped without a copy: how many rows it has."
        ),
    ] = None,
    operator: Operator = None,
    reason: Reason = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """The clean-up: the drop guard, a last comparison, and the old table is dropped."""
    backfill = _find(name, given)
    lost = "" if backfill.returns_after_drop or not backfill.takes_over else acts.no_way_back(backfill)
    confirmed(
        f"{lost}Drop what the backfill {name} leaves behind, its source {backfill.source_name} first?", yes
    )
    with owner() as connection:
        acts.finish(connection, backfill, operator_name(operator), reason, rows=rows)
    if as_json:
        print_json({"backfill": name, "state": "finished"})
    else:
        print(f"{name}: finished")
    return EXIT_OK


@app.command()
def rollback(
    name: Name, operator: Operator = None, reason: Reason = None, yes: Yes = False, as_json: AsJson = False
) -> int:
    """The way back: what it made goes, or what it dropped is made again; says what stays, and why."""
    backfill = _find(name)
    confirmed(f"Take back the backfill {name}?", yes)
    with owner() as connection:
        findings = acts.rollback(connection, backfill, operator_name(operator), reason)
    return _print_findings(findings, as_json, {"backfill": name, "state": "rolled_back"})

"""packhorse config: check, show."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from packhorse.schedules.config import Plan, read_plan
from packhorse.schedules.maintenance.checking import Findings, check_plan
from packhorse.worker.calls.declarations import declared_in_toml
from packhorse.worker.calls.push.declarations import declared_pushes
from packhorse.worker.cli.common import AsJson
from packhorse.worker.cli.errors import CommandError
from packhorse.worker.cli.maintenance import owner
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.config import Settings, load_settings, shown
from packhorse.worker.errors import ConfigError, SchemaMismatch, StoreUnavailable
from packhorse.worker.exits import EXIT_OK

app = typer.Typer(no_args_is_help=True, help="Settings, from environment and packhorse.toml.")


Offline = Annotated[bool, typer.Option("--offline", help="Do not look at the database.")]


@app.command()
def check(offline: Offline = False, as_json: AsJson = False) -> int:
    """Validate every setting, service, push, schedule and policy, and policies against the database when one
    answers.

    Prints all problems at once and exits 2 when there are any. A column without an index is a warning.
    """
    problems: list[str] = []
    findings = Findings()
    not_compared: str | None = "--offline"
    try:
        load_settings()
    except ConfigError as error:
        problems += error.problems
    for declared in (declared_in_toml, declared_pushes):
        try:
            declared()
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    try:
        plan, wrong = read_plan()
    except ConfigError as error:  # no TOML: the settings have said it, too
        problems += [problem for problem in error.problems if problem not in problems]
    else:
        if not problems and not offline:
            findings, not_compared = _compared(plan)
        problems += wrong + [problem for _, problem in findings.problems]
    for warning in findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if problems:
        raise ConfigError(problems)
    if as_json:
        print_json({"ok": True, "not_compared": not_compared, "warnings": findings.warnings})
    else:
        print(
            "the configuration is good"
            + (f"; policies were not compared with a database: {not_compared}" if not_compared else "")
        )
    return EXIT_OK


def _compared(plan: Plan) -> tuple[Findings, str | None]:
    """What the database says to the plan, or why it was not asked."""
    try:
        with owner() as connection:
            return check_plan(connection, plan), None
    except (CommandError, StoreUnavailable, SchemaMismatch) as error:
        return Findings(), str(error)


@app.command()
def show(as_json: AsJson = False) -> int:
    """Every setting with its value; passwords are not shown."""
    values = shown(load_settings())
    if as_json:
        print_json(values)
    else:
        print_rows(
            [
                {"setting": name, "value": value, "meaning": Settings.model_fields[name].description}
                for name, value in values.items()
            ],
            ["setting", "value", "meaning"],
            empty="no settings",
        )
    return EXIT_OK

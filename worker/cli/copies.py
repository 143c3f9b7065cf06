"""packhorse copy: a restored database starts nothing before somebody accepts it (SPEC O11)."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, Yes, confirmed, database, operator_name
from packhorse.worker.cli.render import print_fields, print_json
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.ops.copies import what_waits
from packhorse.worker.store import copies

app = typer.Typer(no_args_is_help=True, help="A restored database: may it start what its original has?")


@app.command()
def status(as_json: AsJson = False) -> int:
    """Is this database a copy that nobody has accepted, and what would start in it?"""
    with database() as connection:
        found = copies.status(connection)
    print_json(found) if as_json else print_fields(found)
    return EXIT_OK


@app.command()
def accept(
    paused: Annotated[
        bool, typer.Option("--paused", help="Pause every queue and schedule first; resume them one by one.")
    ] = False,
    yes: Yes = False,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Let a copy start its messages and schedules. The original must not start them any more."""
    with database() as connection:
        found = copies.status(connection)
        if found["copy"] and not paused:
            confirmed(
                f"{what_waits(found)} start here from now on. Does the original start nothing any more?", yes
            )
        accepted = copies.accept(connection, operator_name(operator), reason, paused=paused)
    if as_json:
        print_json({"accepted": accepted, "paused": accepted and paused})
    else:
        print(
            "not a copy"
            if not accepted
            else "accepted; its queues and schedules are paused"
            if paused
            else "accepted; it goes on"
        )
    return EXIT_OK


@app.command()
def mark(reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Start nothing more in this database until somebody accepts it: for a copy that was not made from a
    dump.
    """
    with database() as connection:
        marked = copies.mark(connection, operator_name(operator), reason)
    if as_json:
        print_json({"marked": marked})
    else:
        print("marked; nothing starts until `packhorse copy accept`" if marked else "it was marked already")
    return EXIT_OK

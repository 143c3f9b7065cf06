"""packhorse health: the fourteen checks (SPEC O1), for people and for monitoring."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, database
from packhorse.worker.cli.render import print_fields, print_json, print_rows
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.records import Row
from packhorse.worker.store import health as store

#: The worst first; `absent` says nothing about health.
_ORDER = ("fail", "warn", "ok")


def health(
    check: Annotated[
        str | None, typer.Option("--check", metavar="NAME", help="Only this check, with its details.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for a warning, too.")] = False,
    as_json: AsJson = False,
) -> int:
    """Fourteen checks of queues, handlers, conversations and the database; exit code 1 when one fails."""
    with database() as connection:
        found = store.checks(connection, check)
    overall = _overall(found)
    if as_json:
        print_json({"status": overall, "checks": found})
    elif check is not None:
        print_fields({name: value for row in found for name, value in row.items()})
    else:
        print_rows(found, ["check_name", "status", "summary"], empty="no checks")
        counts = {status: sum(row["status"] == status for row in found) for status in (*_ORDER, "absent")}
        print(f"\n{overall}: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count))
    return EXIT_FAILED if overall == "fail" or (strict and overall == "warn") else EXIT_OK


def _overall(found: list[Row]) -> str:
    """The worst status among the checks that looked at something; ok when none did."""
    return next((status for status in _ORDER if any(row["status"] == status for row in found)), "ok")

"""packhorse doctor: what is wrong with an installation, and the statement that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, database_url
from packhorse.worker.cli.render import clean, print_json
from packhorse.worker.config import load_settings
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for a warning, too.")] = False,
    as_json: AsJson = False,
) -> int:
    """Examine connection, pooler, schema, privileges and settings; changes nothing; exit code 1 when
    something is broken.
    """
    from packhorse.worker.doctor.examine import examine

    settings = load_settings()
    found = examine(database_url(settings), settings)
    failed = any(finding.status == "fail" or (strict and finding.status == "warn") for finding in found)
    if as_json:
        print_json(
            {
                "ok": not failed,
                "findings": [
                    {name: getattr(finding, name) for name in finding.__dataclass_fields__}
                    for finding in found
                ],
            }
        )
    else:
        for finding in found:
            print(f"{finding.status:<5}{finding.subject}: {clean(finding.text)}")
            if finding.repair:
                print(f"     -> {clean(finding.repair)}")
    return EXIT_FAILED if failed else EXIT_OK

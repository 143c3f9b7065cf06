"""packhorse migrate adopt: import the unfinished messages of another system's queue table (SPEC O8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from packhorse.worker.adopt.adoption import Adopted, Order, adopt, look, refuse
from packhorse.worker.adopt.importing import BATCH
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.adopt.plan import SOURCE, ImportPlan
from packhorse.worker.cli.common import MIGRATE_SECONDS, AsJson, Yes, confirmed, database
from packhorse.worker.cli.errors import usage
from packhorse.worker.cli.render import clean, print_json, print_rows, progress
from packhorse.worker.db import migration_files, schema_version
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.records import Row

_SETS = typer.Option("--with", metavar="SET", help="Also an optional set: platform.")
_MAP = typer.Option(
    "--map", metavar="FIELD=COLUMN", help="Which column of the old table is a field of a message."
)
_SET = typer.Option(
    "--set",
    metavar="FIELD=VALUE",
    help="The same value for all rows: queue, message_type, priority, max_attempts.",
)
_VALUE = typer.Option(
    "--value",
    metavar="FIELD:OLD=NEW",
    help="What a value means: status to pending, dead, finished; queue or type to a name.",
)
_FROM = typer.Option("--from", metavar="SCHEMA.TABLE", help="The queue table of the other system.")


def adopt_command(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    sets: Annotated[list[str] | None, _SETS] = None,
    mapped: Annotated[list[str] | None, _MAP] = None,
    fixed: Annotated[list[str] | None, _SET] = None,
    meaning: Annotated[list[str] | None, _VALUE] = None,
    source: Annotated[str, _FROM] = SOURCE,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=10_000, help="Rows per transaction of the import.")
    ] = BATCH,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Import what another queue has not finished; its table stays as it is."""
    for unknown in set(sets or []) - set(migration_files.SETS):
        raise usage(
            "with", f"there is no set {unknown[:40]!r}", f"There is: {', '.join(migration_files.SETS)}"
        )
    schema, dot, table = source.rpartition(".")
    if not table or (dot and not schema):
        raise usage("from", f"{source[:130]!r} is not SCHEMA.TABLE", f"As the default {SOURCE}")
    choices = Choices(_pairs("map", mapped), _pairs("set", fixed), _words(meaning))
    order = Order(tuple(sets or ()), choices, (schema or "public", table), batch)
    with database(owner=True, deadline_seconds=MIGRATE_SECONDS, check=False) as connection:
        schema_version.check_server(connection)
        plan = look(connection, order)
        if dry_run:
            _show_plan(plan, as_json)
            return EXIT_FAILED if plan.problems else EXIT_OK
        refuse(plan)
        total = sum(row["rows"] for row in plan.statuses if row["fate"] in ("pending", "dead"))
        if plan.begun is None:
            confirmed(
                f"Import up to {total} rows of {'.'.join(plan.source)}? --dry-run says what becomes of them.",
                yes,
            )
        with progress("importing", total) as advance:
            done = adopt(
                connection,
                order,
                step=(lambda line: None) if as_json else (lambda line: print(clean(line))),
                report=advance,
            )
    _show_done(done, as_json)
    return EXIT_OK


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """FIELD=X, any number of times."""
    found = {}
    for text in given or []:
        name, sign, rest = text.partition("=")
        if not sign or not name or not rest:
            raise usage(option, f"{text[:60]!r} is not FIELD=..., as in --{option} message_type=job_type")
        found[name.strip()] = rest
    return found


def _words(given: list[str] | None) -> dict[str, dict[str, str]]:
    """FIELD:OLD=NEW, any number of times; OLD may have signs of its own, NEW may not."""
    found: dict[str, dict[str, str]] = {}
    for text in given or []:
        name, colon, rest = text.partition(":")
        old, sign, new = rest.rpartition("=")
        if not colon or not sign or not new:
            raise usage("value", f"{text[:60]!r} is not FIELD:OLD=NEW, as in --value status:failed=pending")
        found.setdefault(name.strip(), {})[old] = new
    return found


def _show_plan(plan: ImportPlan, as_json: bool) -> None:
    """What would be done, and what stands in the way, for people or scripts."""
    if as_json:
        print_json(
            {
                "from": ".".join(plan.source),
                "possible": not plan.problems,
                "begun": plan.begun is not None,
                "rows": list(plan.statuses),
                "fields": _fields(plan),
                "problems": list(plan.problems),
            }
        )
        return
    print(
        clean(
            f"{'.'.join(plan.source)}: {'an import goes on' if plan.begun else 'its rows would be imported, and stay where they are'}"
        )
    )
    if plan.statuses:
        print_rows([_told(row) for row in plan.statuses], ["status", "rows", "becomes"], empty="")
        print_rows(
            [{"field": name, "from": text} for name, text in _fields(plan).items()],
            ["field", "from"],
            empty="",
        )
    for problem in plan.problems:
        print(clean(f"problem: {problem}"))


_FATES = {"pending": "message", "dead": "dead letter", "finished": "nothing; it stays in the old table"}


def _show_done(done: Adopted, as_json: bool) -> None:
    account = done.account
    if as_json:
        print_json({"applied": list(done.applied), "account": account, "lacking": lacking_rows(done.lacking)})
        return
    print(
        f"imported: {account['rows']} rows = {account['messages']} messages + {account['dead_letters']} dead letters "
        f"+ {account['undecodable']} that could not be read (dead letters, too) + {account['finished']} finished"
        + (
            f" + {account['came_back']} that were deleted and came back (not imported)"
            if account["came_back"]
            else ""
        )
        + (f" + {account['later']} that came meanwhile: run it again" if account["later"] else "")
    )
    show_lacking(done.lacking)


def lacking_rows(lacking: Iterable[Finding]) -> list[Row]:
    """For scripts: what adopted tables do not have, and the statements that add it."""
    return [{"text": finding.text, "repair": finding.repair} for finding in lacking]


def show_lacking(lacking: Iterable[Finding]) -> None:
    """The same for people."""
    for finding in lacking:
        print(f"{clean(finding.text)}; who wants it adds it while others work:")
        print(f"  -> {clean(finding.repair or '')}")


def _fields(plan: ImportPlan) -> dict[str, str]:
    """Where each field of a message comes from."""
    if plan.mapping is None:
        return {}
    fixed = {name: f"always {value}" for name, value in plan.mapping.values.items() if value is not None}
    return fixed | {
        name: ", ".join(part for part in columns if part) for name, columns in plan.mapping.columns.items()
    }


def _told(row: Row) -> Row:
    state = row["status"] if row["status"] is not None else "finished" if row["finished_at"] else "-"
    return {"status": state, "rows": row["rows"], "becomes": _FATES.get(row["fate"], "undecided")}

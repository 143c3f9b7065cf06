"""packhorse migrate adopt: a schema of ours without its record, or the queue table of another system, made ours (SPEC O8)."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from packhorse.worker.adopt.adoption import LEGACY_SCHEMA, Adopted, Order, adopt, look, refuse
from packhorse.worker.adopt.compare import Item
from packhorse.worker.adopt.importing import BATCH
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.adopt.plan import Plan
from packhorse.worker.cli.common import MIGRATE_SECONDS, AsJson, Yes, confirmed, database
from packhorse.worker.cli.errors import usage
from packhorse.worker.cli.render import clean, print_json, print_rows, progress
from packhorse.worker.config import load_settings
from packhorse.worker.db import migrate
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.records import Row

_SETS = typer.Option("--with", metavar="SET", help="Also an optional set: platform.")
_MAP = typer.Option("--map", metavar="FIELD=COLUMN", help="Which column of the old table is a field of a message.")
_SET = typer.Option("--set", metavar="FIELD=VALUE", help="The same value for all rows: queue, message_type, priority, max_attempts.")
_VALUE = typer.Option("--value", metavar="FIELD:OLD=NEW", help="What a value means: status to pending, dead, finished; queue or type to a name.")
_MOVE = typer.Option("--move", metavar="NAME", help="Something else that belongs to the old queue and has a name of ours.")


def adopt_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    sets: Annotated[list[str] | None, _SETS] = None,
    mapped: Annotated[list[str] | None, _MAP] = None,
    fixed: Annotated[list[str] | None, _SET] = None,
    meaning: Annotated[list[str] | None, _VALUE] = None,
    moved: Annotated[list[str] | None, _MOVE] = None,
    legacy: Annotated[str, typer.Option("--legacy-schema", metavar="NAME", help="Where the old tables go.")] = LEGACY_SCHEMA,
    batch: Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Rows per transaction of the import.")] = BATCH,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Make an existing schema ours: record what is there, or move an old queue aside and import it."""
    for unknown in set(sets or []) - set(migrate.SETS):
        raise usage("with", f"there is no set {unknown[:40]!r}", f"There is: {', '.join(migrate.SETS)}")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", legacy):
        raise usage("legacy-schema", f"{legacy[:63]!r} is not a name for it", "Small letters, digits and underscores; 63 at most")
    if legacy.startswith("pg_") or legacy in ("information_schema", load_settings().db_schema):  # what is moved must be out of the way
        raise usage("legacy-schema", f"{legacy!r} is taken", f"A schema of its own, as the default {LEGACY_SCHEMA}")
    order = Order(tuple(sets or ()), Choices(_pairs("map", mapped), _pairs("set", fixed), _words(meaning)), tuple(moved or ()), legacy, batch)
    with database(owner=True, deadline_seconds=MIGRATE_SECONDS, check=False) as connection:
        migrate.check_server(connection)
        plan = look(connection, order)
        if dry_run:
            _show_plan(plan, order, as_json)
            return EXIT_FAILED if plan.problems or plan.hindrances else EXIT_OK
        refuse(plan)
        if plan.case == "move":
            confirmed(f"Move {len(plan.moves)} object(s) to the schema {legacy}? --dry-run names them.", yes)
        total = sum(row["rows"] for row in plan.statuses if row["fate"] in ("pending", "dead"))
        with progress("importing", total) as advance:
            done = adopt(connection, order, step=(lambda line: None) if as_json else (lambda line: print(clean(line))), report=advance)
    _show_done(done, order, as_json)
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


def _show_plan(plan: Plan, order: Order, as_json: bool) -> None:
    """What would be done, and what stands in the way, for people or scripts."""
    found = plan.comparison
    counts = {state: sum(item.state == state for item in found.items) for state in ("identical", "missing", "differs")}
    others = [item for item in (plan.hindrances or found.items) if item.state != "identical"]
    if as_json:
        print_json(
            {
                "case": plan.case,
                "possible": not plan.problems and not plan.hindrances,
                "record": [m.name for m in found.recordable],
                "apply": list(found.pending),
                "objects": {**counts, "not_identical": [_row(item) for item in others]},
                "not_ours": [_row(note) for note in found.notes],
                "move": list(plan.moves),
                "to": order.legacy,
                "dependents": list(plan.dependents),
                "rows": list(plan.statuses),
                "fields": _fields(plan),
                "problems": list(plan.problems),
            }
        )
        return
    print(_SENTENCES[plan.case].format(legacy=order.legacy))
    print(f"objects of this release: {counts['identical']} identical, {counts['missing']} missing, {counts['differs']} different")
    if plan.case in ("record", "nothing"):
        print(f"record: {_names([m.name for m in found.recordable])}")
    print(f"apply: {_names(found.pending)}")
    if plan.hindrances:
        print_rows([_row(item) for item in others], ["kind", "name", "text", "repair"], empty="")
    if found.notes and plan.case == "record":
        print_rows([_row(note) for note in found.notes], ["kind", "name", "text"], empty="")
    if plan.moves:
        print_rows(list(plan.moves), ["kind", "name"], empty="")
    if plan.dependents:
        print_rows(list(plan.dependents), ["kind", "name", "of_table", "advice"], empty="")
    if plan.statuses:
        print_rows([_told(row) for row in plan.statuses], ["status", "rows", "becomes"], empty="")
        print_rows([{"field": name, "from": text} for name, text in _fields(plan).items()], ["field", "from"], empty="")
    for problem in plan.problems:
        print(clean(f"problem: {problem}"))


_SENTENCES = {
    "record": "The schema is ours: its record would be completed, and what is missing applied.",
    "move": "Another system has our names: its objects would go to the schema {legacy}, the migrations run, and its rows be imported.",
    "import": "The old tables are in the schema {legacy}: what has not been imported would be.",
    "nothing": "There is nothing to adopt. Run: packhorse migrate up",
}
_FATES = {"pending": "message", "dead": "dead letter", "finished": "nothing; it stays in the old table"}


def _show_done(done: Adopted, order: Order, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "recorded": list(done.recorded),
                "applied": list(done.applied),
                "moved": list(done.moved),
                "to": order.legacy,
                "account": done.account,
                "way_back": list(done.way_back),
            }
        )
        return
    if done.account is not None:
        account = done.account
        print(
            f"imported: {account['rows']} rows = {account['messages']} messages + {account['dead_letters']} dead letters "
            f"+ {account['undecodable']} that could not be read (dead letters, too) + {account['finished']} finished"
            + (f" + {account['later']} that came meanwhile: run it again" if account["later"] else "")
        )
    if not (done.recorded or done.applied or done.moved or done.account):
        print("nothing to adopt: record and schema agree")
    for statement in done.way_back:
        print(clean(f"way back: {statement}"))


def _fields(plan: Plan) -> dict[str, str]:
    """Where each field of a message comes from."""
    if plan.mapping is None:
        return {}
    fixed = {name: f"always {value}" for name, value in plan.mapping.values.items() if value is not None}
    return fixed | {name: ", ".join(part for part in columns if part) for name, columns in plan.mapping.columns.items()}


def _told(row: Row) -> Row:
    state = row["status"] if row["status"] is not None else "finished" if row["finished_at"] else "-"
    return {"status": state, "rows": row["rows"], "becomes": _FATES.get(row["fate"], "undecided")}


def _row(item: Item) -> Row:
    return {"kind": item.kind, "name": item.name, "state": item.state, "text": item.text, "repair": item.repair}


def _names(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing"

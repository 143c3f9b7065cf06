"""packhorse migrate: up, status, check, down; adopt is in migrate_adopt."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli import migrate_adopt
from packhorse.worker.cli.common import MIGRATE_SECONDS, AsJson, Yes, confirmed, database
from packhorse.worker.cli.errors import describe, report, usage
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.config import load_settings
from packhorse.worker.db import migrate, migration_files, schema_version
from packhorse.worker.db.sessions import names_of
from packhorse.worker.doctor.adopted import examine_newly_adopted
from packhorse.worker.errors import SchemaMismatch
from packhorse.worker.exits import EXIT_OK, EXIT_SCHEMA
from packhorse.worker.store import migrations

app = typer.Typer(no_args_is_help=True, help="The schema: apply, list, check, adopt.")
app.command("adopt")(migrate_adopt.adopt_command)


@app.command()
def up(
    sql: Annotated[
        bool,
        typer.Option(
            "--sql",
            help="Print the SQL of all migrations instead, for tools of your own; no database needed.",
        ),
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SET",
            help="Also an optional set: platform, public-api. Once is enough: later runs keep it up.",
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Also all functions and views that are as this release has them: somebody changed one.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Apply what is missing. Safe to repeat, and when several start at once."""
    wanted = sets or []
    for unknown in set(wanted) - set(migration_files.SETS):
        raise usage(
            "with", f"there is no set {unknown[:40]!r}", f"There is: {', '.join(migration_files.SETS)}"
        )
    settings = load_settings()
    if sql:
        print(migrate.script(names_of(settings), wanted), end="")
        return EXIT_OK
    with database(owner=True, deadline_seconds=MIGRATE_SECONDS, check=False) as connection:
        schema_version.check_server(connection)
        done = migrate.up(
            connection,
            (lambda name: None) if as_json else (lambda name: print(f"applied {name}")),
            sets=wanted,
            again=again,
        )
        lacking = examine_newly_adopted(connection, done)
    if as_json:
        print_json({"applied": done, "lacking": migrate_adopt.lacking_rows(lacking)})
        return EXIT_OK
    if not done:
        print("up to date")
    migrate_adopt.show_lacking(lacking)
    return EXIT_OK


@app.command()
def status(as_json: AsJson = False) -> int:
    """List every migration: applied, pending, changed or unknown to this release."""
    with database(owner=True, check=False) as connection:
        found = migrations.status(connection)
    if as_json:
        print_json(found)
    else:
        print_rows(found, ["name", "state", "applied_at"], empty="no migrations")
    return EXIT_OK


@app.command()
def check(as_json: AsJson = False) -> int:
    """Exit 0 when schema and code fit, 78 when one is older; says which."""
    with database(owner=True, check=False) as connection:
        try:
            schema_version.check(connection)
        except SchemaMismatch as error:
            report(describe(error), as_json=as_json)
            return EXIT_SCHEMA
    if as_json:
        print_json({"ok": True})
    else:
        print("the schema fits this release")
    return EXIT_OK


@app.command()
def down(yes: Yes = False, as_json: AsJson = False) -> int:
    """Take back the newest migration, where it has a way back."""
    with database(owner=True, deadline_seconds=MIGRATE_SECONDS, check=False) as connection:
        newest = schema_version.newest_applied(connection)
        if newest is not None:
            confirmed(f"Take back {newest.name}, with its tables and their data?", yes)
        name = migrate.down(connection)
    if as_json:
        print_json({"taken_back": name})
    else:
        print(f"took back {name}" if name else "nothing is applied")
    return EXIT_OK

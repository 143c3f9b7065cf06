"""The snapshot: what the migrations make, as a committed file; what a database has otherwise (STYLE 2.4).

Made by `python -m packhorse.worker.doctor.snapshot`, reviewed in diffs, compared with a fresh database by a
test. One line per object: kind, name, definition. Bodies of functions are there as checksums, views by their
columns: definitions that every server version prints alike. Objects that the snapshot does not know are the
user's own business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from packhorse.worker.db import migrate, migration_files
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.errors import MigrationError
from packhorse.worker.records import Row
from packhorse.worker.store import doctor as store

FILE = "schema.snapshot.tsv"
#: Of the public API: what comes to it with the platform.
FILE_BESIDE_PLATFORM = "beside-platform.snapshot.tsv"
Objects = dict[tuple[str, str], str]
#: Kinds whose wrong definition must be dropped before the right one is made.
_REPLACED = frozenset({"index", "constraint", "policy", "trigger"})


def paths_of(sets: Iterable[str]) -> list[Path]:
    """The files of a database with these sets: that of a queue alone or of one with the platform, and those
    of the public API; it has more functions where there is a platform.
    """
    folder, found = migration_files.directory(), set(sets)
    files = [folder.joinpath(*({"platform"} & found), FILE)]
    if "public-api" in found:
        files.append(folder / "public-api" / FILE)
        files += [folder / "public-api" / FILE_BESIDE_PLATFORM] if "platform" in found else []
    return files


def text_of(found: list[Row]) -> str:
    """The file's text for the objects of a database."""
    return "".join(f"{row['kind']}\t{row['name']}\t{row['definition']}\n" for row in found)


def read(sets: Iterable[str]) -> Objects:
    """The objects that a database with these sets must have. Raises MigrationError when a file is missing."""
    objects: Objects = {}
    for path in paths_of(sets):
        if not path.is_file():
            raise MigrationError(f"{path} is missing: the installation is incomplete")
        lines = (line.split("\t", 2) for line in path.read_text().splitlines())
        objects |= {(kind, name): definition for kind, name, definition in lines}
    return objects


def drift(connection: DeadlineConnection, sets: Iterable[str]) -> list[Finding]:
    """What is missing, changed, invalid or not validated; each with its repair. Empty: the schema is what the
    migrations make.
    """
    wanted = read(sets)
    found = {(row["kind"], row["name"]): row["definition"] for row in store.schema_objects(connection)}
    adopted = store.adopted_tables(connection) if "platform" in sets else {}
    keys = {name.partition(".")[2] for kind, name in wanted if kind == "constraint"}
    findings = []
    for (kind, name), definition in wanted.items():
        table = table_of(kind, name, definition)
        if adopted.get(table):
            continue  # left alone: the form of the host
        if table in adopted and (kind == "constraint" or name in keys or (kind, name) in found):
            continue  # adopted: what was there has types and keys of its own
        if (kind, name) not in found:
            findings.append(
                Finding("schema", "fail", f"{kind} {name} is missing", repair(kind, name, definition))
            )
        elif found[kind, name] != definition:
            findings.append(
                Finding(
                    "schema",
                    "fail",
                    f"{kind} {name} was changed: {found[kind, name]} instead of {definition}",
                    repair(kind, name, definition, changed=True),
                )
            )
    for row in store.invalid_indexes(connection):
        again = (
            row["definition"]
            .replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY")
            .replace("UNIQUE INDEX", "UNIQUE INDEX CONCURRENTLY")
        )
        findings.append(
            Finding(
                "schema",
                "fail",
                f"index {row['name']} is invalid: its build was not finished",
                store.repair("rebuild_index", name=row["name"], definition=again),
            )
        )
    for row in store.unvalidated_constraints(connection):
        findings.append(
            Finding(
                "schema",
                "warn",
                f"constraint {row['name']} of {row['table_name']} was never validated",
                store.repair("validate", table=row["table_name"], part=row["name"]),
            )
        )
    return findings


def table_of(kind: str, name: str, definition: str) -> str:
    """The table that an object is, or is a part of."""
    return (
        definition.partition(" ON ")[2].partition(" USING ")[0] if kind == "index" else name.partition(".")[0]
    )


def repair(kind: str, name: str, definition: str, *, changed: bool = False) -> str:
    """The statement that makes an object what it was; for long ones the migration file that has it."""
    table, _, part = name.partition(".")
    if kind in ("function", "api function", "view"):
        return f"packhorse migrate up --again ({_home(kind, name.split('(')[0])} has it)"
    if kind == "table":
        return (
            store.repair("row_security", table=name)
            if changed
            else f"restore it: {_home(kind, name)} made it"
        )
    if kind == "column" and changed:
        return (
            f"make column {part} what {_home('table', table)} says: {definition.partition('add column ')[2]}"
        )
    if kind == "domain" and changed:
        return f"make it what {_home(kind, name)} says: {definition}"
    drop = (
        store.repair(f"drop_{kind}", name=name, table=table, part=part) + " "
        if changed and kind in _REPLACED
        else ""
    )
    return f"{drop}{definition};"


def _home(kind: str, name: str) -> str:
    """The newest migration that makes the object."""
    of_api = kind == "api function"
    pattern = re.compile(
        rf"^create (or replace )?{kind.removeprefix('api ')} (packhorse|platform)\.{re.escape(name)}\b",
        re.MULTILINE,
    )
    homes = [
        migration
        for migration, text in _texts()
        if migration.startswith("public-api/") == of_api and pattern.search(text)
    ]
    return f"migrations/{homes[-1]}.sql" if homes else "its migration"


@cache
def _texts() -> list[tuple[str, str]]:
    return [
        (migration.name, migration.text) for migration in migration_files.available(sets=migration_files.SETS)
    ]


def write() -> None:
    """Make the files from an empty database, to which one set is added after the other, on an embedded server
    of its own.
    """
    import tempfile

    from packhorse.worker.db.embedded import Embedded
    from packhorse.worker.db.sessions import open_own_server

    with tempfile.TemporaryDirectory(prefix="ph-") as folder:
        server = Embedded(Path(folder))
        server.start()
        try:
            server.prepare()
            connection = open_own_server(server.owner_url, "snapshot", deadline_seconds=120)
            home = migration_files.directory()
            (home / FILE).write_text(text_of(store.schema_objects(connection)))
            migrate.up(connection, sets=["public-api"])
            before = _of_api(store.schema_objects(connection))
            (home / "public-api" / FILE).write_text(text_of(before))
            migrate.up(connection, sets=["platform"])
            found = store.schema_objects(connection)
            api = _of_api(found)
            (home / "platform" / FILE).write_text(text_of([row for row in found if row not in api]))
            more = [row for row in api if row not in before]
            (home / "public-api" / FILE_BESIDE_PLATFORM).write_text(text_of(more))
            connection.close()
        finally:
            server.stop()


def _of_api(found: list[Row]) -> list[Row]:
    return [row for row in found if row["kind"] == "api function"]


if __name__ == "__main__":
    write()

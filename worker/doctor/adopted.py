"""Adopted tables: which checks and keys of ours they do not have, with the statements that add them.

Rows of a host stay legal, so a migration adds none of them. One who wants them adds them without a long lock:
NOT VALID holds for new rows at once, and VALIDATE reads the old ones beside everybody's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.doctor.snapshot import read
from packhorse.worker.store import doctor as store

#: The migration that adopts what stands there already.
ADOPTING = "platform/0001"


def examine_adopted(connection: DeadlineConnection, sets: Iterable[str]) -> list[Finding]:
    """One finding for each adopted table that lacks some; it is as it should be. A constraint of the host
    counts when it has the same name, or the same text.
    """
    if "platform" not in (sets := set(sets)):
        return []
    tables = {name for name, left_alone in store.adopted_tables(connection).items() if not left_alone}
    theirs = [row for row in store.schema_objects(connection) if row["kind"] == "constraint"]
    names = {row["name"] for row in theirs}
    found = {(row["name"].partition(".")[0], _text(row["definition"])) for row in theirs}
    keyed = {table for table, text in found if text.startswith("PRIMARY KEY")}
    lacking = [
        (table, name.partition(".")[2], definition)
        for (kind, name), definition in sorted(read(sets).items())
        if kind == "constraint" and (table := name.partition(".")[0]) in tables
        if name not in names and (table, _text(definition)) not in found
        if not (table in keyed and _text(definition).startswith("PRIMARY KEY"))
    ]
    return [
        Finding("adopted", "ok", f"{table} was adopted without {', '.join(row[1] for row in rows)}", mend)
        for table, group in groupby(lacking, key=lambda row: row[0])
        if (rows := list(group)) and (mend := " ".join(_statement(*row) for row in rows))
    ]


def examine_newly_adopted(connection: DeadlineConnection, applied: Iterable[str]) -> list[Finding]:
    """The same, when the migration that adopts tables is one of `applied`, names of those that just ran."""
    if not any(name.startswith(ADOPTING) for name in applied):
        return []
    with translated():
        return examine_adopted(connection, ["platform"])


def _text(definition: str) -> str:
    """`CHECK (…)` of `alter table … add constraint NAME CHECK (…)`."""
    return definition.partition(" add constraint ")[2].partition(" ")[2]


def _statement(table: str, name: str, definition: str) -> str:
    """What adds it while others work on the table."""
    text = _text(definition)
    if text.startswith(("CHECK", "FOREIGN KEY")):
        return f"{definition} NOT VALID; alter table {table} validate constraint {name};"
    kind, _, columns = text.partition(" (")
    return (
        f"create unique index concurrently {name} on {table} ({columns}; "
        f"alter table {table} add constraint {name} {kind} using index {name};"
    )

"""Which migrations the code has, and which the database."""

from __future__ import annotations

from packhorse.worker.db import migration_files
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value


def status(connection: DeadlineConnection) -> list[Row]:
    """Every migration that code or database knows, by name: its state and when it was applied.

    state: applied, pending (the code has it, the database does not), changed (the file differs from what
    was applied) or unknown (the database has it, this code does not). An optional set is listed when the
    database has any of it. Raises StoreError.
    """
    with translated():
        theirs = (
            {row["name"]: row for row in rows(connection, "migrations_applied")}
            if value(connection, "migrations_exist")
            else {}
        )
    ours = {
        migration.name: migration.checksum
        for migration in migration_files.available(sets=migration_files.sets_in(theirs))
    }
    return [
        {
            "name": name,
            "state": _state(ours.get(name), theirs.get(name, {}).get("checksum")),
            "applied_at": theirs.get(name, {}).get("applied_at"),
        }
        for name in sorted({*ours, *theirs})
    ]


def _state(ours: str | None, theirs: str | None) -> str:
    if theirs is None:
        return "pending"
    if ours is None:
        return "unknown"
    return "applied" if ours == theirs else "changed"

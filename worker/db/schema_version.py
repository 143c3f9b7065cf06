"""Does this code understand the schema of a database? (SPEC O8, P7b)

The schema has a record of its migrations: name, checksum, release, and the oldest release that may run beside
each. A process refuses to work on a schema it does not understand and says which side is older. A migration
that older code may run beside says so: `-- Runs beside: 0.1.0` names the oldest release that does. Functions
are always so: a changed meaning is a new name. So a rolling deploy, and a rollback of the code, need no
rollback of the schema. An optional set is in force in a database from the moment its first migration is
recorded there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.migration_files import FUNCTIONS, Migration, available, sets_in
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import SchemaMismatch
from packhorse.worker.version import __version__

MINIMUM_SERVER = 140000
#: A name that only the record of an unreleased version has.
_UNRELEASED = "0005_create_queue_functions"


@dataclass(frozen=True, slots=True)
class Applied:
    """What the record of a database says of one migration."""

    checksum: str
    runs_beside: str | None
    release: str | None = None

    @property
    def suits_this_code(self) -> bool:
        """May this code run beside it, without knowing it?"""
        return self.runs_beside is not None and _numbers(self.runs_beside) <= _numbers(__version__)

    @property
    def is_newer(self) -> bool:
        """Did a later release apply it?"""
        return self.release is not None and _numbers(self.release) > _numbers(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def applied(connection: DeadlineConnection) -> dict[str, Applied]:
    """What was applied, by name; empty on a database without the queue. Raises SchemaMismatch for an
    unreleased version.
    """
    with translated():
        if not connection.execute(sql("migrations_exist")).fetchone()[0]:  # type: ignore[index]
            return {}
        found = {
            row[0]: Applied(row[1], row[3], row[4])
            for row in connection.execute(sql("migrations_applied")).fetchall()
        }
    if _UNRELEASED in found:
        raise SchemaMismatch(
            "the database was made by an unreleased version of Packhorse, and there is no upgrade from it. "
            f"Give the setting db_schema another name, or remove what is in {connection.names.schema}, and run: packhorse migrate up"
        )
    return found


def refuse_newer(theirs: dict[str, Applied], ours: Iterable[str]) -> list[str]:
    """Migrations of newer releases that this code may run beside. Raises SchemaMismatch for those that it may
    not.
    """
    newer = sorted(name for name in set(theirs) - set(ours) if FUNCTIONS not in name)
    strange = [name for name in newer if not theirs[name].suits_this_code]
    if strange:
        raise SchemaMismatch(
            f"this code is older than the database, which has {strange[-1]}. Upgrade packhorse"
        )
    return newer


def check(connection: DeadlineConnection) -> None:
    """Raise SchemaMismatch unless the database has the migrations of this code, and no others but those that
    it may run beside.

    A database without an optional set is as good as one with it; one with half of it is not.
    """
    check_server(connection)
    theirs = applied(connection)
    ours = available(sets=sets_in(theirs))
    missing = [migration.name for migration in ours if migration.name not in theirs]
    changed = [m for m in ours if m.name in theirs and theirs[m.name].checksum != m.checksum]
    if missing:
        what = (
            "has no queue schema"
            if not theirs
            else f"is older than this code: {len(missing)} migration(s) missing, first {missing[0]}"
        )
        raise SchemaMismatch(f"the database {what}. Run: packhorse migrate up")
    refuse_newer(theirs, {migration.name for migration in ours})
    for migration in changed:
        if not migration.repeats:
            raise SchemaMismatch(
                f"migration {migration.name} in the database differs from the file of the same name. "
                "Another build of Packhorse made this schema: run that one, or see what differs with packhorse doctor"
            )
        if not theirs[migration.name].is_newer:
            raise SchemaMismatch(
                f"the database has another text of {migration.name} than this code. Run: packhorse migrate up"
            )


def check_server(connection: DeadlineConnection) -> None:
    """Raise SchemaMismatch for a server that is too old."""
    with translated():
        version = connection.execute(sql("server_version")).fetchone()[0]  # type: ignore[index]
    if version < MINIMUM_SERVER:
        raise SchemaMismatch(f"PostgreSQL {version // 10000} is too old: 14 or newer is needed")


def newest_applied(connection: DeadlineConnection) -> Migration | None:
    """What down() would take back: those of an optional set go before the queue that it stands on. Raises
    SchemaMismatch.
    """
    theirs = sorted(
        (name for name in applied(connection) if FUNCTIONS not in name), key=lambda name: ("/" in name, name)
    )
    ours = {migration.name: migration for migration in available(sets=sets_in(theirs))}
    unknown = [name for name in theirs if name not in ours]  # one that is not the newest may stand on it, too
    if unknown:
        raise SchemaMismatch(f"this code does not know {unknown[-1]}. Use the release that applied it")
    return ours[theirs[-1]] if theirs else None

"""Apply, list and check migrations (SPEC O8). Plain SQL files, numbered, immutable once released.

Every migration runs in a transaction of its own that holds the migrator's advisory lock and records
name and checksum; whoever comes second waits without a snapshot, reads again and finds nothing to do.
A process refuses to work on a schema it does not understand and says which side is older.

Besides the queue's own migrations there are optional sets, each a subfolder: `platform/0001_...`. A set
is in force in a database from the moment its first migration is recorded there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreConflict

T = TypeVar("T")

MINIMUM_SERVER = 140000
LOCK_WAIT_SECONDS = 60.0
#: Optional sets: subfolders of the migrations, applied after the queue's own and taken back before them.
SETS = ("platform",)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `name` without suffix (with its set, if any: `platform/0001_...`), text, sha256 of it, way back."""

    name: str
    text: str
    checksum: str
    down: str | None


def directory() -> Path:
    """Where the files are: packhorse/migrations, a link in a checkout."""
    return Path(__file__).parent.parent.parent / "migrations"


def available(path: Path | None = None, *, sets: Iterable[str] = ()) -> list[Migration]:
    """The queue's migrations in order, then those of each set.

    Raises MigrationError when a folder is missing or empty, or a set is not known.
    """
    folder = path or directory()
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        raise MigrationError(f"no set of migrations is called {unknown[0]!r}; there is: {', '.join(SETS)}")
    found = _read(folder, "")
    for name in SETS:
        if name in sets:
            found += _read(folder / name, f"{name}/")
    return found


def _read(folder: Path, prefix: str) -> list[Migration]:
    """The migrations of one folder, in order."""
    found = []
    for file in sorted(folder.glob("[0-9]*.sql")):
        if file.name.endswith(".down.sql"):
            continue
        text = file.read_text()
        down = file.with_suffix(".down.sql")
        found.append(Migration(prefix + file.stem, text, hashlib.sha256(text.encode()).hexdigest(), down.read_text() if down.exists() else None))
    if not found:
        raise MigrationError(f"no migrations found in {folder}: the installation is incomplete")
    return found


def sets_in(names: Iterable[str]) -> set[str]:
    """The optional sets that a database has, by the names recorded in it."""
    return {prefix for name in names if (prefix := name.partition("/")[0]) in SETS and prefix != name}


def applied(connection: DeadlineConnection) -> dict[str, str]:
    """Checksum by name of what was applied; empty on a database without the queue."""
    with translated():
        if not connection.execute(sql("migrations_exist")).fetchone()[0]:  # type: ignore[index]
            return {}
        return {row[0]: row[1] for row in connection.execute(sql("migrations_applied")).fetchall()}


def check(connection: DeadlineConnection) -> None:
    """Raise SchemaMismatch unless this code and the database have exactly the same migrations.

    A database without an optional set is as good as one with it; one with half of it is not.
    """
    check_server(connection)
    theirs = applied(connection)
    ours = {migration.name: migration.checksum for migration in available(sets=sets_in(theirs))}
    missing = [name for name in ours if name not in theirs]
    unknown = sorted(set(theirs) - set(ours))
    changed = sorted(name for name in ours if theirs.get(name, ours[name]) != ours[name])
    if missing:
        what = "has no queue schema" if not theirs else f"is older than this code: {len(missing)} migration(s) missing, first {missing[0]}"
        raise SchemaMismatch(f"the database {what}. Run: packhorse migrate up")
    if unknown:
        raise SchemaMismatch(f"this code is older than the database, which has {unknown[-1]}. Upgrade packhorse")
    if changed:
        raise SchemaMismatch(
            f"migration {changed[0]} in the database differs from the file of the same name. "
            "Another build of Packhorse made this schema: run that one, or see what differs with packhorse doctor"
        )


def check_server(connection: DeadlineConnection) -> None:
    """Raise SchemaMismatch for a server that is too old."""
    with translated():
        version = connection.execute(sql("server_version")).fetchone()[0]  # type: ignore[index]
    if version < MINIMUM_SERVER:
        raise SchemaMismatch(f"PostgreSQL {version // 10000} is too old: 14 or newer is needed")


def up(connection: DeadlineConnection, report: Callable[[str], Any] = lambda line: None, *, sets: Iterable[str] = ()) -> list[str]:
    """Apply what is missing; returns the names applied, [] when there was nothing to do.

    sets: optional sets to add to those that the database has already. Safe when several processes start at
    once. Raises MigrationError for a changed migration or an unknown set, SchemaMismatch for an unknown
    migration, StoreConflict when a lock could not be had within its time.
    """
    check_server(connection)
    theirs = applied(connection)
    wanted = available(sets={*sets, *sets_in(theirs)})
    unknown = sorted(set(theirs) - {migration.name for migration in wanted})
    if unknown:
        raise SchemaMismatch(f"this code is older than the database, which has {unknown[-1]}. Upgrade packhorse")
    return [migration.name for migration in wanted if _apply(connection, migration, report)]


def _apply(connection: DeadlineConnection, migration: Migration, report: Callable[[str], Any]) -> bool:
    known = applied(connection).get(migration.name)
    if known == migration.checksum:
        return False
    if known is not None:
        raise MigrationError(f"{migration.name} was changed after it was applied; restore the file of the release")

    def work() -> bool:
        connection.execute(sql("migrations_table"))
        if migration.name in applied(connection):
            return False  # somebody else was faster
        connection.execute(migration.text.encode(), prepare=False)
        connection.execute(sql("migrations_record"), (migration.name, migration.checksum))
        connection.execute(sql("migrations_readable"))
        report(migration.name)
        return True

    return alone(connection, work)


def alone(connection: DeadlineConnection, work: Callable[[], T]) -> T:
    """What `work` returns, called in a transaction that holds the migrator's lock and waits for no other lock for long.

    Raises StoreConflict, which names the holder, when another migrator keeps the lock for LOCK_WAIT_SECONDS.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        with translated(), connection.transaction():
            if connection.execute(sql("migrations_lock")).fetchone()[0]:  # type: ignore[index]
                connection.execute(sql("migrations_timeouts"))
                return work()
        if time.monotonic() > deadline:
            with translated():
                holder = connection.execute(sql("migrations_lock_holder")).fetchone()
            raise StoreConflict(f"another migrator has held the lock for {LOCK_WAIT_SECONDS:.0f} s: backend {holder}")
        time.sleep(0.1)  # waits without a transaction: a waiter must not block index builds (FAILURES 61)


def newest_applied(connection: DeadlineConnection) -> Migration | None:
    """What down() would take back: those of an optional set go before the queue that it stands on. Raises SchemaMismatch."""
    theirs = sorted(applied(connection), key=lambda name: ("/" in name, name))
    ours = {migration.name: migration for migration in available(sets=sets_in(theirs))}
    unknown = [name for name in theirs if name not in ours]  # one that is not the newest may stand on it, too
    if unknown:
        raise SchemaMismatch(f"this code does not know {unknown[-1]}. Use the release that applied it")
    return ours[theirs[-1]] if theirs else None


def down(connection: DeadlineConnection) -> str | None:
    """Take back the newest applied migration; returns its name, None when nothing is applied.

    Raises SchemaMismatch on a database that is newer, MigrationError when that migration has no way back (no NAME.down.sql).
    """
    newest = newest_applied(connection)
    if newest is None:
        return None
    if newest.down is None:
        raise MigrationError(f"{newest.name} has no way back: restore a backup, or remove the schema by hand")
    with translated(), connection.transaction():
        if not connection.execute(sql("migrations_lock")).fetchone()[0]:  # type: ignore[index]
            raise StoreConflict("another migrator is at work")
        connection.execute(sql("migrations_timeouts"))
        connection.execute(newest.down.encode(), prepare=False)
        connection.execute(sql("migrations_forget"), (newest.name,))
    return newest.name

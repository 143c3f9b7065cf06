"""Apply, list and check migrations (SPEC O8). Plain SQL files, numbered, immutable once released.

Every migration runs in a transaction of its own that holds the migrator's advisory lock and records
name and checksum; whoever comes second waits without a snapshot, reads again and finds nothing to do. In a database without the
queue all of them are one transaction: what is in the way is found before anything is changed.
A process refuses to work on a schema it does not understand and says which side is older. A migration that older code may
run beside says so: `-- Runs beside: 0.1.0` names the oldest release that does (SPEC P7b). So a rolling deploy, and a rollback of
the code, need no rollback of the schema.

Besides the queue's own migrations there are optional sets, each a subfolder: `platform/0001_...`. A set
is in force in a database from the moment its first migration is recorded there.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import LOCKED, translated
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreConflict
from packhorse.worker.version import __version__

T = TypeVar("T")

MINIMUM_SERVER = 140000
LOCK_WAIT_SECONDS = 60.0
#: Between two tries to have a lock that a long reader keeps: others get through meanwhile.
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 8.0
_RUNS_BESIDE = re.compile(r"^-- Runs beside: (\d+\.\d+\.\d+)\s*$", re.MULTILINE)
#: Optional sets: subfolders of the migrations, applied after the queue's own and taken back before them.
SETS = ("platform",)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `name` without suffix (with its set, if any: `platform/0001_...`), text, sha256 of it, way back.

    runs_beside: the oldest release whose code works on the schema with it; None: only the release that brings it.
    """

    name: str
    text: str
    checksum: str
    down: str | None
    runs_beside: str | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What the record of a database says of one migration."""

    checksum: str
    runs_beside: str | None

    @property
    def suits_this_code(self) -> bool:
        """May this code run beside it, without knowing it?"""
        return self.runs_beside is not None and _numbers(self.runs_beside) <= _numbers(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


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
        beside = _RUNS_BESIDE.search(text)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        way_back = down.read_text() if down.exists() else None
        found.append(Migration(prefix + file.stem, text, checksum, way_back, beside[1] if beside else None))
    if not found:
        raise MigrationError(f"no migrations found in {folder}: the installation is incomplete")
    return found


def sets_in(names: Iterable[str]) -> set[str]:
    """The optional sets that a database has, by the names recorded in it."""
    return {prefix for name in names if (prefix := name.partition("/")[0]) in SETS and prefix != name}


def applied(connection: DeadlineConnection) -> dict[str, Applied]:
    """What was applied, by name; empty on a database without the queue."""
    with translated():
        if not connection.execute(sql("migrations_exist")).fetchone()[0]:  # type: ignore[index]
            return {}
        return {row[0]: Applied(row[1], row[3]) for row in connection.execute(sql("migrations_applied")).fetchall()}


def _refuse_newer(theirs: dict[str, Applied], ours: Iterable[str]) -> list[str]:
    """Migrations of newer releases that this code may run beside. Raises SchemaMismatch for those that it may not."""
    newer = sorted(set(theirs) - set(ours))
    strange = [name for name in newer if not theirs[name].suits_this_code]
    if strange:
        raise SchemaMismatch(f"this code is older than the database, which has {strange[-1]}. Upgrade packhorse")
    return newer


def check(connection: DeadlineConnection) -> None:
    """Raise SchemaMismatch unless the database has the migrations of this code, and no others but those that it may run beside.

    A database without an optional set is as good as one with it; one with half of it is not.
    """
    check_server(connection)
    theirs = applied(connection)
    ours = {migration.name: migration.checksum for migration in available(sets=sets_in(theirs))}
    missing = [name for name in ours if name not in theirs]
    changed = sorted(name for name in ours if name in theirs and theirs[name].checksum != ours[name])
    if missing:
        what = "has no queue schema" if not theirs else f"is older than this code: {len(missing)} migration(s) missing, first {missing[0]}"
        raise SchemaMismatch(f"the database {what}. Run: packhorse migrate up")
    _refuse_newer(theirs, ours)
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
    newer = _refuse_newer(theirs, {migration.name for migration in wanted})
    missing = [migration.name for migration in wanted if migration.name not in theirs]
    if newer and missing:  # they were made to stand on it
        raise SchemaMismatch(f"this code is older than the database, which has {newer[-1]}, and would add {missing[0]}. Upgrade packhorse")
    for migration in wanted:
        if migration.name in theirs and theirs[migration.name].checksum != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it was applied; restore the file of the release")
    if not theirs:  # all or nothing: what is in the way of a later one is found before anything is changed
        return _apply(connection, wanted, report)
    return [name for migration in wanted if migration.name not in theirs for name in _apply(connection, [migration], report)]


def _apply(connection: DeadlineConnection, migrations: list[Migration], report: Callable[[str], Any]) -> list[str]:
    """Apply, in one transaction, those that are not recorded; their names."""

    def work() -> list[str]:
        connection.execute(sql("migrations_table"))
        known = applied(connection)
        missing = [migration for migration in migrations if migration.name not in known]  # the others: somebody else was faster
        for migration in missing:
            connection.execute(migration.text.encode(), prepare=False)
            connection.execute(sql("migrations_record"), (migration.name, migration.checksum, migration.runs_beside))
        if missing:
            connection.execute(sql("migrations_closed"))
            connection.execute(sql("migrations_readable"))
        return [migration.name for migration in missing]

    done = _patiently(lambda: alone(connection, work))
    for name in done:
        report(name)
    return done


def _patiently(work: Callable[[], T]) -> T:
    """What `work` returns. A lock that it cannot have lets those through who wait behind it; it is tried again after a pause, a longer
    one each time, for LOCK_WAIT_SECONDS."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    pause = PAUSE_SECONDS
    while True:
        try:
            return work()
        except StoreConflict as error:
            if error.sqlstate not in LOCKED or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)  # without a transaction, as in alone
        pause = min(2 * pause, MOST_PAUSE_SECONDS)


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

"""Apply, list and check migrations (SPEC O8, P7b, N2). Plain SQL files, in two kinds.

- Numbered: tables, types, indexes, policies. Each is applied once, and never changed once released.
- `functions/`: the current text of functions and views, one file per verb. A file is applied again when its
  text has changed.

Both are recorded with name, checksum, release and the names of what they make. Each numbered migration has a
transaction of its own; the functions, and the rights of all (functions/rights.sql), follow in the last one.
In a database without the queue all of it is one transaction: what is in the way is found before anything is
changed. The transaction holds the migrator's advisory lock: whoever comes second waits without a snapshot,
reads again and finds nothing to do.

A process refuses to work on a schema it does not understand and says which side is older. A migration that
older code may run beside says so: `-- Runs beside: 0.1.0` names the oldest release that does. Functions are
always so: a changed meaning is a new name. So a rolling deploy, and a rollback of the code, need no rollback
of the schema.

Besides the queue's own there are optional sets, each a subfolder of the same shape: `platform/0001_...`. A
set is in force in a database from the moment its first migration is recorded there.
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
from packhorse.worker.db.names import Names
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreConflict
from packhorse.worker.version import __version__

T = TypeVar("T")

MINIMUM_SERVER = 140000
LOCK_WAIT_SECONDS = 60.0
#: Between two tries to have a lock that a long reader keeps: others get through meanwhile.
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 8.0
#: Optional sets: subfolders of the migrations, applied after the queue's own and taken back before them.
SETS = ("platform", "public-api")
FUNCTIONS = "functions/"
#: What a set's rights are made of: a function of statements that mend them.
_RIGHTS = {"": "rights_of_queue", "platform": "rights_of_platform", "public-api": "rights_of_public_api"}
_RUNS_BESIDE = re.compile(r"^-- Runs beside: (\d+\.\d+\.\d+)\s*$", re.MULTILINE)
_MADE = re.compile(
    r"^create (?:or replace )?(?:table|view|sequence|domain|type|function) (?:if not exists )?(packhorse|platform)\.(\w+)",
    re.MULTILINE,
)
#: A name that only the record of an unreleased version has.
_UNRELEASED = "0005_create_queue_functions"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `name` without suffix, with its set and kind (`platform/0001_...`, `functions/claim`), text,
    sha256 of it, way back.

    runs_beside: the oldest release whose code works on the schema with it; None: only the release that brings
    it.
    """

    name: str
    text: str
    checksum: str
    down: str | None
    runs_beside: str | None = None

    @property
    def repeats(self) -> bool:
        """Is it applied again when its text has changed?"""
        return FUNCTIONS in self.name

    @property
    def objects(self) -> list[str]:
        """Names of the tables, views, sequences, types and functions that it makes in the schema of its set.

        What it makes elsewhere has names that the other schema's own objects have, too: that goes by `down`.
        """
        home = "platform" if set_of(self.name) else "packhorse"
        return list(dict.fromkeys(name for schema, name in _MADE.findall(self.text) if schema == home))


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


def directory() -> Path:
    """Where the files are: packhorse/migrations, a link in a checkout."""
    return Path(__file__).parent.parent.parent / "migrations"


def available(path: Path | None = None, *, sets: Iterable[str] = ()) -> list[Migration]:
    """The queue's migrations in order, then those of each set; of each the numbered ones first.

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
    numbered = [file for file in sorted(folder.glob("[0-9]*.sql")) if not file.name.endswith(".down.sql")]
    if not numbered:
        raise MigrationError(f"no migrations found in {folder}: the installation is incomplete")
    found = [_file(file, prefix + file.stem) for file in numbered]
    functions = [
        file for file in sorted((folder / FUNCTIONS).glob("*.sql")) if not file.name.endswith(".down.sql")
    ]
    return found + [_file(file, f"{prefix}{FUNCTIONS}{file.stem}") for file in functions]


def _file(file: Path, name: str) -> Migration:
    text = file.read_text()
    down = file.with_suffix(".down.sql")
    beside = _RUNS_BESIDE.search(text)
    return Migration(
        name,
        text,
        hashlib.sha256(text.encode()).hexdigest(),
        down.read_text() if down.exists() else None,
        beside[1] if beside else None,
    )


def sets_in(names: Iterable[str]) -> set[str]:
    """The optional sets that a database has, by the names recorded in it."""
    return {prefix for name in names if (prefix := name.partition("/")[0]) in SETS and prefix != name}


def set_of(name: str) -> str:
    """The set of a migration; "" for the queue's own."""
    prefix = name.partition("/")[0]
    return prefix if prefix in SETS else ""


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


def _refuse_newer(theirs: dict[str, Applied], ours: Iterable[str]) -> list[str]:
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
    _refuse_newer(theirs, {migration.name for migration in ours})
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


def up(
    connection: DeadlineConnection,
    report: Callable[[str], Any] = lambda line: None,
    *,
    sets: Iterable[str] = (),
    again: bool = False,
) -> list[str]:
    """Apply what is missing and what has changed (again: all functions and views); returns the names applied,
    [] when there was nothing to do.

    sets: optional sets to add to those that the database has already. Makes the schema db_schema when it is
    not there. Safe when several processes start at once. Raises MigrationError for a changed migration, an
    unknown set, or a schema that others use, SchemaMismatch for an unknown migration, StoreConflict when a
    lock could not be had within its time.
    """
    check_server(connection)
    theirs = applied(connection)
    wanted = available(sets={*sets, *sets_in(theirs)})
    newer = _refuse_newer(theirs, {migration.name for migration in wanted})
    missing = [
        migration.name for migration in wanted if migration.name not in theirs and not migration.repeats
    ]
    if newer and missing:  # they were made to stand on it
        raise SchemaMismatch(
            f"this code is older than the database, which has {newer[-1]}, and would add {missing[0]}. Upgrade packhorse"
        )
    for migration in wanted:
        if (
            not migration.repeats
            and migration.name in theirs
            and theirs[migration.name].checksum != migration.checksum
        ):
            raise MigrationError(
                f"{migration.name} was changed after it was applied; restore the file of the release"
            )
    if not theirs:  # all or nothing: what is in the way of a later one is found before anything is changed
        return _apply(connection, wanted, report)
    done = [
        name
        for migration in wanted
        if not migration.repeats and migration.name not in theirs
        for name in _apply(connection, [migration], report, is_last=False)
    ]
    # a set may look for another one: public-api for the platform
    grows = sets_in(m.name for m in wanted) > sets_in(theirs)
    stale = [m for m in wanted if m.repeats and (_is_stale(m, theirs, again) or (grows and set_of(m.name)))]
    if done or stale or _rights_to_mend(connection, sets_in(theirs)):
        done += _apply(connection, stale, report, again=again or grows)
    return done


def _is_stale(migration: Migration, theirs: dict[str, Applied], again: bool) -> bool:
    known = theirs.get(migration.name)
    if known is None:
        return True
    return migration.repeats and (again or known.checksum != migration.checksum) and not known.is_newer


def _apply(
    connection: DeadlineConnection,
    migrations: list[Migration],
    report: Callable[[str], Any],
    *,
    is_last: bool = True,
    again: bool = False,
) -> list[str]:
    """Apply, in one transaction, what is not recorded as it is; the names. is_last: the rights of all are
    made what they should be.
    """

    def work() -> list[str]:
        known = applied(connection)
        if not known:
            _prepare_schema(connection)
        if any(set_of(migration.name) for migration in migrations):
            _make_schema(connection, connection.names.platform)
        # the others: somebody else was faster
        missing = [migration for migration in migrations if _is_stale(migration, known, again)]
        connection.execute(sql("migrations_unchecked_bodies"))
        for migration in missing:
            apply_text(connection, migration.text)
            connection.execute(
                sql("migrations_record"),
                (migration.name, migration.checksum, migration.runs_beside, __version__, migration.objects),
            )
        if is_last:
            mend_rights(connection)
        return [migration.name for migration in missing]

    done = _patiently(lambda: alone(connection, work))
    for name in done:
        report(name)
    return done


def apply_text(connection: DeadlineConnection, text: str) -> None:
    """The statements of a file of migrations, in the schemas of this connection."""
    connection.execute(connection.names.qualified(text).encode(), prepare=False)


def _prepare_schema(connection: DeadlineConnection) -> None:
    """Schema and record. Raises MigrationError when something else stands in the schema, StoreRejected when
    it may not be made.
    """
    names = connection.names
    _make_schema(connection, names.schema)
    foreign = connection.execute(sql("schema_contents"), {"schema": names.schema}).fetchone()
    if foreign is not None:
        raise MigrationError(
            f"the schema {names.schema} has something of others: {foreign[0]} {foreign[1]}. Packhorse needs a schema of its own; nothing was "
            "changed. Give the setting db_schema another name (PACKHORSE_DB_SCHEMA), or move what is there away"
        )
    connection.execute(sql("migrations_table"))


def _make_schema(connection: DeadlineConnection, schema: str) -> None:
    """Needs the right to make one only when it is not there."""
    if not connection.execute(sql("schema_exists"), (schema,)).fetchone()[0]:  # type: ignore[index]
        connection.execute(sql("create_schema").format(name=connection.names.quoted(schema)), prepare=False)


def mend_rights(connection: DeadlineConnection) -> None:
    """Make the rights on all our objects what SECURITY.md lists; on the platform also what the tables and
    roles of the host make possible.
    """
    sets = sets_in(applied(connection))
    for statement in _rights_to_mend(connection, sets):
        connection.execute(statement.encode(), prepare=False)
    if "platform" in sets:
        connection.execute(sql("migrations_refresh_platform"))


def _rights_to_mend(connection: DeadlineConnection, sets: Iterable[str]) -> list[str]:
    with translated():
        return [
            row[0]
            for name in ("", *sorted(sets))
            for row in connection.execute(sql(_RIGHTS[name])).fetchall()
        ]


def script(names: Names, sets: Iterable[str] = ()) -> str:
    """All migrations, with those of these sets, as one SQL text for other tools: recorded, in one
    transaction. For an empty database.
    """
    parts = ["begin;", sql("migrations_unchecked_bodies") + ";"]
    schemas = (names.schema, *(names.platform for _ in set(sets)))
    parts += [
        sql("create_schema").format(name=names.quoted(schema)) + ";" for schema in dict.fromkeys(schemas)
    ]
    parts.append(names.qualified(sql("migrations_table")) + ";")
    chosen = available(sets=sets)
    for migration in chosen:
        values = ", ".join(
            "null" if value is None else "'" + value.replace("'", "''") + "'"
            for value in (
                migration.name,
                migration.checksum,
                migration.runs_beside,
                __version__,
                "{" + ",".join(migration.objects) + "}",
            )
        )
        parts.append(f"-- {migration.name}\n{names.qualified(migration.text).strip()}")
        parts.append(names.qualified(sql("migrations_record").replace("%s, %s, %s, %s, %s", values)) + ";")
    made = sets_in(migration.name for migration in chosen)
    for name in ("", *sorted(made)):
        mend = sql("migrations_mend_rights").replace("{rights}", sql(_RIGHTS[name]))
        parts.append(names.qualified(mend) + ";")
    if "platform" in made:
        parts.append(names.qualified(sql("migrations_refresh_platform")) + ";")
    return "\n\n".join([*parts, "commit;"]) + "\n"


def _patiently(work: Callable[[], T]) -> T:
    """What `work` returns. A lock that it cannot have lets those through who wait behind it; it is tried
    again after a pause, a longer one each time, for LOCK_WAIT_SECONDS."""
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
    """What `work` returns, called in a transaction that holds the migrator's lock and waits for no other lock
    for long.

    Raises StoreConflict, which names the holder, when another migrator keeps the lock for LOCK_WAIT_SECONDS.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        with translated(), connection.transaction():
            if connection.execute(sql("migrations_lock"), (connection.names.schema,)).fetchone()[0]:  # type: ignore[index]
                connection.execute(sql("migrations_timeouts"))
                return work()
        if time.monotonic() > deadline:
            with translated():
                holder = connection.execute(sql("migrations_lock_holder")).fetchone()
            raise StoreConflict(
                f"another migrator has held the lock for {LOCK_WAIT_SECONDS:.0f} s: backend {holder}"
            )
        time.sleep(0.1)  # waits without a transaction: a waiter must not block index builds (FAILURES 61)


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


def down(connection: DeadlineConnection) -> str | None:
    """Take back the newest applied migration, and all functions of its set; returns its name, None when
    nothing is applied.

    up() makes the functions again. Raises SchemaMismatch on a database that is newer, MigrationError when
    that migration has no way back (no NAME.down.sql).
    """
    newest = newest_applied(connection)
    if newest is None:
        return None
    if newest.down is None:
        raise MigrationError(f"{newest.name} has no way back: restore a backup, or remove the schema by hand")
    schema = connection.names.schema
    with translated(), connection.transaction():
        if not connection.execute(sql("migrations_lock"), (schema,)).fetchone()[0]:  # type: ignore[index]
            raise StoreConflict("another migrator is at work")
        connection.execute(sql("migrations_timeouts"))
        _drop_functions(connection, set_of(newest.name))
        apply_text(connection, newest.down)
        connection.execute(sql("migrations_forget"), (newest.name,))
    return newest.name


def _drop_functions(connection: DeadlineConnection, name: str) -> None:
    """Drop functions and views of a set, and forget that they were made. A file that makes some in the schema
    of another set says how they go (NAME.down.sql)."""
    known = applied(connection)
    for migration in available(sets=[name] if name else []):
        if migration.repeats and migration.down is not None and migration.name in known:
            apply_text(connection, migration.down)
    prefix = f"{name}/{FUNCTIONS}" if name else FUNCTIONS
    schema = connection.names.platform if name else connection.names.schema
    for (statement,) in connection.execute(
        sql("migrations_drop_functions"), {"prefix": prefix, "schema": schema}
    ).fetchall():
        connection.execute(statement.encode(), prepare=False)
    connection.execute(sql("migrations_forget_functions"), (prefix,))

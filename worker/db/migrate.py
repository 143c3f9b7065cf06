"""Apply migrations and take them back (SPEC O8, N2).

migration_files.py reads them, schema_version.py says what a database has. Each file is recorded with name,
checksum, release and the names of what it makes. Each numbered migration has a transaction of its own; the
functions, and the rights of all (functions/rights.sql), follow in the last one. In a database without the
queue all of it is one transaction: what is in the way is found before anything is changed. The transaction
holds the migrator's advisory lock: whoever comes second waits without a snapshot, reads again and finds
nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import LOCKED, translated
from packhorse.worker.db.migration_files import FUNCTIONS, Migration, available, set_of, sets_in
from packhorse.worker.db.names import Names
from packhorse.worker.db.queries import sql
from packhorse.worker.db.schema_version import Applied, applied, check_server, newest_applied, refuse_newer
from packhorse.worker.errors import MigrationError, SchemaMismatch, StoreConflict
from packhorse.worker.version import __version__

T = TypeVar("T")

LOCK_WAIT_SECONDS = 60.0
#: Between two tries to have a lock that a long reader keeps: others get through meanwhile.
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 8.0
#: What a set's rights are made of: a function of statements that mend them.
_RIGHTS = {"": "rights_of_queue", "platform": "rights_of_platform", "public-api": "rights_of_public_api"}


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
    newer = refuse_newer(theirs, {migration.name for migration in wanted})
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

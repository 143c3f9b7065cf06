"""The whole examination, in the order in which one thing makes the next possible."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from packhorse.worker.config import Settings
from packhorse.worker.db import migration_files, schema_version
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.sessions import open_for_examination, open_listen
from packhorse.worker.doctor.adopted import examine_adopted
from packhorse.worker.doctor.connections import examine_listen, examine_mode
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.doctor.server import (
    examine_copy,
    examine_partitions,
    examine_relays,
    examine_retention,
    examine_retries,
    examine_rights,
    examine_rls,
    examine_sequences,
    examine_server,
)
from packhorse.worker.doctor.snapshot import drift
from packhorse.worker.errors import SchemaMismatch, StoreRejected


def examine(url: str, settings: Settings) -> list[Finding]:
    """Every finding. Raises StoreUnavailable when there is no database to examine.

    The doctor's own connections take no prepared statements, whatever `pooler` says: that is what is
    examined.
    """
    opened = partial(open_for_examination, settings, url=url)
    listener = partial(open_listen, settings, "doctor", url=url)
    with opened() as connection, translated():
        findings = [
            examine_mode(connection, settings, opened),
            *examine_listen(settings, opened, listener),
            *examine_server(connection, settings),
        ]
        findings += _schema(connection)
    return findings


def _schema(connection: DeadlineConnection) -> Iterator[Finding]:
    """Migrations, then what stands in the catalogue, then whether the role can work with it."""
    try:
        theirs = schema_version.applied(connection)
    except StoreRejected as error:
        yield Finding(
            "migrations",
            "fail",
            f"this role may not read their record: {error}",
            "log in as a role that is in packhorse_worker or packhorse_reader",
        )
        yield examine_rls(connection)
        return
    try:
        schema_version.check(connection)
    except SchemaMismatch as error:
        text, _, mend = str(error).partition(". ")
        yield Finding("migrations", "fail", text, mend or None)
        if not theirs or "older" in text or "no queue" in text:
            return
    else:
        yield Finding("migrations", "ok", f"{len(theirs)} migrations, as this release has them")
    sets = migration_files.sets_in(theirs)
    found = drift(connection, sets)
    yield from found or [
        Finding(
            "schema",
            "ok",
            "every table, column, index, constraint, function and policy is as the migrations make it",
        )
    ]
    yield from examine_adopted(connection, sets)
    yield from examine_rights(connection, sets)
    yield examine_rls(connection)
    yield examine_copy(connection)
    yield from examine_sequences(connection)
    yield from examine_partitions(connection)
    yield from examine_retention(connection)
    yield from examine_retries(connection)
    yield from examine_relays(connection)

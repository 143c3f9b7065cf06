"""Partitions: make, detach, export, drop; one function = one statement (maintenance.sql). Names go through
psycopg.sql.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from itertools import count as count_from
from pathlib import Path
from typing import Any
from uuid import uuid4

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.maintenance import quoted
from packhorse.worker.store.rows import rows, value


@dataclass(frozen=True, slots=True)
class Parent:
    """A range-partitioned table. owned: this role may make and detach its partitions."""

    fits: bool
    owned: bool
    schema: str
    name: str
    column_type: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as the catalogue has it; bounds as text (None: open, or the default one)."""

    schema: str
    name: str
    table: str  # both, quoted where they must be
    bound: str
    lower: str | None
    upper: str | None
    is_default: bool
    detach_pending: bool
    estimated_rows: float
    bytes: int


def parent(connection: DeadlineConnection, table: str, column: str) -> Parent | None:
    """The partitioned table, and whether `column` is its only key; None when it is no partitioned table."""
    row = connection.execute(
        sql("partition_parent"), {"table": quoted(connection, table), "column": column}
    ).fetchone()
    return None if row is None else Parent(bool(row[0]), *row[1:])


def partitions(connection: DeadlineConnection, table: str) -> list[Partition]:
    """Its partitions, oldest first, the default one last."""
    return [
        Partition(*row)
        for row in connection.execute(sql("partition_list"), (quoted(connection, table),)).fetchall()
    ]


def create(
    connection: DeadlineConnection,
    of: Parent,
    name: str,
    lower: str,
    upper: str,
    *,
    fill_from: Partition | None = None,
    column: str = "",
) -> int:
    """Make a partition like its table and attach it; in the caller's transaction, which it gives a lock
    timeout of one second.

    What "like its table" means is in create_partition_table() and finish_partition()
    (migrations/functions/partitions.sql).
    fill_from: move the rows of the period out of this default partition first, writers wait; returns how
    many. Raises StoreConflict.
    """
    names = {
        "partition": composed.Identifier(of.schema, name),
        "parent": composed.Identifier(of.schema, of.name),
        "lower": composed.Literal(lower),
        "upper": composed.Literal(upper),
    }
    connection.execute(sql("partition_timeouts"))
    connection.execute(sql("partition_lock_parent"), (f"{of.schema}.{of.name}",))
    table = ".".join('"' + part.replace('"', '""') + '"' for part in (of.schema, of.name))
    connection.execute(sql("partition_create"), (table, of.schema, name))
    moved = 0
    if fill_from is not None:
        columns = [
            composed.Identifier(row[0])
            for row in connection.execute(sql("partition_columns"), (of.schema, of.name)).fetchall()
        ]
        move = names | {
            "default": composed.Identifier(fill_from.schema, fill_from.name),
            "column": composed.Identifier(column),
            "columns": composed.SQL(", ").join(columns),
        }
        _do(connection, "partition_lock_writers", names)
        moved = _do(connection, "partition_move", move).rowcount
    _do(connection, "partition_attach", names)
    connection.execute(sql("partition_finish"), {"table": table, "schema": of.schema, "name": name})
    return moved


def detach(connection: DeadlineConnection, of: Parent, which: Partition, *, lock_timeout: str) -> None:
    """Detach without a long lock; outside any transaction. Behind a pooler writers wait for an instant.

    Finishes a detach that was interrupted. Raises StoreConflict, StoreRejected.
    """
    names = {
        "parent": composed.Identifier(of.schema, of.name),
        "partition": composed.Identifier(which.schema, which.name),
    }
    record = {
        "parent": f"{of.schema}.{of.name}",
        "partition": which.table,
        "lower": which.lower or "",
        "upper": which.upper or "",
    }
    connection.execute(sql("partition_detaching"), record)
    pending = connection.execute(sql("partition_is_pending"), (which.table,)).fetchone()
    # a timeout of the session would be a stranger's, and without one it may wait for hours
    if pending is not None and connection.pooled:
        with connection.transaction():
            connection.execute(sql("partition_timeouts"))
            _do(connection, "partition_detach_finalize" if pending[0] else "partition_detach_at_once", names)
    elif pending is not None:
        connection.execute(sql("session_lock_timeout"), (lock_timeout,))
        try:
            _do(connection, "partition_detach_finalize" if pending[0] else "partition_detach", names)
        finally:
            if not connection.closed:
                connection.execute(sql("session_lock_timeout"), ("0",))
    connection.execute(sql("partition_detached"), (record["parent"], which.table))


def droppable(connection: DeadlineConnection, of: Parent, grace_seconds: float) -> list[Row]:
    """Detached partitions whose grace is over."""
    return rows(connection, "partition_droppable", (f"{of.schema}.{of.name}", grace_seconds))


def is_attached(connection: DeadlineConnection, partition: str) -> bool:
    """Is the table a partition (again)?"""
    return bool(value(connection, "partition_is_attached", (partition,)))


def drop(connection: DeadlineConnection, of: Parent, partition: str) -> None:
    """Drop a detached partition and remember it; in the caller's transaction. partition: as Partition.table
    writes it.
    """
    connection.execute(sql("partition_timeouts"))
    _do(connection, "partition_drop", {"partition": _identifier(connection, partition)})
    connection.execute(sql("partition_dropped"), (f"{of.schema}.{of.name}", partition))


def export(
    connection: DeadlineConnection, of: Parent, partition: str, directory: Path
) -> tuple[Path, int, str]:
    """Write a detached partition as gzipped CSV with a header; path, rows and sha256 of the file. Raises
    OSError, StoreError.

    Written under another name first: a file that stands there is whole. It may be all that is left of an
    earlier partition of this name, so that another one is numbered.
    """
    statement = composed.SQL(sql("partition_copy")).format(partition=_identifier(connection, partition))
    stem = partition.replace('"', "")
    partial = directory / f"{stem}.{uuid4()}.partial"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w+b") as raw:
            with (
                gzip.GzipFile(fileobj=raw, mode="wb") as file,
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                connection.execute(sql("partition_copy_all"))
                with cursor.copy(statement) as copy:
                    for block in copy:
                        file.write(block)
                count = cursor.rowcount
            raw.flush()
            os.fsync(raw.fileno())  # the partition is dropped after this
            raw.seek(0)
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        path = next(
            p
            for n in count_from(1)
            if not (p := directory / (f"{stem}.csv.gz" if n == 1 else f"{stem}.{n}.csv.gz")).exists()
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(directory, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    connection.execute(
        sql("partition_exported"), (str(path), count, digest, f"{of.schema}.{of.name}", partition)
    )
    return path, count, digest


def default_span(
    connection: DeadlineConnection, partition: Partition, column: str
) -> tuple[datetime | None, int]:
    """The oldest row of a default partition and how many there are."""
    statement = composed.SQL(sql("partition_default_span")).format(
        partition=composed.Identifier(partition.schema, partition.name), column=composed.Identifier(column)
    )
    row = connection.execute(statement).fetchone()
    return row[0], int(row[1])  # type: ignore[index]


def history(connection: DeadlineConnection, table: str | None, limit: int) -> list[Row]:
    """What was detached, exported and dropped, newest first."""
    return rows(connection, "partition_history", {"table": table, "limit": limit})


def longest_keep_done(connection: DeadlineConnection) -> int | None:
    """Days that the archive has to keep."""
    return value(connection, "longest_keep_done")  # type: ignore[no-any-return]


def make_as_owner(connection: DeadlineConnection, statement: str, ahead: int) -> int:
    """Make the partitions of one of our own tables through its SQL function; how many are new."""
    return int(value(connection, statement, (ahead,)))


def drop_archive_as_owner(connection: DeadlineConnection) -> int:
    """Drop old partitions of the archive through its SQL function; how many."""
    return int(value(connection, "archive_drop"))


def _identifier(connection: DeadlineConnection, partition: str) -> composed.Identifier:
    """From the text of Partition.table."""
    return composed.Identifier(*value(connection, "partition_name_parts", (partition,)))


def _do(connection: DeadlineConnection, name: str, names: dict[str, Any]) -> Any:
    return connection.execute(composed.SQL(sql(name)).format(**names), prepare=False)

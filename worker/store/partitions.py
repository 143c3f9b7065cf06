"""Partitions: make, detach, export, drop; one function = one statement (maintenance.sql). Names go through psycopg.sql."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg import sql as composed

from worker.db.connection import DeadlineConnection
from worker.db.queries import sql
from worker.records import Row
from worker.store.rows import rows, value


@dataclass(frozen=True, slots=True)
class Parent:
    """A range-partitioned table. owned: this role may make and detach its partitions."""

    fits: bool
    owned: bool
    schema: str
    name: str
    row_security: bool
    column_type: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as the catalogue has it; bounds as text (None for the default one)."""

    partition: str
    name: str
    bound: str
    lower: str | None
    upper: str | None
    is_default: bool
    detach_pending: bool
    estimated_rows: float
    bytes: int


def parent(connection: DeadlineConnection, table: str, column: str) -> Parent | None:
    """The partitioned table, and whether `column` is its only key; None when it is no partitioned table."""
    row = connection.execute(sql("partition_parent"), {"table": table, "column": column}).fetchone()
    return None if row is None else Parent(bool(row[0]), *row[1:])


def partitions(connection: DeadlineConnection, table: str) -> list[Partition]:
    """Its partitions, oldest first, the default one last."""
    return [Partition(*row) for row in connection.execute(sql("partition_list"), (table,)).fetchall()]


def create(connection: DeadlineConnection, of: Parent, name: str, lower: str, upper: str, *, fill_from: str | None = None, column: str = "") -> int:
    """Make a partition and attach it; in the caller's transaction, which it gives a lock timeout of one second.

    fill_from: move the rows of the period out of this default partition first; returns how many. Raises StoreConflict.
    """
    names = {"partition": composed.Identifier(of.schema, name), "parent": composed.Identifier(of.schema, of.name),
             "lower": composed.Literal(lower), "upper": composed.Literal(upper)}
    connection.execute(sql("partition_timeouts"))
    connection.execute(sql("partition_lock_parent"), (f"{of.schema}.{of.name}",))
    _do(connection, "partition_create", names)
    if of.row_security:
        _do(connection, "partition_secure", names)
    moved = 0
    if fill_from is not None:
        move = names | {"default": composed.Identifier(*fill_from.split(".")), "column": composed.Identifier(column)}
        moved = _do(connection, "partition_move", move).rowcount
    _do(connection, "partition_attach", names)
    return moved


def detach(connection: DeadlineConnection, of: Parent, which: Partition, *, lock_timeout: str = "5s") -> None:
    """Detach without a long lock; outside any transaction. Finishes a detach that was interrupted. Raises StoreConflict, StoreRejected."""
    names = {"parent": composed.Identifier(of.schema, of.name), "partition": composed.Identifier(of.schema, which.name)}
    connection.execute(sql("session_lock_timeout"), (lock_timeout,))
    try:
        _do(connection, "partition_detach_finalize" if which.detach_pending else "partition_detach", names)
    finally:
        if not connection.closed:
            connection.execute(sql("session_lock_timeout"), ("0",))
    connection.execute(sql("partition_detached"), (f"{of.schema}.{of.name}", f"{of.schema}.{which.name}", which.lower, which.upper))


def droppable(connection: DeadlineConnection, of: Parent, grace_seconds: float) -> list[Row]:
    """Detached partitions whose grace is over."""
    return rows(connection, "partition_droppable", (f"{of.schema}.{of.name}", grace_seconds))


def is_alone(connection: DeadlineConnection, partition: str) -> bool:
    """Does the table exist, as nobody's partition?"""
    return bool(value(connection, "partition_is_alone", {"partition": partition}))


def drop(connection: DeadlineConnection, of: Parent, partition: str, *, exists: bool) -> None:
    """Drop a detached partition and remember it; in the caller's transaction."""
    connection.execute(sql("partition_timeouts"))
    if exists:
        _do(connection, "partition_drop", {"partition": composed.Identifier(*partition.split("."))})
    connection.execute(sql("partition_dropped"), (f"{of.schema}.{of.name}", partition))


def export(connection: DeadlineConnection, of: Parent, partition: str, directory: Path) -> tuple[Path, int, str]:
    """Write a detached partition as gzipped CSV with a header; path, rows and sha256 of the file. Raises OSError, StoreError.

    Written under another name first: a file that stands there is whole.
    """
    path = directory / f"{partition}.csv.gz"
    partial = path.with_suffix(".partial")
    lines = -1  # the header is none
    directory.mkdir(parents=True, exist_ok=True)
    statement = composed.SQL(sql("partition_copy")).format(partition=composed.Identifier(*partition.split(".")))
    quoted = False
    with gzip.open(partial, "wb") as file, connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy:
            data = bytes(block)
            file.write(data)
            # a record ends at a line end outside quotes; an odd number of quotes turns inside into outside
            for piece in data.splitlines(keepends=True):
                quoted ^= bool(piece.count(b'"') % 2)
                lines += piece.endswith(b"\n") and not quoted
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(path)
    connection.execute(sql("partition_exported"), (str(path), lines, digest, f"{of.schema}.{of.name}", partition))
    return path, lines, digest


def default_span(connection: DeadlineConnection, partition: str, column: str) -> tuple[datetime | None, int]:
    """The oldest row of a default partition and how many there are."""
    statement = composed.SQL(sql("partition_default_span")).format(
        partition=composed.Identifier(*partition.split(".")), column=composed.Identifier(column))
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


def _do(connection: DeadlineConnection, name: str, names: dict[str, Any]) -> Any:
    return connection.execute(composed.SQL(sql(name)).format(**names), prepare=False)

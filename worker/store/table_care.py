"""Table care: read-only reports on tables, indexes, sequences and snapshots (table_care.sql, SPEC M9)."""

from __future__ import annotations

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows


def tables(connection: DeadlineConnection) -> list[Row]:
    """The largest tables of the queue's schema: size, rows, dead rows, estimated bloat, last vacuum, advice;
    at most 50.
    """
    return rows(connection, "care_tables")


def partitions(connection: DeadlineConnection) -> list[Row]:
    """Range-partitioned tables: partitions, end of the last one, rows in a default partition, interrupted
    detaches.
    """
    return rows(connection, "care_partitions")


def indexes(connection: DeadlineConnection) -> list[Row]:
    """Indexes that are invalid, or that nobody has read since statistics were reset."""
    return rows(connection, "care_indexes")


def sequences(connection: DeadlineConnection) -> list[Row]:
    """Sequences and how much of their range is used; those above one per cent."""
    return rows(connection, "care_sequences")


def snapshots(connection: DeadlineConnection) -> list[Row]:
    """Backends and prepared transactions that hold old snapshots: vacuum cannot clean what they may see."""
    return rows(connection, "care_snapshots")

"""Partitions: what each table has, and until when inserts find one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from packhorse.worker.records import Row
from packhorse.worker.store import inspection, partitions
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/partitions"
TITLE = "Partitions"
NAV = "Partitions"
TEMPLATE = "partitions.html"

#: Widths of the timeline, in its own unit.
WIDTH = 1000


@dataclass(frozen=True, slots=True)
class Bar:
    """A partition on the timeline of its table: x and width of 0..WIDTH; bounds as the database writes
    them.
    """

    name: str
    x: int
    width: int
    row: Row


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """now: where the present is on the timeline, 0..WIDTH; None when no partition has bounds in time. others:
    those without such bounds.
    """

    name: str
    bars: tuple[Bar, ...]
    others: tuple[Row, ...]
    now: int | None
    runway: Row | None
    bytes: int
    rows: float
    has_default: bool
    detach_pending: bool


@dataclass(frozen=True, slots=True)
class PartitionsPage:
    """history: what was detached, exported, dropped; newest first."""

    tables: tuple[PartitionedTable, ...]
    history: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> PartitionsPage:
    """No parameters."""
    found = await reader.ask("partitions", 10.0, inspection.partitions)
    runways = {
        str(row["table_name"]): row for row in await reader.ask("partition runways", 10.0, inspection.runways)
    }
    history = await reader.ask("partition history", 10.0, partitions.history, None, 50)
    by_table: dict[str, list[Row]] = {}
    for row in found:
        by_table.setdefault(row["parent"], []).append(row)
    tables = [
        table_of(name, rows, runways.get(rows[0]["name"]) or runways.get(name), datetime.now(UTC))
        for name, rows in by_table.items()
    ]
    return PartitionsPage(tuple(tables), history, "packhorse partitions status")


def table_of(name: str, rows: list[Row], runway: Row | None, now: datetime) -> PartitionedTable:
    """A table with its timeline: from the first bound to the last, or to now when that is later."""
    kept = [row for row in rows if row["partition"] is not None]
    spans = [(row, _moment(row["lower_bound"]), _moment(row["upper_bound"])) for row in kept]
    timed = [
        (row, lower, upper)
        for row, lower, upper in spans
        if lower is not None and upper is not None and lower < upper
    ]
    bars: tuple[Bar, ...] = ()
    place = None
    if timed:
        start = min(min(lower for _, lower, _ in timed), now)
        end = max(max(upper for _, _, upper in timed), now)
        scale = WIDTH / max((end - start).total_seconds(), 1.0)
        bars = tuple(
            Bar(
                row["partition"],
                round((lower - start).total_seconds() * scale),
                max(1, round((upper - lower).total_seconds() * scale) - 1),
                row,
            )
            for row, lower, upper in timed
        )
        place = round((now - start).total_seconds() * scale)
    return PartitionedTable(
        name,
        bars,
        tuple(row for row, lower, upper in spans if lower is None or upper is None),
        place,
        runway,
        sum(int(row["bytes"] or 0) for row in kept),
        sum(float(row["estimated_rows"] or 0) for row in kept),
        any(row["is_default"] for row in kept),
        any(row["detach_pending"] for row in kept),
    )


def _moment(text: str | None) -> datetime | None:
    """A bound that is a time; one without a zone counts as UTC."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)

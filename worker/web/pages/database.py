"""The database: its connections, who holds an old snapshot, sizes and dead rows."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import inspection, table_care
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/database"
TITLE = "Database"
NAV = "Database"
TEMPLATE = "database.html"


@dataclass(frozen=True, slots=True)
class DatabasePage:
    """snapshots: who keeps vacuum from its work. indexes: invalid ones, and those that nobody reads."""

    server: Row
    connections: list[Row]
    snapshots: list[Row]
    tables: list[Row]
    indexes: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> DatabasePage:
    """No parameters."""
    return DatabasePage(
        await reader.ask("server", 10.0, inspection.server),
        await reader.ask("connections", 5.0, inspection.connections),
        await reader.ask("snapshots", 5.0, table_care.snapshots),
        await reader.ask("table sizes", 30.0, table_care.tables),
        await reader.ask("index care", 60.0, table_care.indexes),
        "packhorse table-care",
    )

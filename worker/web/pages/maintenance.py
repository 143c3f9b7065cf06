"""Maintenance: what configuration plans, what ran, what holds it; and backfills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packhorse.worker.records import Row
from packhorse.worker.store import backfills, inspection, maintenance
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.render import payload_rows
from packhorse.worker.web.screens import Query

PATH = "/maintenance"
TITLE = "Maintenance"
NAV = "Maintenance"
TEMPLATE = "maintenance.html"

MOST_RUNS = 50


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A maintenance task. last: its last run; None when it never ran. policy: as configuration says it, as
    lines of a tree; empty when it says nothing."""

    name: str
    policy: list[Row]
    rows_total: int
    last: Row | None


@dataclass(frozen=True, slots=True)
class MaintenancePage:
    """task: the one whose runs are shown; None for all."""

    tasks: tuple[TaskLine, ...]
    backfills: list[Row]
    runs: list[Row]
    task: str | None
    command: str


async def load(reader: Reader, query: Query) -> MaintenancePage:
    """Parameter: task, for the runs of one."""
    chosen = parameters.text(query, "task")
    planned = {
        str(row["task"]): row for row in await reader.ask("maintenance policies", 10.0, inspection.policies)
    }
    last = {str(row["task"]): row for row in await reader.ask("maintenance health", 2.0, maintenance.health)}
    runs = await reader.ask("maintenance runs", 2.0, maintenance.history, chosen, MOST_RUNS)
    progress = await reader.ask("backfills", 2.0, backfills.progress)
    tasks = tuple(
        TaskLine(
            name,
            _lines(planned.get(name, {}).get("policy")),
            int(planned.get(name, {}).get("rows_total") or 0),
            last.get(name),
        )
        for name in sorted({*planned, *last})
        if not name.startswith("backfill.")
    )
    return MaintenancePage(tasks, progress, runs, chosen, "packhorse maintenance status")


def _lines(policy: Any) -> list[Row]:
    """Configuration is no payload: its values are shown."""
    return payload_rows(policy, masked=False) if policy else []

"""Maintenance: the whole plan with its next times, what runs and what holds it; and backfills."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.schedules.backfill import known
from packhorse.schedules.maintenance import overview
from packhorse.schedules.maintenance.overview import Overview
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import ConfigError
from packhorse.worker.records import Row
from packhorse.worker.store import backfills, maintenance
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/maintenance"
TITLE = "Maintenance"
NAV = "Maintenance"
TEMPLATE = "maintenance.html"

MOST_RUNS = 50
#: Tables of backfills that nobody has begun appear seldom.
UNBEGUN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ready:
    """Backfills that could be started. problem: why those of the application are not among them."""

    backfills: tuple[known.Unbegun, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class MaintenancePage:
    """task: the one whose runs are shown; None for all."""

    plan: Overview
    backfills: list[Row]
    ready: Ready
    runs: list[Row]
    task: str | None
    command: str


async def load(reader: Reader, query: Query) -> MaintenancePage:
    """Parameter: task, for the runs of one."""
    chosen = parameters.text(query, "task")
    plan = await reader.ask("maintenance plan", 2.0, overview.overview)
    runs = await reader.ask("maintenance runs", 2.0, maintenance.history, chosen, MOST_RUNS)
    begun = await reader.ask("backfills", 2.0, backfills.progress)
    ready = await reader.ask("backfills to begin", UNBEGUN_SECONDS, _ready)
    return MaintenancePage(plan, begun, ready, runs, chosen, "packhorse maintenance list")


def _ready(connection: DeadlineConnection) -> Ready:
    problem = None
    try:
        from packhorse.worker.runtime.actors import import_configured

        import_configured()
    except ConfigError as error:
        problem = str(error)
    return Ready(tuple(known.unbegun(connection)), problem)

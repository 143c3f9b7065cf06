"""The timetable: what runs next, what was missed."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/schedules"
TITLE = "Schedules"
NAV = "Schedules"
TEMPLATE = "schedules.html"

NEXT = 10


@dataclass(frozen=True, slots=True)
class SchedulesPage:
    """coming: the next planned times; of a cron expression the first only, for only a scheduler computes the
    others.
    """

    schedules: list[Row]
    coming: list[Row]
    missed: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> SchedulesPage:
    """No parameters."""
    return SchedulesPage(
        await reader.ask("schedules", 5.0, inspection.schedules),
        await reader.ask("schedules next", 5.0, inspection.next_runs, None, NEXT),
        await reader.ask("schedules missed", 10.0, inspection.missed, 20),
        "packhorse schedule list",
    )

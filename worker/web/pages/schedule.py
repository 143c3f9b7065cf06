"""One schedule and its runs."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/schedules/{name}"
TITLE = "Schedule"
NAV = None
TEMPLATE = "schedule.html"

NEXT = 10
MOST_RUNS = 50


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """coming: the next times of a period; of a cron expression the first only, and `next_command` tells the
    others.
    """

    schedule: Row
    coming: list[Row]
    runs: list[Row]
    command: str
    next_command: str


async def load(reader: Reader, query: Query) -> SchedulePage:
    """Parameter: name. Raises InvalidArgument when there is none."""
    name = parameters.text(query, "name") or ""
    schedule = await reader.ask("schedule", 2.0, inspection.schedule, name)
    if schedule is None:
        raise InvalidArgument(
            f"schedule: there is no {name[:100]!r}",
            field="schedule",
            hint="The list of schedules has all of them",
        )
    coming = await reader.ask("schedules next", 5.0, inspection.next_runs, name, NEXT)
    runs = await reader.ask("schedule runs", 2.0, inspection.schedule_runs, name, MOST_RUNS)
    return SchedulePage(
        schedule, coming, runs, f"packhorse schedule show {name}", f"packhorse schedule next {name}"
    )

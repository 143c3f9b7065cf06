"""The overview: problems first, then queues."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import health, web
from packhorse.worker.web.reading import NoAnswer, Reader
from packhorse.worker.web.screens import Query

PATH = "/"
TITLE = "Overview"
NAV = "Overview"
TEMPLATE = "overview.html"

#: Checks that are asked, with the screen that shows more of it.
CHECKS = {
    "system_summary": "/workers",
    "queue_health": "/queues",
    "dead_letters": "/dead-letters",
    "conversation_state": "/messages?where=state%3Dblocked",
    "error_rate": "/dead-letters",
    "circuit_breakers": "/services",
    "stale_locks": "/workers",
    "processing_latency": "/queues",
}
CHECK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that is not as it should be. status: warn or fail. path: of the screen that shows more."""

    check: str
    status: str
    summary: str
    path: str


@dataclass(frozen=True, slots=True)
class OverviewPage:
    concerns: list[Concern]
    queues: list[Row]


async def load(reader: Reader, query: Query) -> OverviewPage:
    concerns = []
    for check, path in CHECKS.items():
        try:
            (row,) = await reader.ask(f"check {check}", CHECK_SECONDS, health.checks, check)
        except NoAnswer as error:
            concerns.append(Concern(check, "fail", f"cannot be checked: {error}", path))
            continue
        if row["status"] in ("warn", "fail"):
            concerns.append(Concern(check, row["status"], row["summary"], path))
    concerns.sort(key=lambda concern: concern.status)
    return OverviewPage(concerns, await reader.ask("queues", 2.0, web.queues))

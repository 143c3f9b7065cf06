"""All queues: how much waits and for how long, and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.store.browse import Count
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/queues"
TITLE = "Queues"
NAV = "Queues"
TEMPLATE = "queues.html"


@dataclass(frozen=True, slots=True)
class QueueLine:
    """depths: due, delayed, running, blocked, oldest_due_seconds, estimates. settings: None for a queue that
    nobody has declared. dead: its dead letters; None: it has none."""

    name: str
    depths: Row | None
    settings: Row | None
    dead: Count | None


@dataclass(frozen=True, slots=True)
class QueuesPage:
    """lines: by name, those that nobody has declared last."""

    lines: tuple[QueueLine, ...]
    command: str


async def load(reader: Reader, query: Query) -> QueuesPage:
    """No parameters."""
    depths = {str(row["queue"]): row for row in await reader.ask("queue depths", 2.0, inspection.depths)}
    settings = {str(row["name"]): row for row in await reader.ask("queue settings", 5.0, inspection.queues)}
    dead = await reader.ask("dead letters by queue", 5.0, inspection.dead_by_queue)
    names = sorted({*depths, *settings, *dead}, key=lambda name: (name not in settings, name))
    return QueuesPage(
        tuple(QueueLine(name, depths.get(name), settings.get(name), dead.get(name)) for name in names),
        "packhorse queue list",
    )

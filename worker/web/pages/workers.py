"""Worker processes: their slots, what each runs for how long, their versions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/workers"
TITLE = "Workers"
NAV = "Workers"
TEMPLATE = "workers.html"

MOST_WORKERS = 1000
MOST_RUNNING = 1000


@dataclass(frozen=True, slots=True)
class Process:
    """A worker process and the messages that it holds, longest first."""

    worker: Row
    running: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class WorkersPage:
    """versions: how many live processes run each. unheld: running messages whose holder is no known
    process.
    """

    processes: tuple[Process, ...]
    versions: tuple[tuple[str, int], ...]
    slots: int
    busy: int
    unheld: tuple[Row, ...]
    command: str


async def load(reader: Reader, query: Query) -> WorkersPage:
    """No parameters."""
    workers = await reader.ask("workers", 2.0, inspection.workers, MOST_WORKERS)
    running = await reader.ask("running messages", 2.0, inspection.running, MOST_RUNNING)
    held: dict[UUID, list[Row]] = {}
    for message in running:
        held.setdefault(message["lease_holder"], []).append(message)
    live = [worker for worker in workers if not worker["silent"]]
    known = {worker["id"] for worker in workers}
    return WorkersPage(
        tuple(Process(worker, tuple(held.get(worker["id"], ()))) for worker in workers),
        tuple(sorted(Counter(str(worker["version"]) for worker in live).items())),
        sum(int(worker["threads"]) for worker in live),
        sum(int(worker["running"]) for worker in live),
        tuple(message for message in running if message["lease_holder"] not in known),
        "packhorse workers list",
    )

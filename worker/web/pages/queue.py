"""One queue: its settings, what its workers register, what comes next."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.errors import UnknownQueue
from packhorse.worker.records import Row
from packhorse.worker.store import inspection
from packhorse.worker.store.browse import Count
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/queues/{name}"
TITLE = "Queue"
NAV = None
TEMPLATE = "queue.html"


@dataclass(frozen=True, slots=True)
class QueuePage:
    """settings: None for a queue that nobody has declared and that messages name all the same. depths: None
    when nothing is in it. dead: its dead letters; None: it has none.
    """

    name: str
    settings: Row | None
    depths: Row | None
    dead: Count | None
    types: list[Row]
    workers: tuple[Row, ...]
    oldest: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> QueuePage:
    """Parameter: name. Raises UnknownQueue when neither settings nor messages know it."""
    name = parameters.text(query, "name") or ""
    settings = await reader.ask("queue", 2.0, inspection.queue, name)
    depths = {str(row["queue"]): row for row in await reader.ask("queue depths", 2.0, inspection.depths)}
    dead = await reader.ask("dead letters by queue", 5.0, inspection.dead_by_queue)
    if settings is None and name not in depths and name not in dead:
        raise UnknownQueue(
            f"queue: there is no {name[:100]!r}", field="queue", hint="The list of queues has all of them"
        )
    types = await reader.ask("queue types", 5.0, inspection.types_of, name)
    oldest = await reader.ask("queue oldest", 2.0, inspection.oldest_of, name)
    workers = await reader.ask("workers", 2.0, inspection.workers, 1000)
    mine = tuple(worker for worker in workers if name in worker["queues"])
    return QueuePage(
        name, settings, depths.get(name), dead.get(name), types, mine, oldest, f"packhorse queue show {name}"
    )

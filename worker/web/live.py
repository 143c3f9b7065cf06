"""Server-sent events: one `tick` for all who watch a database, at which pages fetch their fragment anew (SPEC
O6).

A tick comes every two seconds, and later when what the pages asked since the last one is more than their
budget: so they send MOST_QUERIES_PER_SECOND statements at most, however many look and at whatever. When
they kept the database busy for more than MOST_BUSY of the time it comes later as well, up to
MOST_BUSY_SECONDS: a database that is slow because others work on it is asked less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from packhorse.worker.web.reading import Site

TICK_SECONDS = 2.0
#: The budget of what refreshes by itself; what people click comes on top. A minute may begin and end with a
#: round of all: of twenty screens that is one more a second.
MOST_QUERIES_PER_SECOND = 3.5
MOST_BUSY, MOST_BUSY_SECONDS = 0.02, 10.0
#: Nobody waits longer for a tick, whatever the last one cost.
MOST_SECONDS = 30.0
MOST_LISTENERS = 500


class Ticker:
    """The ticks of one database; a task makes them while somebody listens."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._listeners: set[asyncio.Queue[str | None]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._listeners) >= MOST_LISTENERS

    async def events(self) -> AsyncIterator[bytes]:
        """The stream of one listener, until it goes away or stop() is called."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(1)
        self._listeners.add(queue)
        if self._task is None:
            self._task = asyncio.create_task(self._tick())
        try:
            yield b"retry: 3000\n\n"
            while (event := await queue.get()) is not None:
                yield f"event: {event}\ndata: {{}}\n\n".encode()
        finally:
            self._listeners.discard(queue)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    def stop(self) -> None:
        """End all streams."""
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    async def _tick(self) -> None:
        asked, busy = self._site.asked_total, self._site.busy_seconds
        pause = TICK_SECONDS
        while True:
            await asyncio.sleep(pause)
            earlier_asked, earlier_busy = asked, busy
            asked, busy = self._site.asked_total, self._site.busy_seconds
            pause = max(
                TICK_SECONDS,
                min(MOST_SECONDS, (asked - earlier_asked) / MOST_QUERIES_PER_SECOND),
                min(MOST_BUSY_SECONDS, (busy - earlier_busy) / MOST_BUSY),
            )
            for queue in self._listeners:
                if not queue.full():  # who has not read the last one needs no second
                    queue.put_nowait("tick")

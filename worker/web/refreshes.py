"""What windows that watch fetch at a tick: made once for all who may see the same (SPEC O6).

A refresh depends on its address, the role of the visitor and what an act has just said to him, and on nothing
else of him: the templates of screens have neither his name nor a form token. So one that was made less than
FRESH_SECONDS ago, or is being made, is sent to the others as it is, compressed as well.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

#: Less than the pause between two ticks: who comes at a tick sees nothing of the tick before.
FRESH_SECONDS = 1.0
#: A smaller body is sent as it is.
LEAST_COMPRESSED, LEVEL = 500, 6


@dataclass(frozen=True, slots=True)
class Refresh:
    """A fragment. compressed: by gzip; None when that is not worth it."""

    body: bytes
    compressed: bytes | None


class Refreshes:
    """Those of one database; used by the event loop alone."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[float, asyncio.Task[Refresh]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> Refresh:
        """The one of this key; make() when there is none that is fresh. Raises what make() raises."""
        now = time.monotonic()
        begun_at, task = self._made.get(key, (float("-inf"), None))
        if task is None or now - begun_at >= FRESH_SECONDS:
            self._made = {each: kept for each, kept in self._made.items() if now - kept[0] < FRESH_SECONDS}
            task = asyncio.ensure_future(_made(make))
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # all may have gone away
            self._made[key] = (now, task)
        return await asyncio.shield(task)  # who goes away does not end it for the others

    def forget(self) -> None:
        """Nothing made so far is sent again: after an act its effect shall be seen."""
        self._made.clear()


async def _made(make: Callable[[], Awaitable[bytes]]) -> Refresh:
    body = await make()
    return Refresh(body, gzip.compress(body, LEVEL, mtime=0) if len(body) >= LEAST_COMPRESSED else None)

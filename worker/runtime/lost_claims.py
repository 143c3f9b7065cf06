"""A claim can commit while its answer is lost with the connection: what it leased never starts here (SPEC
P5).

Left alone its lease would run out and count as a crash of the message. So what is leased to us and unknown to
us is handed back, again for a while, because a statement that was cut off may still be running.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from uuid import UUID

from packhorse.worker.db.pool import Link
from packhorse.worker.store import messages as store

logger = logging.getLogger("packhorse.fetcher")

REPEAT_SECONDS = 5.0


class LostClaims:
    """Used by the fetcher's thread."""

    def __init__(self, link: Link, worker_id: UUID, lease_seconds: float) -> None:
        self._link = link
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._until = 0.0
        self._next = 0.0

    def suspected(self) -> None:
        """The connection broke during a claim."""
        self._until = time.monotonic() + self._lease_seconds + REPEAT_SECONDS
        self._next = 0.0

    def hand_back(self, held: Iterable[int]) -> None:
        """When there is reason to: hand back what is leased to us and not among `held`."""
        now = time.monotonic()
        if now >= self._until or now < self._next:
            return
        with self._link.connection() as connection:
            count = store.release_unknown(connection, self._worker_id, list(held))
        self._next = now + REPEAT_SECONDS
        if count:
            logger.info("claims_recovered count=%d worker_id=%s", count, self._worker_id)

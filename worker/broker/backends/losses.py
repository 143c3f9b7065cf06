"""What becomes of a message whose result cannot be kept because the backend is away: it ends as its handler
has ended it.

The handler has run. To run it again, for the sake of a result that somebody may be waiting for, would repeat
its effects, and as often as the outage lasts. So the result is lost, one line says so, and who waits for it
gets ResultTimeout or ResultMissing.
"""

from __future__ import annotations

import logging
from typing import Any

from dramatiq.results import ResultBackend

from packhorse.worker.errors import StoreUnavailable

logger = logging.getLogger("packhorse.results")


class TellsLosses(ResultBackend):
    """Stands before a result backend whose `_store` raises StoreUnavailable."""

    def store_result(self, message: Any, result: Any, ttl: int) -> None:
        """Keep the result for ttl ms, or say that it is lost."""
        try:
            super().store_result(message, result, ttl)
        except StoreUnavailable as error:
            _tell(message, error)

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None:
        """Keep class and text of a failure for ttl ms, or say that they are lost."""
        try:
            super().store_exception(message, exception, ttl)  # type: ignore[arg-type]  # dramatiq gives it any
        except StoreUnavailable as error:
            _tell(message, error)


def _tell(message: Any, error: StoreUnavailable) -> None:
    logger.error(
        "result_lost message_id=%s actor=%s error=%s",
        getattr(message, "id", message.message_id),
        message.actor_name,
        error,
    )

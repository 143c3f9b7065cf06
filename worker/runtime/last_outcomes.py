"""The outcomes that are still to be written when a process ends (SPEC W6)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AT_WORK
from packhorse.worker.errors import StoreError
from packhorse.worker.runtime.fetcher import Fetcher
from packhorse.worker.runtime.slots import Slot

logger = logging.getLogger("packhorse.process")


def write_last(
    fetcher: Fetcher, slot_of: Callable[[ClaimedMessage], Slot | None], limit_seconds: float
) -> bool:
    """Stop the fetcher, hand back the unstarted, write the last outcomes; bounded: the parent takes care of
    the rest once this process is gone. False: it still holds something.
    """
    deadline = time.monotonic() + limit_seconds
    fetcher.stop()
    if not fetcher.wait(limit_seconds + 1):  # its connection is its own
        return False
    while time.monotonic() < deadline:
        try:
            fetcher.release_unstarted()
            if fetcher.unwritten:
                fetcher.run_once()
            elif _hands_over(fetcher, slot_of):
                time.sleep(0.01)
            else:
                break
        except StoreError as error:
            logger.warning("drain_waits error_class=%s", type(error).__name__)
            time.sleep(0.2)  # before the next try, as long as the deadline allows one
    try:
        fetcher.mark_refused()
    except StoreError as error:
        logger.warning("drain_waits error_class=%s", type(error).__name__)
    is_empty = not fetcher.in_flight
    fetcher.on_stop()
    return is_empty


def _hands_over(fetcher: Fetcher, slot_of: Callable[[ClaimedMessage], Slot | None]) -> bool:
    """Is there an attempt whose handler has ended and which is not handed back yet? Its hooks run."""
    return any(message.stage in AT_WORK and slot_of(message) is None for message in fetcher.in_flight)
